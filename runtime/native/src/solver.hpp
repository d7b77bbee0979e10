// Solvers as numbers: each computes a schedule of steps, and a step is six coefficients.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sana_rt::runtime {

constexpr std::int64_t kTrainTimesteps = 1000;

// sample = latents - sigma velocity estimates x0; the next latents are
// a latents + b sample + c (sample - previous sample) + n noise.
struct Step {
  double timestep;  // in 0..1000
  double sigma;
  double a;
  double b;
  double c = 0.0;
  double n = 0.0;
};

// DPM-Solver++(2M) for flow matching: Lu et al. 2022, arXiv 2211.01095, algorithm 2.
std::vector<Step> dpmpp_2m(std::int64_t num_inference_steps, double flow_shift);

// Euler's method on the flow; its smallest sigma is shifted twice.
std::vector<Step> flow_euler(std::int64_t num_inference_steps, double flow_shift);

// LongSANA's few-step sampling: estimate x0, then add fresh noise of the next level.
std::vector<Step> renoise(std::span<const double> timesteps, double flow_shift);

// The solver graph's coefficients [frames, 6]: guidance, sigma, a, b, c, n. The first
// `condition_frames` are given: they keep their latents.
std::vector<float> coefficients(const Step& step, double guidance_scale, std::int64_t frames,
                                std::int64_t condition_frames);

// Timestep of each latent frame; 0 for frames that are given.
std::vector<float> frame_timesteps(const Step& step, std::int64_t frames,
                                   std::int64_t condition_frames);

}  // namespace sana_rt::runtime
