#include "solver.hpp"

#include <algorithm>
#include <cmath>

namespace sana_rt::runtime {
namespace {

constexpr double kSigmaMin = 1.0 / static_cast<double>(kTrainTimesteps);

// Moves sigmas towards 1: Esser et al. 2024, eq. 23.
double shifted(double sigma, double flow_shift) {
  return flow_shift * sigma / (1 + (flow_shift - 1) * sigma);
}

// `count` evenly spaced numbers with both ends; in numpy's order of operations.
std::vector<double> linspace(double start, double stop, std::int64_t count) {
  const double step = count > 1 ? (stop - start) / static_cast<double>(count - 1) : 0.0;
  std::vector<double> values;
  for (std::int64_t i = 0; i < count; ++i) values.push_back(static_cast<double>(i) * step + start);
  if (count > 1) values.back() = stop;
  return values;
}

double log_snr(double sigma) { return std::log1p(-sigma) - std::log(sigma); }

}  // namespace

std::vector<Step> dpmpp_2m(std::int64_t num_inference_steps, double flow_shift) {
  std::vector<double> sigmas{0.0};
  for (const double level : linspace(1, kSigmaMin, num_inference_steps + 1)) {
    sigmas.push_back(shifted(1 - level, flow_shift));
  }
  sigmas.erase(sigmas.begin() + 1);  // 1 - 1, which the final 0 stands for
  std::reverse(sigmas.begin(), sigmas.end());
  std::vector<Step> steps;
  double h_before = 0;
  for (std::size_t i = 0; i + 1 < sigmas.size(); ++i) {
    const double sigma = sigmas[i];
    const double next = sigmas[i + 1];
    const double timestep = std::trunc(static_cast<double>(kTrainTimesteps) * sigma);
    if (next == 0) {
      steps.push_back({.timestep = timestep, .sigma = sigma, .a = 0.0, .b = 1.0});
      break;
    }
    const double h = log_snr(next) - log_snr(sigma);
    const double b = -(1 - next) * std::expm1(-h);
    const double c = steps.empty() ? 0.0 : b * h / (2 * h_before);
    steps.push_back({.timestep = timestep, .sigma = sigma, .a = next / sigma, .b = b, .c = c});
    h_before = h;
  }
  return steps;
}

std::vector<Step> flow_euler(std::int64_t num_inference_steps, double flow_shift) {
  auto sigmas = linspace(1, shifted(kSigmaMin, flow_shift), num_inference_steps);
  for (double& sigma : sigmas) sigma = shifted(sigma, flow_shift);
  sigmas.push_back(0.0);
  std::vector<Step> steps;
  for (std::size_t i = 0; i + 1 < sigmas.size(); ++i) {
    const double ratio = sigmas[i + 1] / sigmas[i];
    steps.push_back({.timestep = static_cast<double>(kTrainTimesteps) * sigmas[i],
                     .sigma = sigmas[i],
                     .a = ratio,
                     .b = 1 - ratio});
  }
  return steps;
}

std::vector<Step> renoise(std::span<const double> timesteps, double flow_shift) {
  auto table = linspace(1, 0, kTrainTimesteps + 1);
  table.pop_back();
  for (double& sigma : table) sigma = shifted(sigma, flow_shift);
  std::vector<double> sigmas;
  for (const double timestep : timesteps) {
    const auto distance = [timestep](double sigma) {
      return std::abs(static_cast<double>(kTrainTimesteps) * sigma - timestep);
    };
    sigmas.push_back(*std::min_element(table.begin(), table.end(), [&](double one, double other) {
      return distance(one) < distance(other);
    }));
  }
  sigmas.push_back(0.0);
  std::vector<Step> steps;
  for (std::size_t i = 0; i < timesteps.size(); ++i) {
    steps.push_back({.timestep = timesteps[i],
                     .sigma = sigmas[i],
                     .a = 0.0,
                     .b = 1 - sigmas[i + 1],
                     .n = sigmas[i + 1]});
  }
  return steps;
}

std::vector<float> coefficients(const Step& step, double guidance_scale, std::int64_t frames,
                                std::int64_t condition_frames) {
  std::vector<float> rows;
  for (std::int64_t frame = 0; frame < frames; ++frame) {
    const bool given = frame < condition_frames;
    for (const double value : {guidance_scale, step.sigma, given ? 1.0 : step.a,
                               given ? 0.0 : step.b, given ? 0.0 : step.c, given ? 0.0 : step.n}) {
      rows.push_back(static_cast<float>(value));
    }
  }
  return rows;
}

std::vector<float> frame_timesteps(const Step& step, std::int64_t frames,
                                   std::int64_t condition_frames) {
  std::vector<float> row(static_cast<std::size_t>(frames), static_cast<float>(step.timestep));
  std::fill_n(row.begin(), condition_frames, 0.0F);
  return row;
}

}  // namespace sana_rt::runtime
