// One clip to make, and all that follows from what was asked for.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "prompts.hpp"
#include "request.hpp"
#include "state.hpp"

namespace sana_rt::runtime {

// What a caller may bring along instead of what would be made: what the chunks start from
// [C, T, h, w], what the transformer sees, and the first frame [height, width, 3].
struct Inputs {
  std::vector<float> noise;
  Embeds prompt_embeds;
  std::vector<std::uint8_t> image;

  // A RequestError for a tensor that does not fit the request.
  void check(const Request& request, const ModelSpec& model) const;
};

// `resume` continues a stream. `later` prompts take over from the request's; with `recommit` the
// chunk before a change is remembered under the new prompt.
struct Job {
  const ModelSpec* model = nullptr;
  Request request;
  Inputs inputs;
  std::vector<ScheduledPrompt> later = {};
  bool recommit = false;
  std::shared_ptr<const State> resume = nullptr;

  // Where it begins.
  Position position() const { return resume ? resume->header.position : Position{}; }
  // Of the whole clip, also if its beginning was made before.
  std::int64_t latent_frames() const { return model->latent_frames(request.num_frames); }
  // The latent frames of each chunk.
  std::vector<Range> chunks() const;
  // Latent frames of the longest chunk.
  std::int64_t longest() const;
  // Of the shortest, a chunk that is still to be committed included.
  std::int64_t shortest() const;
  // How often the transformer will run.
  std::int64_t passes() const;
  // The embeddings that need no text encoder, by prompt.
  std::map<std::string, Embeds> known() const;
  // The prompts to encode, each once.
  std::vector<std::string> prompts() const;
  // Latent frames that are given: 1 in image-to-video.
  std::int64_t condition_frames() const { return inputs.image.empty() ? 0 : 1; }
  // The prompt of the chunk that begins at a latent frame.
  const std::string& prompt(std::int64_t frame) const;
  // What a chunk is denoised from.
  std::vector<float> start(Range frames) const;
  // Noise at its address.
  std::vector<float> noise(Range frames, std::int64_t step) const;
};

}  // namespace sana_rt::runtime
