// The C interface: handles over the classes, exceptions become statuses and texts.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "error.hpp"
#include "sana_rt.h"
#include "session.hpp"
#include "unicode.hpp"

using namespace sana_rt::runtime;  // NOLINT: this file is the boundary

namespace {

struct StatusName {
  sana_status status;
  const char* name;
};

constexpr StatusName kStatusNames[] = {
    {SANA_OK, "OK"},
    {SANA_DONE, "Done"},
    {SANA_INTERNAL_ERROR, "InternalError"},
    {SANA_MEMORY_ERROR, "MemoryError"},
    {SANA_USAGE_ERROR, "UsageError"},
    {SANA_REQUEST_ERROR, "RequestError"},
    {SANA_CANCELED_ERROR, "CanceledError"},
    {SANA_STATE_ERROR, "StateError"},
    {SANA_NON_FINITE_ERROR, "NonFiniteError"},
    {SANA_STORAGE_ERROR, "StorageError"},
    {SANA_DISK_FULL_ERROR, "DiskFullError"},
    {SANA_BUNDLE_FILE_ERROR, "BundleFileError"},
    {SANA_TOKENIZER_ERROR, "TokenizerError"},
    {SANA_MANIFEST_MISSING_ERROR, "ManifestMissingError"},
    {SANA_MANIFEST_SYNTAX_ERROR, "ManifestSyntaxError"},
    {SANA_MANIFEST_VERSION_ERROR, "ManifestVersionError"},
    {SANA_MANIFEST_FIELD_ERROR, "ManifestFieldError"},
    {SANA_MANIFEST_VALUE_ERROR, "ManifestValueError"},
    {SANA_MANIFEST_DUPLICATE_ERROR, "ManifestDuplicateError"},
    {SANA_MANIFEST_LIMIT_ERROR, "ManifestLimitError"},
    {SANA_MANIFEST_PATH_ERROR, "ManifestPathError"},
    {SANA_MANIFEST_REFERENCE_ERROR, "ManifestReferenceError"},
    {SANA_MANIFEST_SHAPE_ERROR, "ManifestShapeError"},
    {SANA_BACKEND_ERROR, "BackendError"},
    {SANA_BINDING_ERROR, "BindingError"},
    {SANA_DEVICE_MEMORY_ERROR, "DeviceMemoryError"},
    {SANA_DEVICE_LOST_ERROR, "DeviceLostError"},
};

// What every handle has: the text of its last error.
struct Handle {
  mutable std::string error;
};

// Runs `work`, which returns a status, and keeps the text of what it throws.
template <class Work>
sana_status guarded(const Handle& handle, const Work& work) noexcept {
  try {
    handle.error.clear();
    return work();
  } catch (const Error& error) {
    try {
      handle.error = error.what();
    } catch (const std::bad_alloc&) {
      return SANA_MEMORY_ERROR;
    }
    return error.status();
  } catch (const std::bad_alloc&) {
    return SANA_MEMORY_ERROR;
  } catch (const std::exception& error) {
    try {
      handle.error = concat("A defect of the library: ", error.what());
    } catch (const std::bad_alloc&) {
      return SANA_MEMORY_ERROR;
    }
    return SANA_INTERNAL_ERROR;
  }
}

[[noreturn]] void refuse(const char* happened, const char* expected) {
  throw Error(SANA_USAGE_ERROR, happened, {.expected = expected});
}

template <class T>
const T& opened(const T* pointer) {
  if (pointer == nullptr) refuse("A handle is NULL, or of what failed to open.", "an open one.");
  return *pointer;
}

// A structure as the library knows it: what the caller's lacks is as in `defaults`.
template <class T>
T known(const T* given, T defaults) {
  if (given == nullptr) return defaults;
  if (given->struct_size < sizeof given->struct_size) {
    refuse("A structure has no struct_size.", "one that its init function has filled.");
  }
  std::memcpy(static_cast<void*>(&defaults), given, std::min(given->struct_size, sizeof defaults));
  return defaults;
}

// Fills what of a structure the caller knows.
template <class T>
void fill(T* wanted, T values) {
  if (wanted == nullptr || wanted->struct_size < sizeof wanted->struct_size) {
    refuse("A structure to fill is NULL or has no struct_size.", "struct_size = sizeof(it).");
  }
  values.struct_size = wanted->struct_size;
  std::memcpy(static_cast<void*>(wanted), &values, std::min(wanted->struct_size, sizeof values));
}

// Gives a structure of the caller's size its defaults; what a later header added to it is zero.
template <class T>
void initialize(T* wanted, std::size_t size, T defaults) {
  if (wanted == nullptr || size < sizeof wanted->struct_size) return;
  defaults.struct_size = size;
  std::memset(static_cast<void*>(wanted), 0, size);
  std::memcpy(static_cast<void*>(wanted), &defaults, std::min(size, sizeof defaults));
}

std::string checked_text(const char* text, const char* what) {
  if (text == nullptr) refuse(what, "text.");
  const auto at = invalid_utf8(text);
  if (at != std::string::npos) {
    throw Error(SANA_REQUEST_ERROR, concat(what, " is not valid UTF-8 at byte ", at, "."),
                {.expected = "text in UTF-8."});
  }
  return text;
}

std::optional<std::string> optional_text(const char* text, const char* what) {
  if (text == nullptr) return std::nullopt;
  return checked_text(text, what);
}

std::optional<std::int64_t> positive(std::int32_t value) {
  return value == 0 ? std::nullopt : std::optional<std::int64_t>(value);
}

sana_session_options default_options() {
  sana_session_options options{};
  options.struct_size = sizeof options;
  return options;
}

sana_clip_params default_params() {
  sana_clip_params params{};
  params.struct_size = sizeof params;
  params.guidance_scale = -1;
  params.motion_score = SANA_MOTION_DEFAULT;
  return params;
}

std::optional<Solver> solver_of(sana_solver solver) {
  switch (solver) {
    case SANA_SOLVER_DEFAULT: return std::nullopt;
    case SANA_SOLVER_DPMPP_2M: return Solver::kDpmpp2m;
    case SANA_SOLVER_FLOW_EULER: return Solver::kFlowEuler;
    case SANA_SOLVER_RENOISE: return Solver::kRenoise;
  }
  refuse("The solver is none of sana_solver.", "one of them.");
}

RequestOptions request_options(const sana_clip_params& params) {
  RequestOptions options;
  options.prompt = optional_text(params.prompt, "The prompt");
  options.negative_prompt = optional_text(params.negative_prompt, "The negative prompt");
  options.height = positive(params.height);
  options.width = positive(params.width);
  options.num_frames = positive(params.num_frames);
  options.num_inference_steps = positive(params.num_inference_steps);
  options.fps = positive(params.fps);
  if (!(params.guidance_scale < 0)) options.guidance_scale = params.guidance_scale;
  if (params.flow_shift != 0) options.flow_shift = params.flow_shift;
  options.solver = solver_of(params.solver);
  if (params.motion_score == SANA_MOTION_NONE) {
    options.motion_score.emplace(std::nullopt);
  } else if (params.motion_score != SANA_MOTION_DEFAULT) {
    options.motion_score.emplace(params.motion_score);
  }
  if (params.has_seed) options.seed = params.seed;
  if (params.lowercase) options.lowercase = true;
  if (params.timestep_count > 0) {
    options.timesteps.emplace(params.timesteps, params.timesteps + params.timestep_count);
  }
  return options;
}

// Rows of a picture, without what is between them. Its size is the request's.
std::vector<std::uint8_t> packed_image(const sana_clip_params& params, std::int64_t height,
                                       std::int64_t width) {
  const auto row = static_cast<std::size_t>(width) * 3;
  const auto stride = params.image_stride == 0 ? row : params.image_stride;
  if (stride < row) refuse("image_stride is less than a row.", "at least 3 * width bytes.");
  std::vector<std::uint8_t> image;
  image.reserve(row * static_cast<std::size_t>(height));
  for (std::int64_t y = 0; y < height; ++y) {
    const auto* begin = params.image + static_cast<std::size_t>(y) * stride;
    image.insert(image.end(), begin, begin + row);
  }
  return image;
}

Embeds prompt_embeds(const sana_clip_params& params, const TextSpec& text) {
  if (params.prompt_embeds == nullptr) return nullptr;
  const auto tokens = static_cast<std::size_t>(text.max_tokens);
  const auto batch = params.prompt_mask == nullptr ? 0 : params.prompt_mask_count / tokens;
  if (batch == 0 || params.prompt_mask_count % tokens != 0 ||
      params.prompt_embed_count % batch != 0) {
    refuse("The prompt embeddings and their mask do not fit each other.",
           "[batch][S][Ct] and [batch][S].");
  }
  const auto size = params.prompt_embed_count / batch;
  auto embeds = std::make_shared<std::vector<PromptEmbeds>>();
  for (std::size_t sample = 0; sample < batch; ++sample) {
    const auto* states = params.prompt_embeds + sample * size;
    const auto* mask = params.prompt_mask + sample * tokens;
    embeds->push_back({{states, states + size}, {mask, mask + tokens}});
  }
  return embeds;
}

}  // namespace

struct sana_model : Handle {
  std::shared_ptr<const Bundle> bundle;
  std::vector<std::string> refusals;      // of each variant, by the CPU backend
  std::vector<std::string> gpu_refusals;  // by all of the GPU's
  std::vector<std::string> quantization;  // of each variant
};

struct sana_state : Handle {
  std::shared_ptr<const State> state;
};

struct sana_session : Handle {
  std::shared_ptr<const Bundle> bundle;
  std::shared_ptr<Session> session;
  sana_session_options options = default_options();
  std::string table;
};

struct sana_clip : Handle {
  std::shared_ptr<Session> session;
  sana_session_options options = default_options();
  std::unique_ptr<Pipeline> pipeline;
  std::atomic<bool> canceled = false;
  bool stream = false;
  sana_status ended = SANA_OK;  // the error that ended it
  std::string ended_error;
  Pictures pictures;
};

namespace {

Demand demanded(const sana_clip_params& params, const ModelSpec& model) {
  Demand demand;
  demand.options = request_options(params);
  if (params.seconds != 0) demand.seconds = params.seconds;
  demand.stream = params.stream;
  demand.recommit = params.recommit;
  if (params.resume != nullptr) {
    demand.resume = params.resume->state;
    opened(demand.resume.get());
  }
  for (std::size_t index = 0; index < params.prompt_count; ++index) {
    const auto& [seconds, prompt] = params.prompts[index];
    demand.prompts.push_back({seconds, checked_text(prompt, "A prompt")});
  }
  if (params.noise != nullptr) {
    demand.inputs.noise.assign(params.noise, params.noise + params.noise_count);
  }
  demand.inputs.prompt_embeds = prompt_embeds(params, model.text);
  if (params.image != nullptr) {
    demand.inputs.image = packed_image(params, demand.options.height.value_or(model.sampling.height),
                                       demand.options.width.value_or(model.sampling.width));
  }
  return demand;
}

// Tells the caller, and ends the clip where it was canceled.
void report(sana_clip& clip, sana_stage stage, std::int64_t done, std::int64_t total) {
  const sana_progress progress{sizeof(sana_progress), stage, done, total};
  const auto& options = clip.options;
  if (options.progress != nullptr && !options.progress(options.progress_user, &progress)) {
    clip.canceled = true;
  }
  if (clip.canceled) {
    throw Error(SANA_CANCELED_ERROR,
                concat("The clip was canceled after ", done, " of ", total, "."));
  }
}

sana_frames frames_of(const Pictures& pictures) {
  const auto& shape = pictures.rgb.shape;
  const auto height = static_cast<std::size_t>(shape[2]);
  const auto row = static_cast<std::size_t>(shape[3]) * 3;
  return {sizeof(sana_frames),
          reinterpret_cast<const std::uint8_t*>(pictures.rgb.data.data()),
          static_cast<std::size_t>(shape[1]),
          static_cast<std::int32_t>(shape[2]),
          static_cast<std::int32_t>(shape[3]),
          row,
          row * height,
          pictures.first_frame};
}

// Why no backend of a GPU plays a variant, or "".
std::string gpu_refusal(const Variant& variant) {
  std::string all;
  for (const auto& candidate : candidates()) {
    if (!candidate.on_gpu) continue;
    const auto reason = candidate.refusal(variant);
    if (!reason) return "";
    all += concat(all.empty() ? "" : "; ", candidate.name, ": ", *reason);
  }
  return all;
}

// The next frames of a clip, or the error that ended it.
sana_status advance(sana_clip& clip) {
  if (clip.ended != SANA_OK) throw Error(clip.ended, clip.ended_error);
  opened(clip.pipeline.get());
  try {
    auto next = clip.pipeline->next();
    if (!next) return SANA_DONE;
    clip.pictures = std::move(*next);
    return SANA_OK;
  } catch (const Error& error) {
    clip.ended = error.status();
    clip.ended_error = error.what();
    throw;
  }
}

}  // namespace

extern "C" {

int32_t sana_abi_version(void) { return SANA_ABI_VERSION; }

const char* sana_version(void) { return SANA_RT_VERSION; }

const char* sana_status_name(sana_status status) {
  for (const auto& each : kStatusNames) {
    if (each.status == status) return each.name;
  }
  return "InternalError";
}

size_t sana_device_count(void) { return candidates().size(); }

sana_status sana_device_describe(size_t index, sana_device_info* info) {
  thread_local std::string reason;
  return guarded(Handle{}, [&] {
    if (index >= candidates().size()) refuse("There is no such device.", "an index below the count.");
    const auto& candidate = candidates()[index];
    const auto missing = candidate.missing();
    reason = missing.value_or("");
    fill(info, sana_device_info{0, candidate.name, !missing, reason.c_str()});
    return SANA_OK;
  });
}

sana_status sana_model_open(const char* folder, sana_model** model) {
  if (model == nullptr) return SANA_USAGE_ERROR;
  *model = new (std::nothrow) sana_model;
  if (*model == nullptr) return SANA_MEMORY_ERROR;
  return guarded(**model, [&] {
    if (folder == nullptr) refuse("The folder is NULL.", "the path of a bundle.");
    auto bundle = std::make_shared<const Bundle>(Bundle::open(folder));
    for (const auto& [name, variant] : bundle->manifest.variants) {
      (*model)->refusals.push_back(candidates().back().refusal(variant).value_or(""));
      (*model)->gpu_refusals.push_back(gpu_refusal(variant));
      (*model)->quantization.push_back(variant.quantization ? variant.quantization->recipe : "");
    }
    (*model)->bundle = std::move(bundle);
    return SANA_OK;
  });
}

void sana_model_free(sana_model* model) { delete model; }

const char* sana_model_error(const sana_model* model) {
  return model == nullptr ? "" : model->error.c_str();
}

sana_status sana_model_describe(const sana_model* model, sana_model_info* info) {
  if (model == nullptr) return SANA_USAGE_ERROR;
  return guarded(Handle{}, [&] {
    const auto& spec = opened(model->bundle.get()).manifest.model;
    const auto size = [](std::int64_t value) { return static_cast<std::int32_t>(value); };
    const auto multiples = spec.size_multiples();
    sana_model_info values{};
    values.name = spec.name.c_str();
    values.height = size(spec.sampling.height);
    values.width = size(spec.sampling.width);
    values.num_frames = size(spec.sampling.num_frames);
    values.fps = size(spec.sampling.fps);
    values.height_multiple = size(multiples[0]);
    values.width_multiple = size(multiples[1]);
    values.temporal_stride = size(spec.vae.temporal_stride);
    values.longest_clip = size(longest_clip(spec));
    values.causal = spec.transformer.causal;
    values.variant_count = model->bundle->manifest.variants.size();
    fill(info, values);
    return SANA_OK;
  });
}

sana_status sana_model_variant(const sana_model* model, size_t index, sana_variant_info* info) {
  if (model == nullptr) return SANA_USAGE_ERROR;
  return guarded(Handle{}, [&] {
    const auto& variants = opened(model->bundle.get()).manifest.variants;
    if (index >= variants.size()) refuse("There is no such variant.", "an index below the count.");
    const auto& [name, variant] = variants[index];
    sana_variant_info values{};
    values.name = name.c_str();
    values.dtype = dtype_name(variant.dtype);
    values.quantization = variant.quantization ? model->quantization[index].c_str() : nullptr;
    values.playable = model->refusals[index].empty();
    values.refusal = model->refusals[index].c_str();
    values.playable_on_gpu = model->gpu_refusals[index].empty();
    values.gpu_refusal = model->gpu_refusals[index].c_str();
    fill(info, values);
    return SANA_OK;
  });
}

void sana_session_options_init(sana_session_options* options, size_t struct_size) {
  initialize(options, struct_size, default_options());
}

sana_status sana_session_open(const sana_model* model, const sana_session_options* options,
                              sana_session** session) {
  if (session == nullptr) return SANA_USAGE_ERROR;
  *session = new (std::nothrow) sana_session;
  if (*session == nullptr) return SANA_MEMORY_ERROR;
  return guarded(**session, [&] {
    sana_session& made = **session;
    made.bundle = opened(model).bundle;
    opened(made.bundle.get());
    const auto given = known(options, default_options());
    SessionOptions wanted;
    wanted.variant = given.variant == nullptr ? "" : given.variant;
    wanted.backend = given.backend == nullptr ? "" : given.backend;
    wanted.threads = given.threads;
    wanted.keep_text_encoder = given.keep_text_encoder;
    wanted.check_finite = given.check_finite;
    wanted.timeout = given.timeout;
    wanted.plugin = given.plugin == nullptr ? "" : given.plugin;
    wanted.kernel_cache = given.kernel_cache == nullptr ? "" : given.kernel_cache;
    wanted.log = [log = given.log, user = given.log_user](sana_log_level level,
                                                          const std::string& message) {
      if (log != nullptr) log(user, level, message.c_str());
    };
    made.session = std::make_shared<Session>(made.bundle, std::move(wanted));
    made.options = given;
    return SANA_OK;
  });
}

void sana_session_free(sana_session* session) { delete session; }

const char* sana_session_error(const sana_session* session) {
  return session == nullptr ? "" : session->error.c_str();
}

const char* sana_session_variant(const sana_session* session) {
  return session == nullptr || !session->session ? "" : session->session->variant().c_str();
}

const char* sana_session_backend(const sana_session* session) {
  return session == nullptr || !session->session ? "" : session->session->backend().c_str();
}

sana_status sana_state_load(const char* path, sana_state** state) {
  if (state == nullptr) return SANA_USAGE_ERROR;
  *state = new (std::nothrow) sana_state;
  if (*state == nullptr) return SANA_MEMORY_ERROR;
  return guarded(**state, [&] {
    if (path == nullptr) refuse("The path is NULL.", "the path of a state.");
    (*state)->state = std::make_shared<const State>(State::load(path));
    return SANA_OK;
  });
}

sana_status sana_state_save(sana_state* state, const char* path) {
  if (state == nullptr) return SANA_USAGE_ERROR;
  return guarded(*state, [&] {
    if (path == nullptr) refuse("The path is NULL.", "where to write the state.");
    opened(state->state.get()).save(path);
    return SANA_OK;
  });
}

void sana_state_free(sana_state* state) { delete state; }

const char* sana_state_error(const sana_state* state) {
  return state == nullptr ? "" : state->error.c_str();
}

void sana_clip_params_init(sana_clip_params* params, size_t struct_size) {
  initialize(params, struct_size, default_params());
}

sana_status sana_session_plan(sana_session* session, const sana_clip_params* params,
                              sana_memory* memory) {
  if (session == nullptr) return SANA_USAGE_ERROR;
  return guarded(*session, [&] {
    opened(session->session.get());
    const auto demand = demanded(known(params, default_params()), session->bundle->manifest.model);
    const auto plan = session->session->plan(demand);
    session->table = plan.table();
    fill(memory, sana_memory{0, plan.weight_bytes(), plan.buffer_bytes(), plan.total_bytes(),
                             session->table.c_str()});
    return SANA_OK;
  });
}

sana_status sana_frames_copy(const sana_frames* frames, size_t index, uint8_t* rgb, size_t stride) {
  if (frames == nullptr || rgb == nullptr || index >= frames->count) return SANA_USAGE_ERROR;
  const auto row = static_cast<std::size_t>(frames->width) * 3;
  if (stride < row) return SANA_USAGE_ERROR;
  const auto* from = frames->rgb + index * frames->frame_stride;
  for (std::int32_t y = 0; y < frames->height; ++y) {
    const auto line = static_cast<std::size_t>(y);
    std::memcpy(rgb + line * stride, from + line * frames->stride, row);
  }
  return SANA_OK;
}

sana_status sana_clip_start(sana_session* session, const sana_clip_params* params,
                            sana_clip** clip) {
  if (clip == nullptr) return SANA_USAGE_ERROR;
  *clip = new (std::nothrow) sana_clip;
  if (*clip == nullptr) return SANA_MEMORY_ERROR;
  return guarded(**clip, [&] {
    sana_clip& made = **clip;
    made.session = opened(session).session;
    opened(made.session.get());
    made.options = session->options;
    const auto demand = demanded(known(params, default_params()), session->bundle->manifest.model);
    made.stream = demand.stream;
    made.pipeline = made.session->start(
        demand, [&made](sana_stage stage, std::int64_t done, std::int64_t total) {
          report(made, stage, done, total);
        });
    return SANA_OK;
  });
}

sana_status sana_clip_next(sana_clip* clip, sana_frames* frames) {
  if (clip == nullptr) return SANA_USAGE_ERROR;
  return guarded(*clip, [&] {
    const auto status = advance(*clip);
    if (status == SANA_OK) fill(frames, frames_of(clip->pictures));
    return status;
  });
}

sana_status sana_clip_play(sana_clip* clip, sana_frames_callback callback, void* user) {
  if (clip == nullptr || callback == nullptr) return SANA_USAGE_ERROR;
  return guarded(*clip, [&] {
    while (advance(*clip) == SANA_OK) {
      const auto frames = frames_of(clip->pictures);
      if (!callback(user, &frames)) clip->canceled = true;
    }
    return SANA_OK;
  });
}

void sana_clip_cancel(sana_clip* clip) {
  if (clip != nullptr) clip->canceled = true;
}

sana_status sana_clip_state(sana_clip* clip, sana_state** state) {
  if (clip == nullptr || state == nullptr) return SANA_USAGE_ERROR;
  *state = new (std::nothrow) sana_state;
  if (*state == nullptr) return SANA_MEMORY_ERROR;
  return guarded(**state, [&] {
    opened(clip->pipeline.get());
    if (!clip->stream) refuse("The clip is no stream.", "a clip that was started with stream set.");
    (*state)->state =
        std::make_shared<const State>(clip->pipeline->state(clip->session->identity()));
    return SANA_OK;
  });
}

void sana_clip_free(sana_clip* clip) { delete clip; }

const char* sana_clip_error(const sana_clip* clip) {
  return clip == nullptr ? "" : clip->error.c_str();
}

}  // extern "C"
