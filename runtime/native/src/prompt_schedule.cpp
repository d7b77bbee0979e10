#include "prompt_schedule.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"

namespace sana_rt::runtime {
namespace {

void check_inside(const TimedPrompt& prompt, double begin, double end) {
  if (!(prompt.seconds >= 0)) {
    throw Error(SANA_USAGE_ERROR, concat("A prompt begins at ", prompt.seconds, " s."),
                {.expected = "0 or later."});
  }
  if (!(prompt.seconds >= begin && prompt.seconds < end)) {
    throw Error(SANA_REQUEST_ERROR,
                concat("A prompt begins at ", prompt.seconds, " s, but frames are generated from ",
                       begin, " s to ", end, " s."),
                {.expected = "prompts that begin within that time."});
  }
}

}  // namespace

std::vector<ScheduledPrompt> placed(std::int64_t first, std::vector<TimedPrompt> prompts,
                                    const std::vector<Range>& chunks, std::int64_t fps,
                                    const ModelSpec& model) {
  const auto seconds = [&](std::int64_t frame) { return start_seconds(frame, fps, model); };
  const double begin = chunks.empty() ? 0.0 : seconds(chunks.front().start);
  const double end = chunks.empty() ? 0.0 : seconds(chunks.back().stop);
  std::stable_sort(prompts.begin(), prompts.end(), [](const auto& one, const auto& other) {
    return one.seconds < other.seconds;
  });
  std::vector<ScheduledPrompt> found;
  for (const auto& prompt : prompts) {
    check_inside(prompt, begin, end);
    const auto distance = [&](const Range& chunk) {
      return std::abs(seconds(chunk.start) - prompt.seconds);
    };
    const auto nearest = std::min_element(
        chunks.begin(), chunks.end(),
        [&](const Range& one, const Range& other) { return distance(one) < distance(other); });
    if (nearest->start == (found.empty() ? first : found.back().frame)) {
      throw Error(SANA_REQUEST_ERROR,
                  concat("The prompt at ", prompt.seconds,
                         " s would begin on the same chunk as the one before it, at ",
                         seconds(nearest->start), " s."),
                  {.expected = "prompts on chunks of their own."});
    }
    found.push_back({nearest->start, prompt.prompt});
  }
  return found;
}

ScheduledPrompt as_scheduled_prompt(const Json& value, const Path& path) {
  Fields fields(value, path);
  ScheduledPrompt prompt{fields.required("frame", as_natural),
                         fields.required("prompt", as_string)};
  fields.finish();
  return prompt;
}

}  // namespace sana_rt::runtime
