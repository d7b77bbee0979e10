#include "carried_state.hpp"

#include "error.hpp"

namespace sana_rt::runtime {

namespace {

std::string of_block(const std::string& name, std::int64_t block) {
  return concat(name, ".", block);
}

}  // namespace

std::vector<Region> CarriedState::regions(const Signature& block, std::int64_t blocks) {
  std::vector<Region> found;
  for (const std::string name : kNames) {
    const auto one = region("state", block, name);
    for (std::int64_t index = 0; index < blocks; ++index) {
      found.push_back(one.named(of_block(name, index)));
    }
    found.push_back(region("state", block, name + "_out"));
  }
  return found;
}

std::vector<Region> CarriedState::snapshot(const Signature& block, std::int64_t blocks) {
  std::vector<Region> found;
  for (const auto* name : kNames) found.push_back(region("state", block, name).stacked(blocks));
  return found;
}

CarriedState::CarriedState(Memory& memory, const BufferMap& buffers) : memory_(memory) {
  for (const std::string name : kNames) {
    auto& blocks = carried_[name];
    for (auto at = buffers.find(of_block(name, 0)); at != buffers.end();
         at = buffers.find(of_block(name, static_cast<std::int64_t>(blocks.size())))) {
      blocks.push_back(at->second);
    }
    scratch_.emplace(name + "_out", buffers.at(name + "_out"));
  }
}

BufferMap CarriedState::of(std::int64_t block) const {
  BufferMap inputs;
  for (const auto& [name, blocks] : carried_) {
    inputs.emplace(name, blocks[static_cast<std::size_t>(block) % blocks.size()]);
  }
  return inputs;
}

Program CarriedState::commit(std::int64_t block) const {
  Program copies;
  for (const auto& [name, buffer] : of(block)) {
    copies.emplace_back(Copy{buffer, scratch_.at(name + "_out")});
  }
  return copies;
}

std::map<std::string, HostTensor> CarriedState::download() const {
  std::map<std::string, HostTensor> tensors;
  for (const auto& [name, blocks] : carried_) {
    HostTensor all = memory_.download(blocks.front());
    for (auto block = blocks.begin() + 1; block != blocks.end(); ++block) {
      const auto one = memory_.download(*block);
      all.data.insert(all.data.end(), one.data.begin(), one.data.end());
    }
    all.shape.insert(all.shape.begin(), static_cast<std::int64_t>(blocks.size()));
    tensors.emplace(name, std::move(all));
  }
  return tensors;
}

void CarriedState::upload(const std::map<std::string, HostTensor>& tensors) {
  for (const auto& [name, blocks] : carried_) {
    const auto& all = tensors.at(name);
    const Shape shape(all.shape.begin() + 1, all.shape.end());
    const auto size = static_cast<std::ptrdiff_t>(num_bytes(all.dtype, shape));
    auto from = all.data.begin();
    for (const auto& block : blocks) {
      memory_.upload(block, HostTensor{all.dtype, shape, {from, from + size}});
      from += size;
    }
  }
}

void CarriedState::reset() {
  for (const auto& [name, blocks] : carried_) {
    for (const auto& block : blocks) memory_.clear(block);
  }
}

}  // namespace sana_rt::runtime
