#include "denoiser.hpp"

#include "graph_names.hpp"

namespace sana_rt::runtime {

std::vector<Region> Denoiser::regions(const Graphs& graphs, std::int64_t blocks_with_state) {
  std::vector<Region> found;
  const auto add = [&](const char* group, const std::string& graph,
                       std::initializer_list<const char*> tensors) {
    for (const auto* tensor : tensors) {
      found.push_back(region(group, graphs.signature(graph), tensor));
    }
  };
  add("transformer", kRope,
      {"frame_index", "row_index", "column_index", "rope_t", "rope_h", "rope_w"});
  add("transformer", kTimestep, {"timestep", "modulation", "embedding"});
  add("transformer", block_name(0), {"tokens", "tokens_out"});
  add("transformer", kFinalLayer, {"velocity"});
  add("latents", kPatchEmbed, {"latents"});
  for (const auto* tensor :
       {"previous_sample", "noise", "coefficients", "latents_out", "sample"}) {
    found.push_back(region("latents", graphs.signature(kSolver), tensor).single());
  }
  const auto state = CarriedState::regions(graphs.signature(block_name(0)), blocks_with_state);
  found.insert(found.end(), state.begin(), state.end());
  return found;
}

Denoiser::Denoiser(Graphs& graphs, BufferMap buffers, const CarriedState& state)
    : graphs_(graphs), memory_(graphs.memory()), buffers_(std::move(buffers)) {
  start_.emplace_back(graphs_.bind(kRope, pick(buffers_, {"frame_index", "row_index", "column_index"}),
                                   pick(buffers_, {"rope_t", "rope_h", "rope_w"})));
  start_.emplace_back(Clear{buffers_.at("previous_sample")});
  step_ = commit_ = before();
  const auto blocks = buffers_.at("text_k").shape[0];
  for (std::int64_t index = 0; index < blocks; ++index) {
    const auto block = bind_block(index, state);
    step_.emplace_back(block);
    commit_.emplace_back(block);
    for (const auto& copy : state.commit(index)) commit_.push_back(copy);
  }
  step_.emplace_back(graphs_.bind(
      kFinalLayer, {{"tokens", tokens(blocks)}, {"embedding", buffers_.at("embedding")}},
      pick(buffers_, {"velocity"})));
  step_.emplace_back(bind_solver());
  for (const auto& move : moves()) step_.push_back(move);
}

void Denoiser::start(Range frames, std::span<const float> latents) {
  fill_positions("frame_index", frames.start);
  fill_positions("row_index", 0);
  fill_positions("column_index", 0);
  for (const auto& half : buffers_.at("latents").halves()) memory_.upload(half, latents);
  graphs_.run(start_);
}

void Denoiser::step(const Step& step, double guidance_scale, std::span<const float> noise,
                    std::int64_t condition_frames) {
  fill_timesteps(frame_timesteps(step, frames(), condition_frames));
  memory_.upload(buffers_.at("coefficients"),
                 coefficients(step, guidance_scale, frames(), condition_frames));
  if (!noise.empty()) memory_.upload(buffers_.at("noise"), noise);
  graphs_.run(step_);
}

void Denoiser::commit() {
  fill_timesteps(std::vector<float>(static_cast<std::size_t>(frames()), 0.0F));
  graphs_.run(commit_);
}

HostTensor Denoiser::latents() { return memory_.download(buffers_.at("latents").rows(0, 1)); }

void Denoiser::fill_timesteps(const std::vector<float>& of_frames) {
  const auto& buffer = buffers_.at("timestep");
  std::vector<float> rows;
  for (std::int64_t sample = 0; sample < buffer.shape[0]; ++sample) {
    rows.insert(rows.end(), of_frames.begin(), of_frames.end());
  }
  memory_.upload(buffer, rows);
}

void Denoiser::fill_positions(const char* name, std::int64_t first) {
  const auto& buffer = buffers_.at(name);
  memory_.upload(buffer, positions(first, buffer.shape[0]));
}

// Where a block reads its tokens; the block before it writes them there.
const Buffer& Denoiser::tokens(std::int64_t block) const {
  return buffers_.at(block % 2 == 0 ? "tokens" : "tokens_out");
}

Program Denoiser::before() const {
  return {graphs_.bind(kTimestep, pick(buffers_, {"timestep"}),
                       pick(buffers_, {"modulation", "embedding"})),
          graphs_.bind(kPatchEmbed, pick(buffers_, {"latents"}), pick(buffers_, {"tokens"}))};
}

std::shared_ptr<Binding> Denoiser::bind_block(std::int64_t index, const CarriedState& state) const {
  auto inputs = pick(buffers_, {"modulation", "text_bias", "rope_t", "rope_h", "rope_w"});
  inputs.emplace("tokens", tokens(index));
  inputs.emplace("text_k", buffers_.at("text_k").row(index));
  inputs.emplace("text_v", buffers_.at("text_v").row(index));
  inputs.merge(state.of(index));
  auto outputs = state.scratch();
  outputs.emplace("tokens_out", tokens(index + 1));
  return graphs_.bind(block_name(index), inputs, outputs);
}

std::shared_ptr<Binding> Denoiser::bind_solver() const {
  const auto velocities = buffers_.at("velocity").halves();
  auto inputs = pick(buffers_, {"previous_sample", "noise", "coefficients"});
  inputs.emplace("latents", buffers_.at("latents").rows(0, 1));
  inputs.emplace("velocity_negative", velocities.front());
  inputs.emplace("velocity_positive", velocities.back());
  return graphs_.bind(kSolver, inputs, pick(buffers_, {"latents_out", "sample"}));
}

// What the solver wrote becomes what the next step reads.
Program Denoiser::moves() const {
  Program copies{Copy{buffers_.at("previous_sample"), buffers_.at("sample")}};
  for (const auto& half : buffers_.at("latents").halves()) {
    copies.emplace_back(Copy{half, buffers_.at("latents_out")});
  }
  return copies;
}

}  // namespace sana_rt::runtime
