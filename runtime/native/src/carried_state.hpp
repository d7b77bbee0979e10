// What a block-causal model carries from chunk to chunk; zeros for a bidirectional one.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "graphs.hpp"

namespace sana_rt::runtime {

// The running sums S and ksum and the last frame of z, of every block. Blocks write into one
// scratch; a pass that shall count commits it, block by block. Each block's is a tensor of its own,
// since TensorRT asks for aligned addresses.
class CarriedState {
 public:
  static constexpr std::array kNames{"state_s", "state_k", "state_z"};

  // State of `blocks` blocks (1 if none commits) and scratch.
  static std::vector<Region> regions(const Signature& block, std::int64_t blocks);
  // What `download` returns: the state of all blocks as one tensor.
  static std::vector<Region> snapshot(const Signature& block, std::int64_t blocks);

  CarriedState(Memory& memory, const BufferMap& buffers);

  // The state inputs of a block.
  BufferMap of(std::int64_t block) const;
  const BufferMap& scratch() const { return scratch_; }
  // The copies that make what a block has just written its state.
  Program commit(std::int64_t block) const;

  std::map<std::string, HostTensor> download() const;
  void upload(const std::map<std::string, HostTensor>& tensors);
  // Back to zeros, before the first chunk of a clip.
  void reset();

 private:
  Memory& memory_;
  std::map<std::string, std::vector<Buffer>> carried_;  // of each block
  BufferMap scratch_;
};

}  // namespace sana_rt::runtime
