// The inputs and outputs that each graph of a model has; docs/architecture.md says what they mean.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model_spec.hpp"
#include "tensor_spec.hpp"

namespace sana_rt::runtime {

// How the names of the tensors begin that the decoder hands from one call to the next.
constexpr const char* kCachePrefix = "cache_";

// A graph's inputs and outputs.
struct Signature {
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;

  bool operator==(const Signature&) const = default;
};

// Whether a name is that of a transformer block.
bool is_block(const std::string& name);

// Whether this release knows what a graph of this name is for.
bool is_known_graph(const std::string& name);

// How latent frames become frames, call by call; docs/manifest.md says what the fields are.
struct DecodeWindow {
  std::int64_t latent_frames, frames, first_latent_frames, first_frames, lookahead, caches;
  std::int64_t lookback, blend;

  // Which call, from 0, decodes a latent frame.
  std::int64_t call(std::int64_t latent_frame) const;
  // Behind the new latent frames of the call that begins at `start`.
  std::int64_t stop(std::int64_t start) const;
};

// Latent frames that a decoder sees which looks ahead: fewer at the end of a clip.
constexpr const char* kSeen = "seen";

// The signature of a known graph, its weights in `dtype`, its decoder called as in `window`;
// nothing for those that an autoencoder has none of. Of a decoder, memory grows with
// wan_cache_count.
std::optional<Signature> signature_of(const std::string& name, const ModelSpec& model, DType dtype,
                                      const std::optional<DecodeWindow>& window);

// How many caches Wan's decoder has: one for each causal convolution.
std::int64_t wan_cache_count(const VaeSpec& vae);

// What of a model cannot be: fields that follow from others, and do not. Is Error MANIFEST_VALUE.
void check_model(const ModelSpec& model);

// The product, or the largest number where 64 bits do not hold it: no dimension is so large.
std::int64_t times(std::int64_t one, std::int64_t other);

}  // namespace sana_rt::runtime
