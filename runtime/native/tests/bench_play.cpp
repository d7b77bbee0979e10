// Plays a clip and says what it took, as JSON: bench_play BUNDLE PROMPT THREADS
//
// Of each denoising step it also says how much of it ONNX Runtime's Run had: the function that the
// library finds ONNX Runtime by is defined here, and gives it a table with a Run that is timed.
#include <dlfcn.h>
#include <time.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <onnxruntime_c_api.h>

#include "files.hpp"
#include "sana_rt.hpp"

namespace {

// Python's time.monotonic, so that whoever starts this program can subtract.
double now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double run_seconds = 0;
const OrtApi* real = nullptr;

OrtStatus* timed_run(OrtSession* session, const OrtRunOptions* options,
                     const OrtIoBinding* io) noexcept {
  const auto begin = now();
  auto* status = real->RunWithBinding(session, options, io);
  run_seconds += now() - begin;
  return status;
}

const OrtApi* timed_api(std::uint32_t version) noexcept {
  static OrtApi timed;
  const auto* base = reinterpret_cast<const OrtApiBase* (*)()>(::dlsym(RTLD_NEXT, "OrtGetApiBase"))();
  real = base->GetApi(version);
  if (real == nullptr) return nullptr;
  timed = *real;
  timed.RunWithBinding = timed_run;
  return &timed;
}

const char* version() noexcept { return "timed"; }

std::uint64_t peak_resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    std::uint64_t kibibytes = 0;
    if (word == "VmHWM:" && status >> kibibytes) return kibibytes << 10U;
  }
  return 0;
}

}  // namespace

extern "C" const OrtApiBase* OrtGetApiBase() noexcept {
  static const OrtApiBase base{timed_api, version};
  return &base;
}

int main(int argc, char** argv) {
  const auto begin = now();
  if (argc != 4) return 2;
  sana_rt::SessionOptions options;
  options.threads = std::atoi(argv[3]);
  auto steps = nlohmann::json::array();
  auto last = begin;
  auto last_run = run_seconds;
  options.progress = [&](const sana_progress& progress) {
    const auto time = now();
    // The first step of a chunk has what comes before it, too.
    if (progress.stage == SANA_STAGE_DENOISE && progress.done > 1) {
      steps.push_back({{"seconds", time - last}, {"run_seconds", run_seconds - last_run}});
    }
    last_run = run_seconds;
    last = now();
    return true;
  };
  sana_rt::Session session(sana_rt::Model(argv[1]), options);
  sana_rt::ClipParams params;
  params.prompt = argv[2];
  double first = 0;
  std::string frames;
  auto clip = session.start(params);
  for (const auto& made : clip) {
    if (frames.empty()) first = now();
    for (std::size_t i = 0; i < made.size(); ++i) frames.append(made[i].begin(), made[i].end());
  }
  std::cout << nlohmann::json{{"main", begin},
                              {"first_frame", first},
                              {"last_frame", now()},
                              {"peak_resident_bytes", peak_resident_bytes()},
                              {"frames", sana_rt::runtime::sha256(frames)},
                              {"steps", steps}}
            << '\n';
}
