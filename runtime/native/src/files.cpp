#include "files.hpp"

#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <random>

#include "error.hpp"

namespace sana_rt::runtime {
namespace {

namespace fs = std::filesystem;

class Descriptor {
 public:
  Descriptor(const fs::path& path, int flags) : fd_(::open(path.c_str(), flags | O_CLOEXEC)) {
    if (fd_ < 0) throw_storage_error(path, errno);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { ::close(fd_); }
  int get() const { return fd_; }

 private:
  int fd_;
};

void sync(const fs::path& path, int flags) {
  const Descriptor file(path, flags);
  if (::fsync(file.get()) != 0) throw_storage_error(path, errno);
}

fs::path partial_name(const fs::path& path) {
  std::array<char, 16> suffix{};
  std::random_device random;
  std::snprintf(suffix.data(), suffix.size(), ".%08x", random());
  return fs::path(path).concat(suffix.data()).concat(".partial");
}

}  // namespace

std::string read_file(const fs::path& path, std::size_t limit) {
  const Descriptor file(path, O_RDONLY);
  std::string data;
  std::array<char, 1 << 16> block{};
  while (data.size() <= limit) {
    const auto wanted = std::min(block.size(), limit + 1 - data.size());
    const auto count = ::read(file.get(), block.data(), wanted);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_storage_error(path, errno);
    if (count == 0) break;
    data.append(block.data(), static_cast<std::size_t>(count));
  }
  return data;
}

void write_file(const fs::path& path, const std::function<void(const fs::path&)>& write) {
  const auto partial = partial_name(path);
  const auto folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  std::error_code error;
  fs::create_directories(folder, error);
  try {
    if (error) throw_storage_error(folder, error.value());
    write(partial);
    sync(partial, O_RDONLY);
    fs::rename(partial, path, error);
    if (error) throw_storage_error(path, error.value());
    sync(folder, O_RDONLY | O_DIRECTORY);
  } catch (...) {
    fs::remove(partial, error);
    throw;
  }
}

void throw_storage_error(const fs::path& path, int number) {
  if (number == ENOSPC || number == EDQUOT) {
    throw Error(SANA_DISK_FULL_ERROR, concat("No room left while writing ", path.string(), "."),
                {.remedy = "free some space or choose another place."});
  }
  throw Error(SANA_STORAGE_ERROR,
              concat(std::generic_category().message(number), ": ", path.string(), "."),
              {.remedy = "check the path and its permissions."});
}

std::string sha256(const std::string& data) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned size = 0;
  if (EVP_Digest(data.data(), data.size(), digest.data(), &size, EVP_sha256(), nullptr) != 1) {
    throw Error(SANA_INTERNAL_ERROR, "libcrypto has no SHA-256.");
  }
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string hex;
  for (unsigned index = 0; index < size; ++index) {
    hex += {kHex[digest.at(index) >> 4U], kHex[digest.at(index) & 15U]};
  }
  return hex;
}

}  // namespace sana_rt::runtime
