// Device memory, planned from the manifest before the first byte is allocated.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "buffers.hpp"
#include "manifest.hpp"

namespace sana_rt::runtime {

// A tensor to allocate; the named dimensions of its shape are those of the plan.
struct Region {
  std::string name;
  std::string group;
  DType dtype;
  std::vector<Dim> shape;

  // The same for a batch of one.
  Region single() const;
  // `count` of them in a new first dimension.
  Region stacked(std::int64_t count) const;
  Region named(std::string other) const;

  bool operator==(const Region&) const = default;
};

// Room for an input or output of a graph, called as the tensor is.
Region region(const char* group, const Signature& signature, const std::string& tensor);

// A clip's memory: weights by graph, and buffers. Unless the text encoder is kept it is gone before
// the other graphs are loaded.
struct MemoryPlan {
  std::string device;
  std::map<std::string, std::uint64_t> weights;
  std::vector<Region> regions;
  Dims dims;
  bool keep_text_encoder = false;

  std::uint64_t buffer_bytes() const;
  // At the worst moment.
  std::uint64_t weight_bytes() const;
  std::uint64_t total_bytes() const { return weight_bytes() + buffer_bytes(); }
  // For a person.
  std::string table() const;
  // A DeviceMemoryError if less is free than needed; `loaded` bytes of weights are there already.
  void check(std::optional<std::uint64_t> free, std::uint64_t loaded) const;

  bool operator==(const MemoryPlan&) const = default;
};

// The allocated regions of a plan.
class Buffers {
 public:
  Buffers(MemoryPlan plan, Memory& memory);

  const MemoryPlan& plan() const { return plan_; }
  const Buffer& operator[](const std::string& name) const { return full_.at(name); }
  // All buffers, in full or as they are used when a dimension is smaller than planned.
  const BufferMap& all() const { return full_; }
  BufferMap sized(const std::string& dim, std::int64_t value) const;

 private:
  MemoryPlan plan_;
  std::vector<Memory::Allocation> allocations_;
  BufferMap full_;
};

// Those of `names`.
BufferMap pick(const BufferMap& buffers, std::initializer_list<const char*> names);

}  // namespace sana_rt::runtime
