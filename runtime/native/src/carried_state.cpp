#include "carried_state.hpp"

namespace sana_rt::runtime {

std::vector<Region> CarriedState::regions(const Signature& block, std::int64_t blocks) {
  std::vector<Region> found;
  for (const std::string name : kNames) {
    found.push_back(region("state", block, name).stacked(blocks));
    found.push_back(region("state", block, name + "_out"));
  }
  return found;
}

CarriedState::CarriedState(Memory& memory, const BufferMap& buffers) : memory_(memory) {
  for (const std::string name : kNames) {
    carried_.emplace(name, buffers.at(name));
    scratch_.emplace(name + "_out", buffers.at(name + "_out"));
  }
}

BufferMap CarriedState::of(std::int64_t block) const {
  BufferMap inputs;
  for (const auto& [name, buffer] : carried_) {
    inputs.emplace(name, buffer.row(block % buffer.shape[0]));
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
  for (const auto& [name, buffer] : carried_) tensors.emplace(name, memory_.download(buffer));
  return tensors;
}

void CarriedState::upload(const std::map<std::string, HostTensor>& tensors) {
  for (const auto& [name, buffer] : carried_) memory_.upload(buffer, tensors.at(name));
}

void CarriedState::reset() {
  for (const auto& [name, buffer] : carried_) memory_.clear(buffer);
}

}  // namespace sana_rt::runtime
