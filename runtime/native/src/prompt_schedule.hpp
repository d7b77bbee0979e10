// Prompts over time: a prompt holds from the chunk at which it begins until the next one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "geometry.hpp"
#include "json.hpp"

namespace sana_rt::runtime {

// A prompt, and the second of the stream at which it shall begin.
struct TimedPrompt {
  double seconds;
  std::string prompt;
};

// A prompt, and the latent frame at which it begins.
struct ScheduledPrompt {
  std::int64_t frame;
  std::string prompt;
};

// Every prompt at the start of the chunk that is nearest to its second, behind `first`, the latent
// frame at which the request's prompt begins. A RequestError for one before it, after the clip, or
// on another's chunk; a UsageError for one before 0 s.
std::vector<ScheduledPrompt> placed(std::int64_t first, std::vector<TimedPrompt> prompts,
                                    const std::vector<Range>& chunks, std::int64_t fps,
                                    const ModelSpec& model);

ScheduledPrompt as_scheduled_prompt(const Json& value, const Path& path);

}  // namespace sana_rt::runtime
