// Tensors in a device's memory, and copies between it and the host.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tensor_spec.hpp"

namespace sana_rt::runtime {

// A dense tensor in device memory, or a contiguous part of one; whoever allocated it owns it.
struct Buffer {
  std::byte* address = nullptr;
  DType dtype = DType::kFloat32;
  Shape shape;

  std::size_t nbytes() const { return num_bytes(dtype, shape); }
  // Rows of the first axis.
  Buffer rows(std::int64_t start, std::int64_t count) const;
  // A row of the first axis, without that axis.
  Buffer row(std::int64_t index) const;
  // The first elements of the memory as another shape, which may be smaller.
  Buffer view(Shape smaller) const;
  // The samples of a batch, each a batch of one.
  std::vector<Buffer> halves() const;
};

using BufferMap = std::map<std::string, Buffer>;

// A tensor in the host's memory. bfloat16, which files of arrays lack, travels as float32.
struct HostTensor {
  DType dtype = DType::kFloat32;
  Shape shape;
  std::vector<std::byte> data;
};

// The dtype of a buffer's host copy.
DType host_dtype(DType dtype);

// Whether a tensor of floats has only finite values; true for other dtypes.
bool is_finite(const HostTensor& tensor);
std::size_t count_non_finite(std::span<const float> values);

// Memory of one device. Copies are ordered with the graphs that run on the device.
class Memory {
 public:
  using Allocation = std::shared_ptr<std::byte>;

  virtual ~Memory() = default;

  // Says in words what comes now, for messages about the device.
  virtual void begin(const std::string& /*moment*/) {}
  // Waits for what the device was given, as long as it may take; the Error of what it failed in.
  virtual void check() {}
  // Whether the device failed for good: what it holds is left where it is.
  virtual bool lost() const { return false; }
  // Zeros. A DeviceMemoryError where there is no room.
  virtual Allocation allocate(std::size_t nbytes) = 0;
  // Bytes that can still be allocated, or nothing where the device does not say.
  virtual std::optional<std::uint64_t> free_bytes() = 0;
  virtual void upload(std::byte* destination, const void* source, std::size_t nbytes) = 0;
  virtual void download(void* destination, const std::byte* source, std::size_t nbytes) = 0;
  virtual void copy(std::byte* destination, const std::byte* source, std::size_t nbytes) = 0;
  virtual void clear(std::byte* destination, std::size_t nbytes) = 0;

  // Between tensors; another dtype or size than the buffer's is a BindingError. float32 is rounded
  // to a bfloat16 buffer, ties to even.
  void upload(const Buffer& destination, std::span<const float> values);
  void upload(const Buffer& destination, std::span<const std::int64_t> values);
  void upload(const Buffer& destination, std::span<const std::uint8_t> values);
  void upload(const Buffer& destination, const HostTensor& tensor);
  void copy(const Buffer& destination, const Buffer& source);
  void clear(const Buffer& buffer);
  HostTensor download(const Buffer& source);
  std::vector<float> download_floats(const Buffer& source);
};

// The memory of the process.
class HostMemory : public Memory {
 public:
  using Memory::clear;
  using Memory::copy;
  using Memory::download;
  using Memory::upload;

  Allocation allocate(std::size_t nbytes) override;
  // What the kernel can give without swapping, or less where a control group limits it.
  std::optional<std::uint64_t> free_bytes() override;
  void upload(std::byte* destination, const void* source, std::size_t nbytes) override;
  void download(void* destination, const std::byte* source, std::size_t nbytes) override;
  void copy(std::byte* destination, const std::byte* source, std::size_t nbytes) override;
  void clear(std::byte* destination, std::size_t nbytes) override;
};

}  // namespace sana_rt::runtime
