#include "memory_plan.hpp"

#include <algorithm>
#include <iomanip>
#include <sstream>

#include "error.hpp"
#include "graph_names.hpp"

namespace sana_rt::runtime {
namespace {

std::uint64_t bytes(const Region& region, const Dims& dims) {
  return num_bytes(region.dtype, resolve(region.shape, dims));
}

void add_row(std::ostringstream& table, const std::string& name, std::uint64_t size) {
  constexpr double kMebibyte = 1 << 20;
  table << std::left << std::setw(28) << name << std::right << std::fixed << std::setprecision(1)
        << std::setw(12) << static_cast<double>(size) / kMebibyte << " MiB\n";
}

}  // namespace

Region Region::single() const {
  Region one = *this;
  std::replace(one.shape.begin(), one.shape.end(), Dim{std::string("batch")},
               Dim{std::int64_t{1}});
  return one;
}

Region Region::stacked(std::int64_t count) const {
  Region many = *this;
  many.shape.insert(many.shape.begin(), Dim{count});
  return many;
}

Region Region::named(std::string other) const {
  Region same = *this;
  same.name = std::move(other);
  return same;
}

Region region(const char* group, const Signature& signature, const std::string& tensor) {
  for (const auto* side : {&signature.inputs, &signature.outputs}) {
    for (const auto& spec : *side) {
      if (spec.name == tensor) return {tensor, group, spec.dtype, spec.shape};
    }
  }
  throw Error(SANA_MANIFEST_REFERENCE_ERROR, concat("A graph has no tensor '", tensor, "'."),
              {.expected = "the tensors that docs/architecture.md lists.",
               .remedy = "export the checkpoint again."});
}

std::uint64_t MemoryPlan::buffer_bytes() const {
  std::uint64_t sum = 0;
  for (const auto& one : regions) sum += bytes(one, dims);
  return sum;
}

std::uint64_t MemoryPlan::weight_bytes() const {
  std::uint64_t encoder = 0;
  std::uint64_t others = 0;
  for (const auto& [name, size] : weights) (name == kTextEncoder ? encoder : others) += size;
  return keep_text_encoder ? others + encoder : std::max(others, encoder);
}

std::string MemoryPlan::table() const {
  std::vector<std::pair<std::string, std::uint64_t>> groups;
  for (const auto& one : regions) {
    auto group = std::find_if(groups.begin(), groups.end(),
                              [&](const auto& each) { return each.first == one.group; });
    if (group == groups.end()) group = groups.insert(groups.end(), {one.group, 0});
    group->second += bytes(one, dims);
  }
  std::ostringstream table;
  add_row(table, "weights (most at one time)", weight_bytes());
  for (const auto& [name, size] : groups) add_row(table, name, size);
  add_row(table, "total", total_bytes());
  table << "and the activations, which " << device << " sizes as it runs.";
  return std::move(table).str();
}

void MemoryPlan::check(std::optional<std::uint64_t> free, std::uint64_t loaded) const {
  const auto needed = total_bytes() - std::min(loaded, total_bytes());
  if (!free || needed <= *free) return;
  throw Error(SANA_DEVICE_MEMORY_ERROR,
              concat("The clip needs ", needed, " bytes on ", device, ", of which ", *free,
                     " are free:\n", table()),
              {.remedy = "ask for a smaller or shorter clip, or free memory that other programs "
                         "use."});
}

Buffers::Buffers(MemoryPlan plan, Memory& memory) : plan_(std::move(plan)) {
  for (const auto& one : plan_.regions) {
    Buffer buffer{nullptr, one.dtype, resolve(one.shape, plan_.dims)};
    allocations_.push_back(memory.allocate(buffer.nbytes()));
    buffer.address = allocations_.back().get();
    full_.insert_or_assign(one.name, std::move(buffer));
  }
}

BufferMap Buffers::sized(const std::string& dim, std::int64_t value) const {
  Dims dims = plan_.dims;
  dims[dim] = value;
  BufferMap views;
  for (const auto& one : plan_.regions) {
    views.insert_or_assign(one.name, full_.at(one.name).view(resolve(one.shape, dims)));
  }
  return views;
}

BufferMap pick(const BufferMap& buffers, std::initializer_list<const char*> names) {
  BufferMap picked;
  for (const auto* name : names) picked.emplace(name, buffers.at(name));
  return picked;
}

}  // namespace sana_rt::runtime
