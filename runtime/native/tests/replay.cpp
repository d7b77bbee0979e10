// Reads files with a fuzz target, without a fuzzer: replay_TARGET FILE_OR_FOLDER...
#include <cstdio>
#include <ctime>

#include "data.hpp"

extern "C" int LLVMFuzzerTestOneInput(const char* data, std::size_t size);

namespace fs = std::filesystem;

namespace {

constexpr double kMostSeconds = 20;  // of the processor, for one file

bool read(const fs::path& path) {
  const auto data = content(path);
  const auto begin = std::clock();
  LLVMFuzzerTestOneInput(data.data(), data.size());
  const auto seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  if (seconds > kMostSeconds) std::printf("%s took %.1f s\n", path.c_str(), seconds);
  return seconds <= kMostSeconds;
}

}  // namespace

int main(int argc, char** argv) {
  int count = 0;
  bool good = true;
  for (int i = 1; i < argc; ++i) {
    const fs::path given = argv[i];
    if (fs::is_regular_file(given)) {
      good = read(given) && good;
      ++count;
      continue;
    }
    for (const auto& entry : fs::recursive_directory_iterator(given)) {
      if (!entry.is_regular_file()) continue;
      good = read(entry.path()) && good;
      ++count;
    }
  }
  std::printf("%d files read\n", count);
  return good && count > 0 ? 0 : 1;
}
