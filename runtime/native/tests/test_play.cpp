// The interface as an application uses it, on bundles that SANA_RT_BUNDLE (bidirectional) and
// SANA_RT_CAUSAL_BUNDLE name.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <thread>

#include "sana_rt.hpp"

namespace {

using Picture = std::vector<std::uint8_t>;

std::string bundle(const char* variable) {
  const char* path = std::getenv(variable);
  REQUIRE_MESSAGE(path != nullptr, variable, " names no bundle");
  return path;
}

sana_rt::SessionOptions one_thread() {
  sana_rt::SessionOptions options;
  options.threads = 1;
  return options;
}

sana_rt::ClipParams short_clip(const char* prompt = "a red circle") {
  sana_rt::ClipParams params;
  params.prompt = prompt;
  params.num_frames = 5;
  params.num_inference_steps = 2;
  params.height = params.width = 32;
  return params;
}

sana_rt::ClipParams short_stream() {
  auto params = short_clip();
  params.num_inference_steps.reset();
  params.num_frames = 33;
  params.stream = true;
  return params;
}

Picture pictures(sana_rt::Clip& clip, int most = 1 << 30) {
  Picture all;
  while (most-- > 0) {
    const auto frames = clip.next();
    if (!frames) break;
    for (std::size_t i = 0; i < frames->size(); ++i) {
      all.insert(all.end(), (*frames)[i].begin(), (*frames)[i].end());
    }
  }
  return all;
}

Picture pictures(sana_rt::Clip&& clip) { return pictures(clip); }

// The error of what `work` does.
template <class Work>
sana_status refusal(const Work& work) {
  try {
    work();
    return SANA_OK;
  } catch (const sana_rt::Error& error) {
    CHECK(std::string(error.what()).size() > 10);
    return error.status();
  }
}

}  // namespace

TEST_CASE("a clip is a range of frames, and the same each time") {
  const sana_rt::Model model(bundle("SANA_RT_BUNDLE"));
  sana_rt::Session session(model, one_thread());
  auto clip = session.start(short_clip());
  std::int64_t count = 0;
  Picture first;
  for (const auto& frames : clip) {
    CHECK(frames.first_frame() == count);
    CHECK(frames.height() == 32);
    count += static_cast<std::int64_t>(frames.size());
    for (std::size_t i = 0; i < frames.size(); ++i) {
      first.insert(first.end(), frames[i].begin(), frames[i].end());
    }
  }
  CHECK(count == 5);
  CHECK(first.size() == 5 * 32 * 32 * 3);
  CHECK(first == pictures(session.start(short_clip())));
  CHECK(first != pictures(session.start(short_clip("a blue square"))));
}

TEST_CASE("frames are copied to rows with a stride") {
  sana_rt::Session session(sana_rt::Model(bundle("SANA_RT_BUNDLE")), one_thread());
  auto clip = session.start(short_clip());
  const auto frames = clip.next();
  REQUIRE(frames.has_value());
  constexpr std::size_t kStride = 100;
  Picture copy(kStride * 32, 7);
  frames->copy(0, copy.data(), kStride);
  CHECK(std::memcmp(copy.data() + kStride, (*frames)[0].data() + 96, 96) == 0);
  CHECK(copy[96] == 7);
  CHECK(refusal([&] { frames->copy(1, copy.data(), kStride); }) == SANA_USAGE_ERROR);
}

TEST_CASE("what cannot be is refused by its name") {
  const sana_rt::Model model(bundle("SANA_RT_BUNDLE"));
  sana_rt::Session session(model, one_thread());
  const auto start = [&](auto change) {
    auto params = short_clip();
    change(params);
    return refusal([&] { session.start(params); });
  };
  CHECK(start([](auto& p) { p.num_frames = 6; }) == SANA_REQUEST_ERROR);
  CHECK(start([](auto& p) { p.height = 33; }) == SANA_REQUEST_ERROR);
  CHECK(start([](auto& p) { p.prompt.reset(); }) == SANA_USAGE_ERROR);
  CHECK(start([](auto& p) { p.prompt = "\xff"; }) == SANA_REQUEST_ERROR);
  CHECK(start([](auto& p) { p.num_inference_steps = 1001; }) == SANA_USAGE_ERROR);
  CHECK(start([](auto& p) { p.guidance_scale = 1e5; }) == SANA_USAGE_ERROR);
  CHECK(start([](auto& p) { p.solver = SANA_SOLVER_RENOISE; }) == SANA_REQUEST_ERROR);
  CHECK(start([](auto& p) { p.stream = true; }) == SANA_REQUEST_ERROR);
  CHECK(start([](auto& p) { p.prompts = {{1.0, "x"}}; }) == SANA_USAGE_ERROR);
  CHECK(start([](auto& p) { p.seconds = 1.0; }) == SANA_USAGE_ERROR);
  const std::vector<float> noise(3);
  CHECK(start([&](auto& p) { p.noise = noise; }) == SANA_REQUEST_ERROR);
  CHECK(refusal([] { sana_rt::Model("/no/such/bundle"); }) == SANA_MANIFEST_MISSING_ERROR);
  const auto open = [&](auto change) {
    auto options = one_thread();
    change(options);
    return refusal([&] { sana_rt::Session(model, options); });
  };
  CHECK(open([](auto& o) { o.threads = -1; }) == SANA_USAGE_ERROR);
  CHECK(open([](auto& o) { o.backend = "abacus"; }) == SANA_USAGE_ERROR);
  CHECK(open([](auto& o) { o.variant = "int2"; }) == SANA_MANIFEST_REFERENCE_ERROR);
}

TEST_CASE("the plan is what is needed, before anything is allocated") {
  sana_rt::Session session(sana_rt::Model(bundle("SANA_RT_BUNDLE")), one_thread());
  const auto plan = session.plan(short_clip());
  CHECK(plan.total_bytes == plan.weight_bytes + plan.buffer_bytes);
  CHECK(plan.buffer_bytes > 0);
  CHECK(std::string(plan.table).find("total") != std::string::npos);
  auto larger = short_clip();
  larger.num_frames = 9;
  CHECK(session.plan(larger).buffer_bytes > plan.buffer_bytes);
}

TEST_CASE("a clip that another one ended says so") {
  sana_rt::Session session(sana_rt::Model(bundle("SANA_RT_BUNDLE")), one_thread());
  auto first = session.start(short_clip());
  auto second = session.start(short_clip());
  CHECK(refusal([&] { first.next(); }) == SANA_USAGE_ERROR);
  CHECK(pictures(second).size() == 5 * 32 * 32 * 3);
  CHECK_FALSE(second.next().has_value());
}

TEST_CASE("progress is told, and ends the clip where it says so") {
  int calls = 0;
  auto options = one_thread();
  options.progress = [&](const sana_progress& progress) {
    ++calls;
    CHECK(progress.done <= progress.total);
    return progress.stage != SANA_STAGE_DENOISE || progress.done < 1;
  };
  sana_rt::Session session(sana_rt::Model(bundle("SANA_RT_BUNDLE")), options);
  auto clip = session.start(short_clip());
  CHECK(refusal([&] { clip.next(); }) == SANA_CANCELED_ERROR);
  CHECK(refusal([&] { clip.next(); }) == SANA_CANCELED_ERROR);
  CHECK(calls > 10);
}

TEST_CASE("a cancel from another thread ends a clip, a thousand times") {
  constexpr int kSteps = 20;
  std::atomic<bool> canceled = false;
  int last = 0;  // the step that the cancel may come in at the latest
  auto options = one_thread();
  options.progress = [&](const sana_progress& progress) {
    if (progress.stage == SANA_STAGE_DENOISE && progress.done == last) canceled.wait(false);
    return true;
  };
  sana_rt::Session session(sana_rt::Model(bundle("SANA_RT_BUNDLE")), std::move(options));
  auto params = short_clip();
  params.num_frames = 1;
  params.num_inference_steps = kSteps;
  const int times = std::getenv("SANA_RT_CANCELS") != nullptr
                        ? std::atoi(std::getenv("SANA_RT_CANCELS")) : 20;
  for (int i = 0; i < times; ++i) {
    canceled = false;
    last = 1 + i % (kSteps - 1);
    auto clip = session.start(params);
    std::thread other([&] {
      clip.cancel();
      canceled = true;
      canceled.notify_all();
    });
    CHECK(refusal([&] { pictures(clip); }) == SANA_CANCELED_ERROR);
    other.join();
  }
}

TEST_CASE("two sessions play in two threads") {
  const sana_rt::Model model(bundle("SANA_RT_BUNDLE"));
  const auto play = [&](Picture& all) {
    sana_rt::Session session(model, one_thread());
    all = pictures(session.start(short_clip()));
  };
  std::array<Picture, 2> made;
  std::thread other([&] { play(made[0]); });
  play(made[1]);
  other.join();
  CHECK(made[0].size() == 5 * 32 * 32 * 3);
  CHECK(made[0] == made[1]);
}

TEST_CASE("a stream continues anywhere, in another session, after a cancel, from a file") {
  const sana_rt::Model model(bundle("SANA_RT_CAUSAL_BUNDLE"));
  sana_rt::Session session(model, one_thread());
  auto params = short_stream();
  params.prompts = {{16.0 / model.info().fps, "a blue square"}};  // in the middle
  const auto whole = pictures(session.start(params));
  const auto path = std::filesystem::temp_directory_path() / "sana_rt_play.state";
  for (const int taken : {1, 3, 5, 8}) {
    auto begun = session.start(params);
    auto all = pictures(begun, taken);
    begun.cancel();
    begun.state().save(path);
    const sana_rt::State state(path);
    sana_rt::ClipParams more;
    more.stream = true;
    more.resume = &state;
    sana_rt::Session other(model, one_thread());
    const auto rest = pictures(other.start(more));
    all.insert(all.end(), rest.begin(), rest.end());
    CHECK(all == whole);
  }
  std::filesystem::remove(path);
}

TEST_CASE("handles are freed in any order, and failed ones refuse everything") {
  sana_model* model = nullptr;
  CHECK(sana_model_open("/no/such/bundle", &model) == SANA_MANIFEST_MISSING_ERROR);
  sana_session* session = nullptr;
  CHECK(sana_session_open(model, nullptr, &session) == SANA_USAGE_ERROR);
  sana_clip* clip = nullptr;
  CHECK(sana_clip_start(session, nullptr, &clip) == SANA_USAGE_ERROR);
  sana_frames frames{};
  frames.struct_size = sizeof frames;
  CHECK(sana_clip_next(clip, &frames) == SANA_USAGE_ERROR);
  CHECK(std::string(sana_clip_error(clip)).size() > 10);
  sana_model_free(model);
  sana_session_free(session);
  sana_clip_free(clip);
  sana_clip_free(nullptr);
}

TEST_CASE("a caller of an older header gets the fields that it knows") {
  const sana_rt::Model model(bundle("SANA_RT_BUNDLE"));
  sana_model_info info{};
  info.struct_size = offsetof(sana_model_info, num_frames);
  CHECK(sana_model_describe(model.get(), &info) == SANA_OK);
  CHECK(info.width > 0);
  CHECK(info.num_frames == 0);
  CHECK(info.struct_size == offsetof(sana_model_info, num_frames));
  info.struct_size = 0;
  CHECK(sana_model_describe(model.get(), &info) == SANA_USAGE_ERROR);
}

TEST_CASE("defaults are written no further than a caller of an older header knows") {
  const auto check = [](auto init, auto older, std::size_t size) {
    std::vector<unsigned char> bytes(sizeof older + 8, 0xAB);
    init(reinterpret_cast<decltype(older)*>(bytes.data()), size);
    std::memcpy(&older, bytes.data(), sizeof older);
    CHECK(older.struct_size == size);
    CHECK(std::all_of(bytes.begin() + static_cast<std::ptrdiff_t>(size), bytes.end(),
                      [](unsigned char byte) { return byte == 0xAB; }));
    return older;
  };
  const auto options = check(sana_session_options_init, sana_session_options{},
                             offsetof(sana_session_options, timeout));
  CHECK(options.log_user == nullptr);
  const auto params =
      check(sana_clip_params_init, sana_clip_params{}, offsetof(sana_clip_params, prompts));
  CHECK(params.motion_score == SANA_MOTION_DEFAULT);
  CHECK(check(sana_clip_params_init, sana_clip_params{}, sizeof params + 8).recommit == false);
}
