// A generation request: what to make, checked against the model before anything is loaded.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "geometry.hpp"
#include "json.hpp"
#include "model_spec.hpp"
#include "solver.hpp"

namespace sana_rt::runtime {

struct Request {
  std::string prompt;
  std::string negative_prompt;
  std::int64_t height = 0, width = 0, num_frames = 0, num_inference_steps = 0;
  double guidance_scale = 0;
  Solver solver = Solver::kDpmpp2m;
  double flow_shift = 0;
  std::int64_t fps = 0;
  std::optional<std::int64_t> motion_score;
  std::uint64_t seed = 0;
  bool lowercase = false;
  std::optional<std::vector<double>> timesteps;  // of the solver 'renoise'

  // Samples of a forward pass.
  std::int64_t batch() const { return batch_size(guidance_scale); }
  bool guided() const { return batch() == 2; }
};

// What of a request is asked for; the rest is the model's, or that of the request before.
struct RequestOptions {
  std::optional<std::string> prompt, negative_prompt;
  std::optional<std::int64_t> height, width, num_frames, num_inference_steps, fps;
  std::optional<double> guidance_scale, flow_shift;
  std::optional<Solver> solver;
  std::optional<std::optional<std::int64_t>> motion_score;
  std::optional<std::uint64_t> seed;
  std::optional<bool> lowercase;
  std::optional<std::vector<double>> timesteps;
};

// A request of `options` on top of `before`, if there is one, or of the model's defaults, and of at
// least `seconds`. `conditioned` says that the first frame is given, for which flow Euler is the
// default. A UsageError for a value out of range, a RequestError for one that the model cannot
// serve.
Request asked(const ModelSpec& model, const RequestOptions& options, const Request* before,
              std::optional<double> seconds, bool conditioned);

// The steps of the request's solver.
std::vector<Step> schedule(const Request& request, const ModelSpec& model);

// Every named dimension of the graphs but `frames` and `length`.
Dims request_dims(const Request& request, const ModelSpec& model);

// The shape (1, C, T, h, w) of the latents of the whole clip.
Shape latents_shape(const Request& request, const ModelSpec& model);

// A request in the header of a state.
Request as_request(const Json& value, const Path& path);

}  // namespace sana_rt::runtime
