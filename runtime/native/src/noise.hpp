// Gaussian noise that is a function of its address, bit by bit as docs/numerics.md specifies.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "geometry.hpp"

namespace sana_rt::runtime {

// Philox4x32-10 (Salmon et al. 2011).
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter,
                                    std::array<std::uint32_t, 2> key);

// Channels, height and width of a latent frame.
struct FrameShape {
  std::int64_t channels, height, width;
  std::int64_t size() const { return channels * height * width; }
};

// Standard normal latents [1, C, T, H, W] of absolute latent frames.
std::vector<float> gaussian(std::uint64_t seed, Range frames, const FrameShape& shape,
                            std::uint32_t step);

}  // namespace sana_rt::runtime
