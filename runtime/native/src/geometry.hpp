// Sizes of clips, chunks and tensors: what follows from a model and a request.
#pragma once

#include <cstdint>
#include <vector>

#include "model_spec.hpp"
#include "tensor_spec.hpp"

namespace sana_rt::runtime {

// Latent frames of a clip, `stop` not included.
struct Range {
  std::int64_t start = 0;
  std::int64_t stop = 0;

  std::int64_t size() const { return stop - start; }
  bool operator==(const Range&) const = default;
};

// Samples of a forward pass: the prompt's and, with guidance, the negative prompt's.
std::int64_t batch_size(double guidance_scale);

// Video frames of a clip: the first latent frame is one, each later one several.
std::int64_t video_frames(const ModelSpec& model, std::int64_t latent_frames);

// Video frames of the shortest clip of at least `seconds`: one, then whole latent frames.
std::int64_t frames_of_seconds(double seconds, std::int64_t fps, const ModelSpec& model);

// When the first picture of a latent frame is shown.
double start_seconds(std::int64_t latent_frame, std::int64_t fps, const ModelSpec& model);

// The named dimensions that follow from a frame's size; a RequestError for an impossible one.
Dims size_dims(const ModelSpec& model, std::int64_t height, std::int64_t width);

// The most video frames that the model has rotary positions for.
std::int64_t longest_clip(const ModelSpec& model);

// A RequestError for a clip beyond the model's rotary positions.
void check_positions(const ModelSpec& model, std::int64_t num_frames, std::int64_t height,
                     std::int64_t width);

// The rotary positions of `count` frames, rows or columns from `first` on; frames' are absolute.
std::vector<std::int64_t> positions(std::int64_t first, std::int64_t count);

// The chunks of a clip from a latent frame on: one for a bidirectional model. A block-causal clip
// is cut into equal chunks, the first with the remainder; less than two chunks is not cut.
std::vector<Range> chunk_ranges(const ModelSpec& model, std::int64_t latent_frames,
                                std::int64_t start);

}  // namespace sana_rt::runtime
