#include "request.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"

namespace sana_rt::runtime {
namespace {

constexpr std::int64_t kMaxFps = 240;
constexpr double kMaxScale = 1e4;

void check_range(bool fits, const char* name, double value, const char* expected) {
  if (!fits) {
    throw Error(SANA_USAGE_ERROR, concat(name, " is ", value, "."), {.expected = expected});
  }
}

void check_values(const Request& request) {
  const auto steps = request.num_inference_steps;
  check_range(steps >= 1 && steps <= kTrainTimesteps, "num_inference_steps",
              static_cast<double>(steps), "1 to 1000.");
  check_range(request.guidance_scale >= 0 && request.guidance_scale < kMaxScale, "guidance_scale",
              request.guidance_scale, "0 to below 10000.");
  check_range(request.flow_shift > 0 && request.flow_shift < kMaxScale, "flow_shift",
              request.flow_shift, "more than 0, below 10000.");
  check_range(request.fps >= 1 && request.fps <= kMaxFps, "fps", static_cast<double>(request.fps),
              "1 to 240.");
  for (const double timestep : request.timesteps.value_or(std::vector{1.0})) {
    check_range(timestep > 0 && timestep <= static_cast<double>(kTrainTimesteps), "A timestep",
                timestep, "more than 0, at most 1000.");
  }
}

std::vector<double> renoise_timesteps(const Request& request, const ModelSpec& model) {
  return request.timesteps.value_or(model.chunking().timesteps);
}

void check_renoise(const Request& request, const ModelSpec& model) {
  if (!model.streaming) {
    throw Error(SANA_REQUEST_ERROR,
                concat("The solver 'renoise' does not fit ", in_quotes(model.name), "."),
                {.expected = "a model that was distilled to few steps.",
                 .remedy = "choose dpmpp_2m or flow_euler."});
  }
  const auto steps = renoise_timesteps(request, model);
  if (std::adjacent_find(steps.begin(), steps.end(), std::less_equal<>{}) != steps.end()) {
    throw Error(SANA_REQUEST_ERROR, concat("The timesteps are ", listed(steps), "."),
                {.expected = "descending values; the pass at 0 is added automatically."});
  }
  if (request.num_inference_steps != static_cast<std::int64_t>(steps.size())) {
    throw Error(SANA_REQUEST_ERROR, concat("num_inference_steps is ", request.num_inference_steps,
                                           " for the solver 'renoise'."),
                {.expected = concat(steps.size(), ", the timesteps."),
                 .remedy = "leave num_inference_steps out, or choose another solver."});
  }
}

void check(const Request& request, const ModelSpec& model) {
  check_values(request);
  check_positions(model, request.num_frames, request.height, request.width);
  if (request.solver == Solver::kRenoise) {
    check_renoise(request, model);
  } else if (request.timesteps) {
    throw Error(SANA_REQUEST_ERROR, concat("Timesteps are given for the solver '",
                                           solver_name(request.solver), "'."),
                {.expected = "timesteps only with 'renoise'."});
  }
}

Request for_model(const ModelSpec& model, const RequestOptions& options, bool conditioned) {
  const auto& sampling = model.sampling;
  const bool euler = conditioned && sampling.solver == Solver::kDpmpp2m;
  Request request;
  request.solver = options.solver.value_or(euler ? Solver::kFlowEuler : sampling.solver);
  const auto chunking = model.chunking();
  const bool few = request.solver == Solver::kRenoise;
  const auto count = static_cast<std::int64_t>(
      options.timesteps.value_or(chunking.timesteps).size());
  request.prompt = options.prompt.value_or("");
  request.negative_prompt = options.negative_prompt.value_or(sampling.negative_prompt);
  request.height = options.height.value_or(sampling.height);
  request.width = options.width.value_or(sampling.width);
  request.num_frames = options.num_frames.value_or(sampling.num_frames);
  request.num_inference_steps =
      options.num_inference_steps.value_or(few ? count : sampling.num_inference_steps);
  request.guidance_scale = options.guidance_scale.value_or(sampling.guidance_scale);
  request.flow_shift = options.flow_shift.value_or(few ? chunking.flow_shift : sampling.flow_shift);
  request.fps = options.fps.value_or(sampling.fps);
  request.motion_score = options.motion_score.value_or(sampling.motion_score);
  request.seed = options.seed.value_or(0);
  request.lowercase = options.lowercase.value_or(false);
  request.timesteps = options.timesteps;
  check(request, model);
  return request;
}

template <class T>
void inherit(std::optional<T>& option, const T& before) {
  if (!option) option = before;
}

RequestOptions continued(const Request& before, RequestOptions options) {
  const bool anew = options.solver || options.timesteps;  // the model's defaults then decide
  inherit(options.prompt, before.prompt);
  inherit(options.negative_prompt, before.negative_prompt);
  inherit(options.height, before.height);
  inherit(options.width, before.width);
  inherit(options.num_frames, before.num_frames);
  inherit(options.guidance_scale, before.guidance_scale);
  inherit(options.fps, before.fps);
  inherit(options.motion_score, before.motion_score);
  inherit(options.seed, before.seed);
  inherit(options.lowercase, before.lowercase);
  inherit(options.solver, before.solver);
  if (!anew) {
    inherit(options.num_inference_steps, before.num_inference_steps);
    inherit(options.flow_shift, before.flow_shift);
    options.timesteps = before.timesteps;
  }
  return options;
}

std::vector<double> as_timesteps(const Json& value, const Path& path) {
  auto steps = as_list(value, path, as_positive);
  if (steps.empty()) throw DocumentError(Rule::kValue, path + " is empty");
  return steps;
}

}  // namespace

Request asked(const ModelSpec& model, const RequestOptions& options, const Request* before,
              std::optional<double> seconds, bool conditioned) {
  const auto made = [&](const RequestOptions& wanted) {
    return before == nullptr ? for_model(model, wanted, conditioned)
                             : for_model(model, continued(*before, wanted), false);
  };
  auto request = made(options);
  if (!seconds) return request;
  if (options.num_frames) {
    throw Error(SANA_USAGE_ERROR, "Both seconds and num_frames are given.",
                {.expected = "one of the two."});
  }
  if (!(*seconds > 0) || std::isinf(*seconds)) {
    throw Error(SANA_USAGE_ERROR, concat("The length asked for is ", *seconds, " s."),
                {.expected = "more than 0 s."});
  }
  auto longer = options;
  longer.num_frames = frames_of_seconds(*seconds, request.fps, model);
  return made(longer);
}

std::vector<Step> schedule(const Request& request, const ModelSpec& model) {
  switch (request.solver) {
    case Solver::kDpmpp2m: return dpmpp_2m(request.num_inference_steps, request.flow_shift);
    case Solver::kFlowEuler: return flow_euler(request.num_inference_steps, request.flow_shift);
    case Solver::kRenoise: return renoise(renoise_timesteps(request, model), request.flow_shift);
  }
  return {};
}

Dims request_dims(const Request& request, const ModelSpec& model) {
  auto dims = size_dims(model, request.height, request.width);
  dims["batch"] = request.batch();
  return dims;
}

Shape latents_shape(const Request& request, const ModelSpec& model) {
  const auto size = model.latent_size(request.height, request.width);
  return {1, model.transformer.in_channels, model.latent_frames(request.num_frames), size[0],
          size[1]};
}

Request as_request(const Json& value, const Path& path) {
  Fields fields(value, path);
  Request request;
  request.prompt = fields.required("prompt", as_string);
  request.negative_prompt = fields.required("negative_prompt", as_string);
  request.height = fields.required("height", as_integer);
  request.width = fields.required("width", as_integer);
  request.num_frames = fields.required("num_frames", as_integer);
  request.num_inference_steps = fields.required("num_inference_steps", as_count);
  request.guidance_scale = fields.required("guidance_scale", as_non_negative);
  request.solver = fields.required("solver", as_solver);
  request.flow_shift = fields.required("flow_shift", as_positive);
  request.fps = fields.required("fps", as_count);
  request.motion_score =
      fields.required("motion_score", [](const Json& score, const Path& where) {
        return score.is_null() ? std::nullopt : std::optional(as_integer(score, where));
      });
  request.seed = fields.defaulted<std::uint64_t>("seed", 0, as_unsigned);
  request.lowercase = fields.defaulted("lowercase", false, as_bool);
  request.timesteps = fields.nullable("timesteps", as_timesteps);
  fields.finish();
  try {
    check_values(request);
  } catch (const Error& error) {
    throw DocumentError(Rule::kValue, error.what());
  }
  return request;
}

}  // namespace sana_rt::runtime
