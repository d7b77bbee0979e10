// sana_rt.hpp: the C interface of sana_rt.h for C++20. Header only; errors are exceptions, handles
// free themselves, and a clip is a range of frames:
//
//   sana_rt::Model model("out/bundle");
//   sana_rt::Session session(model);
//   sana_rt::ClipParams params;
//   params.prompt = "a red circle moving right";
//   for (const sana_rt::Frames& frames : session.start(params)) show(frames[0]);
//
// Threads, ownership and the meaning of every field are as sana_rt.h says. Objects can be moved.
#ifndef SANA_RT_HPP
#define SANA_RT_HPP

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sana_rt.h"

namespace sana_rt {

// What a function of the C interface refused; the text says what happened and what to do.
class Error : public std::runtime_error {
 public:
  Error(sana_status status, const char* text) : std::runtime_error(text), status_(status) {}
  sana_status status() const noexcept { return status_; }
  // As Python calls it: "RequestError".
  const char* name() const noexcept { return sana_status_name(status_); }

 private:
  sana_status status_;
};

namespace detail {

template <class T, void (*Free)(T*), const char* (*Text)(const T*)>
class Handle {
 public:
  // The handle that `make` sets; an Error with its text if it fails.
  template <class Make>
  explicit Handle(const Make& make) {
    T* made = nullptr;
    const sana_status status = make(&made);
    pointer_.reset(made);
    check(status);
  }

  T* get() const noexcept { return pointer_.get(); }

  void check(sana_status status) const {
    if (status == SANA_OK || status == SANA_DONE) return;
    const char* text = Text(get());
    throw Error(status, *text == '\0' ? sana_status_name(status) : text);
  }

 private:
  struct Deleter {
    void operator()(T* pointer) const noexcept { Free(pointer); }
  };
  std::unique_ptr<T, Deleter> pointer_;
};

using ModelHandle = Handle<sana_model, sana_model_free, sana_model_error>;
using SessionHandle = Handle<sana_session, sana_session_free, sana_session_error>;
using StateHandle = Handle<sana_state, sana_state_free, sana_state_error>;
using ClipHandle = Handle<sana_clip, sana_clip_free, sana_clip_error>;

template <class T>
T sized() {
  T value{};
  value.struct_size = sizeof value;
  return value;
}

inline const char* c_str(const std::optional<std::string>& text) {
  return text ? text->c_str() : nullptr;
}

}  // namespace detail

// Frames of the library's memory; valid until the clip makes the next ones.
class Frames {
 public:
  Frames() = default;
  explicit Frames(const sana_frames& frames) : frames_(frames) {}

  std::size_t size() const noexcept { return frames_.count; }
  int height() const noexcept { return frames_.height; }
  int width() const noexcept { return frames_.width; }
  // The index in the clip of the first of them.
  std::int64_t first_frame() const noexcept { return frames_.first_frame; }
  // A frame, RGB8 [height][width][3] without gaps.
  std::span<const std::uint8_t> operator[](std::size_t index) const {
    return {frames_.rgb + index * frames_.frame_stride, frames_.frame_stride};
  }
  // Copies a frame, rows `stride` bytes apart.
  void copy(std::size_t index, std::uint8_t* rgb, std::size_t stride) const {
    if (sana_frames_copy(&frames_, index, rgb, stride) != SANA_OK) {
      throw Error(SANA_USAGE_ERROR, "There is no such frame, or the stride is less than a row.");
    }
  }

 private:
  sana_frames frames_{};
};

// A bundle that was opened. Threads may share it.
class Model {
 public:
  explicit Model(const std::filesystem::path& folder)
      : handle_([&](sana_model** made) { return sana_model_open(folder.c_str(), made); }) {}

  sana_model_info info() const {
    auto info = detail::sized<sana_model_info>();
    handle_.check(sana_model_describe(get(), &info));
    return info;
  }

  std::vector<sana_variant_info> variants() const {
    std::vector<sana_variant_info> all(info().variant_count, detail::sized<sana_variant_info>());
    for (std::size_t index = 0; index < all.size(); ++index) {
      handle_.check(sana_model_variant(get(), index, &all[index]));
    }
    return all;
  }

  const sana_model* get() const noexcept { return handle_.get(); }

 private:
  detail::ModelHandle handle_;
};

// A stream at rest.
class State {
 public:
  explicit State(const std::filesystem::path& path)
      : handle_([&](sana_state** made) { return sana_state_load(path.c_str(), made); }) {}
  explicit State(detail::StateHandle handle) : handle_(std::move(handle)) {}

  void save(const std::filesystem::path& path) const {
    handle_.check(sana_state_save(get(), path.c_str()));
  }

  sana_state* get() const noexcept { return handle_.get(); }

 private:
  detail::StateHandle handle_;
};

struct TimedPrompt {
  double seconds;
  std::string prompt;
};

// What to make. What is left out is the model's, or, with `resume`, as the stream was made.
struct ClipParams {
  std::optional<std::string> prompt, negative_prompt;
  std::optional<int> height, width, num_frames, num_inference_steps, fps;
  std::optional<double> seconds, guidance_scale, flow_shift;
  sana_solver solver = SANA_SOLVER_DEFAULT;
  int motion_score = SANA_MOTION_DEFAULT;
  std::optional<std::uint64_t> seed;
  bool lowercase = false;
  std::vector<double> timesteps;
  std::span<const std::uint8_t> image;  // RGB8 [height][width][3] without gaps
  std::span<const float> noise, prompt_embeds;
  std::span<const std::int64_t> prompt_mask;
  bool stream = false;
  std::vector<TimedPrompt> prompts;
  bool recommit = false;
  const State* resume = nullptr;
};

namespace detail {

// The C structure of ClipParams, and the list that it points to.
class CParams {
 public:
  explicit CParams(const ClipParams& from) {
    sana_clip_params_init(&c, sizeof c);
    c.prompt = c_str(from.prompt);
    c.negative_prompt = c_str(from.negative_prompt);
    c.height = from.height.value_or(0);
    c.width = from.width.value_or(0);
    c.num_frames = from.num_frames.value_or(0);
    c.seconds = from.seconds.value_or(0);
    c.num_inference_steps = from.num_inference_steps.value_or(0);
    c.guidance_scale = from.guidance_scale.value_or(c.guidance_scale);
    c.solver = from.solver;
    c.flow_shift = from.flow_shift.value_or(0);
    c.fps = from.fps.value_or(0);
    c.motion_score = from.motion_score;
    c.seed = from.seed.value_or(0);
    c.has_seed = from.seed.has_value();
    c.lowercase = from.lowercase;
    c.timesteps = from.timesteps.data();
    c.timestep_count = from.timesteps.size();
    c.image = from.image.data();
    c.noise = from.noise.data();
    c.noise_count = from.noise.size();
    c.prompt_embeds = from.prompt_embeds.data();
    c.prompt_embed_count = from.prompt_embeds.size();
    c.prompt_mask = from.prompt_mask.data();
    c.prompt_mask_count = from.prompt_mask.size();
    c.stream = from.stream;
    for (const auto& [seconds, prompt] : from.prompts) prompts_.push_back({seconds, prompt.c_str()});
    c.prompts = prompts_.data();
    c.prompt_count = prompts_.size();
    c.recommit = from.recommit;
    c.resume = from.resume == nullptr ? nullptr : from.resume->get();
  }
  CParams(const CParams&) = delete;
  CParams& operator=(const CParams&) = delete;

  sana_clip_params c;

 private:
  std::vector<sana_timed_prompt> prompts_;
};

}  // namespace detail

// A clip that is being made: an input range of frames, to be gone through once.
class Clip {
 public:
  explicit Clip(detail::ClipHandle handle) : handle_(std::move(handle)) {}

  // The next frames, or nothing after the last.
  std::optional<Frames> next() {
    auto frames = detail::sized<sana_frames>();
    const sana_status status = sana_clip_next(get(), &frames);
    handle_.check(status);
    return status == SANA_DONE ? std::nullopt : std::optional<Frames>(Frames(frames));
  }

  // Ends it with SANA_CANCELED_ERROR at its next step; from any thread.
  void cancel() noexcept { sana_clip_cancel(get()); }

  // What continues the stream after the frames that were taken, also after a cancel.
  State state() {
    return State(detail::StateHandle(
        [&](sana_state** made) { return sana_clip_state(get(), made); }));
  }

  class iterator {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = Frames;
    using difference_type = std::ptrdiff_t;
    using pointer = const Frames*;
    using reference = const Frames&;

    iterator() = default;
    explicit iterator(Clip& clip) : clip_(&clip), frames_(clip.next()) {}

    const Frames& operator*() const { return *frames_; }
    const Frames* operator->() const { return &*frames_; }
    iterator& operator++() {
      frames_ = clip_->next();
      return *this;
    }
    void operator++(int) { ++*this; }
    bool operator==(std::default_sentinel_t) const noexcept { return !frames_; }

   private:
    Clip* clip_ = nullptr;
    std::optional<Frames> frames_;
  };

  iterator begin() { return iterator(*this); }
  std::default_sentinel_t end() const noexcept { return {}; }

  sana_clip* get() const noexcept { return handle_.get(); }

 private:
  detail::ClipHandle handle_;
};

struct SessionOptions {
  std::optional<std::string> variant, backend;
  int threads = 0;
  bool keep_text_encoder = false;
  bool check_finite = false;
  // Called between steps. Returning false cancels the clip; it must not throw.
  std::function<bool(const sana_progress&)> progress;
  std::function<void(sana_log_level, std::string_view)> log;
  double timeout = 0;  // seconds that a GPU may take to answer; 0: the default
  std::optional<std::string> plugin, kernel_cache;
};

// A variant of a model on a device. Plays one clip at a time. Clips keep what they need of it, but
// not its callbacks: it must outlive them if it has any.
class Session {
 public:
  explicit Session(const Model& model, SessionOptions options = {})
      : options_(std::make_unique<SessionOptions>(std::move(options))),
        handle_([&](sana_session** made) {
          const auto c = c_options();
          return sana_session_open(model.get(), &c, made);
        }) {}

  std::string_view variant() const { return sana_session_variant(handle_.get()); }
  std::string_view backend() const { return sana_session_backend(handle_.get()); }

  // The memory that a clip would need; nothing is allocated.
  sana_memory plan(const ClipParams& params) {
    const detail::CParams given(params);
    auto memory = detail::sized<sana_memory>();
    handle_.check(sana_session_plan(handle_.get(), &given.c, &memory));
    return memory;
  }

  // Encodes the prompts and loads the graphs.
  Clip start(const ClipParams& params) {
    const detail::CParams given(params);
    return Clip(detail::ClipHandle([&](sana_clip** made) {
      return sana_clip_start(handle_.get(), &given.c, made);
    }));
  }

 private:
  sana_session_options c_options() const {
    sana_session_options c;
    sana_session_options_init(&c, sizeof c);
    c.variant = detail::c_str(options_->variant);
    c.backend = detail::c_str(options_->backend);
    c.threads = options_->threads;
    c.keep_text_encoder = options_->keep_text_encoder;
    c.check_finite = options_->check_finite;
    c.timeout = options_->timeout;
    c.plugin = detail::c_str(options_->plugin);
    c.kernel_cache = detail::c_str(options_->kernel_cache);
    if (options_->progress) {
      c.progress = [](void* user, const sana_progress* progress) {
        return static_cast<SessionOptions*>(user)->progress(*progress);
      };
      c.progress_user = options_.get();
    }
    if (options_->log) {
      c.log = [](void* user, sana_log_level level, const char* message) {
        static_cast<SessionOptions*>(user)->log(level, message);
      };
      c.log_user = options_.get();
    }
    return c;
  }

  std::unique_ptr<SessionOptions> options_;  // where the callbacks find it, wherever this is moved
  detail::SessionHandle handle_;
};

}  // namespace sana_rt

#endif
