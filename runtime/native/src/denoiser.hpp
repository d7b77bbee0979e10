// One chunk of latents, from noise to the estimate of x0.
#pragma once

#include <span>
#include <vector>

#include "carried_state.hpp"
#include "geometry.hpp"
#include "graphs.hpp"
#include "solver.hpp"

namespace sana_rt::runtime {

// The transformer and the solver over the first latent frames of the buffers. Every graph is bound
// once; a step fills what is its own and runs a program that is the same at every step. With
// guidance the batch is (negative, positive); the latents are the same in both halves.
class Denoiser {
 public:
  // The buffers that it works on, but for the text's.
  static std::vector<Region> regions(const Graphs& graphs, std::int64_t blocks_with_state);

  Denoiser(Graphs& graphs, BufferMap buffers, const CarriedState& state);

  // Begins a chunk at absolute latent frames with latents [1, C, T, h, w].
  void start(Range frames, std::span<const float> latents);
  // One pass through the transformer and one move of the latents. `noise` may be empty.
  void step(const Step& step, double guidance_scale, std::span<const float> noise,
            std::int64_t condition_frames);
  // One pass over the finished latents at t = 0, after which the state includes them.
  void commit();
  // A host copy of the latents.
  HostTensor latents();

 private:
  std::int64_t frames() const { return buffers_.at("latents").shape[2]; }
  void fill_timesteps(const std::vector<float>& of_frames);
  void fill_positions(const char* name, std::int64_t first);
  const Buffer& tokens(std::int64_t block) const;
  Program before() const;
  std::shared_ptr<Binding> bind_block(std::int64_t index, const CarriedState& state) const;
  std::shared_ptr<Binding> bind_solver() const;
  Program moves() const;

  Graphs& graphs_;
  Memory& memory_;
  BufferMap buffers_;
  Program start_, step_, commit_;
};

}  // namespace sana_rt::runtime
