// An NVIDIA GPU and one stream, through the driver's API. Not run on hardware yet.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "buffers.hpp"

namespace sana_rt::runtime {

// The first GPU: its name, compute capability ("12.0"), and the driver's version of CUDA.
struct Card {
  std::string name, compute_capability, driver;
};

// The card that is here; nothing is allocated on it. A BackendError if there is none, or no driver.
Card find_card();

// The first GPU, in the context that other libraries share, and one stream of its own.
//
// Every wait looks at an event again and again, so that it can give up: after `timeout` seconds, or
// an error from which the context does not recover, the device is lost and every call is a
// DeviceLostError, but for those that give something back.
class CudaDevice {
 public:
  explicit CudaDevice(double timeout);
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;
  ~CudaDevice();

  const Card& card() const { return card_; }
  bool lost() const { return lost_; }
  // The stream, for libraries that work on it.
  std::uintptr_t stream() const { return stream_; }
  // What is being done, in words, for messages.
  void begin(std::string moment) { moment_ = std::move(moment); }

  // Device memory of zeros. A DeviceMemoryError where there is no room.
  std::uint64_t allocate(std::size_t nbytes);
  void free(std::uint64_t address) noexcept;
  // Between any two memories, after what the stream was given before.
  void copy(std::uint64_t destination, std::uint64_t source, std::size_t nbytes);
  void clear(std::uint64_t destination, std::size_t nbytes);
  // Returns when the stream is idle.
  void synchronize();
  // Free and total bytes.
  std::pair<std::uint64_t, std::uint64_t> memory_info();

 private:
  // A call of the driver in the context.
  template <class... Parameters, class... Arguments>
  void call(const char* name, int (*function)(Parameters...), Arguments... arguments);
  [[noreturn]] void fail(const char* name, int status);
  [[noreturn]] void lose(const std::string& failure);
  [[noreturn]] void throw_lost() const;
  bool reached();
  void close() noexcept;

  double timeout_;
  Card card_;
  std::string moment_, failure_;
  bool lost_ = false;
  int device_ = 0;
  void* context_ = nullptr;
  std::uintptr_t stream_ = 0;
  void* idle_ = nullptr;
};

// Its memory; copies take their turns with the graphs on its stream.
class CudaMemory : public Memory {
 public:
  using Memory::clear;
  using Memory::copy;
  using Memory::download;
  using Memory::upload;

  explicit CudaMemory(double timeout) : device_(std::make_shared<CudaDevice>(timeout)) {}

  const std::shared_ptr<CudaDevice>& device() const { return device_; }

  void begin(const std::string& moment) override { device_->begin(moment); }
  void check() override { device_->synchronize(); }
  bool lost() const override { return device_->lost(); }
  Allocation allocate(std::size_t nbytes) override;
  std::optional<std::uint64_t> free_bytes() override { return device_->memory_info().first; }
  void upload(std::byte* destination, const void* source, std::size_t nbytes) override;
  void download(void* destination, const std::byte* source, std::size_t nbytes) override;
  void copy(std::byte* destination, const std::byte* source, std::size_t nbytes) override;
  void clear(std::byte* destination, std::size_t nbytes) override;

 private:
  std::shared_ptr<CudaDevice> device_;
};

}  // namespace sana_rt::runtime
