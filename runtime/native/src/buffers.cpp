#include "buffers.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#include "error.hpp"

namespace sana_rt::runtime {
namespace {

constexpr std::size_t kAlignment = 64;  // of a cache line, and of the widest vector register

std::uint16_t to_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  // Rounding must not carry a NaN into infinity.
  if (std::isnan(value)) return static_cast<std::uint16_t>((bits >> 16U) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16U) & 1U)) >> 16U);
}

float from_bfloat16(std::uint16_t bits) {
  return std::bit_cast<float>(std::uint32_t{bits} << 16U);
}

void check_fits(const Buffer& buffer, DType dtype, std::size_t elements) {
  if (buffer.dtype != dtype ||
      static_cast<std::size_t>(num_elements(buffer.shape)) != elements) {
    throw Error(SANA_BINDING_ERROR,
                concat(elements, " values of ", dtype_name(dtype), " were copied to a buffer."),
                {.expected = concat(dtype_name(buffer.dtype), " of shape ", listed(buffer.shape),
                                    ".")});
  }
}

template <class T>
std::span<const T> values_of(const HostTensor& tensor) {
  return {reinterpret_cast<const T*>(tensor.data.data()), tensor.data.size() / sizeof(T)};
}

// The number after `name` in a kernel's table of names and numbers.
std::optional<std::uint64_t> kernel_number(const char* file, const std::string& name) {
  std::ifstream table(file);
  std::string word;
  while (table >> word) {
    std::uint64_t number = 0;
    if (word == name && table >> number) return number;
    std::getline(table, word);
  }
  return std::nullopt;
}

// What the control group (version 2) of the process allows beyond its anonymous memory.
std::optional<std::uint64_t> group_bytes() {
  std::ifstream file("/sys/fs/cgroup/memory.max");
  std::uint64_t limit = 0;
  const auto used = kernel_number("/sys/fs/cgroup/memory.stat", "anon");
  if (!used || !(file >> limit)) return std::nullopt;
  return limit > *used ? limit - *used : 0;
}

}  // namespace

Buffer Buffer::rows(std::int64_t start, std::int64_t count) const {
  Shape one(shape.begin() + 1, shape.end());
  const auto offset = static_cast<std::size_t>(start) * num_bytes(dtype, one);
  one.insert(one.begin(), count);
  return {address + offset, dtype, std::move(one)};
}

Buffer Buffer::row(std::int64_t index) const {
  return rows(index, 1).view(Shape(shape.begin() + 1, shape.end()));
}

Buffer Buffer::view(Shape smaller) const {
  if (num_elements(smaller) > num_elements(shape)) {
    throw Error(SANA_BINDING_ERROR, concat("A buffer of shape ", listed(shape),
                                           " cannot be viewed as ", listed(smaller), "."));
  }
  return {address, dtype, std::move(smaller)};
}

std::vector<Buffer> Buffer::halves() const {
  std::vector<Buffer> samples;
  for (std::int64_t index = 0; index < shape.at(0); ++index) samples.push_back(rows(index, 1));
  return samples;
}

DType host_dtype(DType dtype) { return dtype == DType::kBFloat16 ? DType::kFloat32 : dtype; }

std::size_t count_non_finite(std::span<const float> values) {
  return static_cast<std::size_t>(
      std::count_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); }));
}

bool is_finite(const HostTensor& tensor) {
  return tensor.dtype != DType::kFloat32 || count_non_finite(values_of<float>(tensor)) == 0;
}

void Memory::upload(const Buffer& destination, std::span<const float> values) {
  if (destination.dtype == DType::kBFloat16) {
    check_fits(destination, DType::kBFloat16, values.size());
    std::vector<std::uint16_t> rounded(values.size());
    std::transform(values.begin(), values.end(), rounded.begin(), to_bfloat16);
    upload(destination.address, rounded.data(), destination.nbytes());
    return;
  }
  check_fits(destination, DType::kFloat32, values.size());
  upload(destination.address, values.data(), destination.nbytes());
}

void Memory::upload(const Buffer& destination, std::span<const std::int64_t> values) {
  check_fits(destination, DType::kInt64, values.size());
  upload(destination.address, values.data(), destination.nbytes());
}

void Memory::upload(const Buffer& destination, std::span<const std::uint8_t> values) {
  check_fits(destination, DType::kUInt8, values.size());
  upload(destination.address, values.data(), destination.nbytes());
}

void Memory::upload(const Buffer& destination, const HostTensor& tensor) {
  if (tensor.dtype == DType::kFloat32) return upload(destination, values_of<float>(tensor));
  check_fits(destination, tensor.dtype, static_cast<std::size_t>(num_elements(tensor.shape)));
  upload(destination.address, tensor.data.data(), destination.nbytes());
}

void Memory::copy(const Buffer& destination, const Buffer& source) {
  check_fits(destination, source.dtype, static_cast<std::size_t>(num_elements(source.shape)));
  copy(destination.address, source.address, source.nbytes());
}

void Memory::clear(const Buffer& buffer) { clear(buffer.address, buffer.nbytes()); }

HostTensor Memory::download(const Buffer& source) {
  HostTensor tensor{host_dtype(source.dtype), source.shape, {}};
  tensor.data.resize(num_bytes(tensor.dtype, tensor.shape));
  if (source.dtype == tensor.dtype) {
    download(tensor.data.data(), source.address, tensor.data.size());
    return tensor;
  }
  std::vector<std::uint16_t> bits(source.nbytes() / sizeof(std::uint16_t));
  download(bits.data(), source.address, source.nbytes());
  std::vector<float> widened(bits.size());
  std::transform(bits.begin(), bits.end(), widened.begin(), from_bfloat16);
  std::memcpy(tensor.data.data(), widened.data(), tensor.data.size());
  return tensor;
}

std::vector<float> Memory::download_floats(const Buffer& source) {
  const auto tensor = download(source);
  check_fits(source, source.dtype, tensor.data.size() / sizeof(float));
  std::vector<float> values(tensor.data.size() / sizeof(float));
  std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
  return values;
}

Memory::Allocation HostMemory::allocate(std::size_t nbytes) {
  // calloc leaves pages alone until they are written; aligned allocation would not.
  void* block = std::calloc(nbytes + kAlignment, 1);
  if (block == nullptr) {
    throw Error(SANA_DEVICE_MEMORY_ERROR, concat("The system refused ", nbytes, " bytes."));
  }
  const std::shared_ptr<void> owner(block, std::free);
  std::size_t space = nbytes + kAlignment;
  std::align(kAlignment, nbytes, block, space);
  return {owner, static_cast<std::byte*>(block)};
}

std::optional<std::uint64_t> HostMemory::free_bytes() {
  auto available = kernel_number("/proc/meminfo", "MemAvailable:");
  if (available) *available <<= 10U;  // it is in KiB
  const auto group = group_bytes();
  if (!available || !group) return available ? available : group;
  return std::min(*available, *group);
}

void HostMemory::upload(std::byte* destination, const void* source, std::size_t nbytes) {
  if (nbytes > 0) std::memcpy(destination, source, nbytes);
}

void HostMemory::download(void* destination, const std::byte* source, std::size_t nbytes) {
  if (nbytes > 0) std::memcpy(destination, source, nbytes);
}

void HostMemory::copy(std::byte* destination, const std::byte* source, std::size_t nbytes) {
  if (nbytes > 0) std::memmove(destination, source, nbytes);
}

void HostMemory::clear(std::byte* destination, std::size_t nbytes) {
  if (nbytes > 0) std::memset(destination, 0, nbytes);
}

}  // namespace sana_rt::runtime
