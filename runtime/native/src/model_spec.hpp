// What a checkpoint is: the sizes and constants in the manifest that playing needs.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "json.hpp"

namespace sana_rt::runtime {

enum class Solver { kDpmpp2m, kFlowEuler, kRenoise };

const char* solver_name(Solver solver);
Solver as_solver(const Json& value, const Path& path);

struct TransformerSpec {
  std::int64_t in_channels, out_channels;
  std::array<std::int64_t, 3> patch_size;  // t, h, w
  std::int64_t num_layers, num_heads, head_dim, num_cross_heads, cross_head_dim;
  std::int64_t caption_channels;
  std::int64_t rope_max_positions;
  bool causal;

  // Channels of a token; the largest number where 64 bits do not hold it.
  std::int64_t width() const;
};

struct VaeSpec {
  std::string kind;
  std::int64_t latent_channels, temporal_stride, spatial_stride;
  std::size_t means, deviations;  // how many of each
  // Of the kind "wan".
  std::int64_t base_dim = 96;
  std::vector<std::int64_t> dim_mult = {1, 2, 4, 4};
  std::int64_t num_res_blocks = 2;
  std::vector<bool> temporal_downsample = {false, true, true};
  // Of the kind "ltx2".
  std::int64_t patch_size = 4;
  std::vector<std::int64_t> block_out_channels = {256, 512, 1024, 2048};
  std::vector<std::int64_t> layers_per_block = {4, 6, 6, 2, 2};
  std::vector<std::string> downsample_type = {"spatial", "temporal", "spatiotemporal",
                                              "spatiotemporal"};
  std::vector<std::int64_t> decoder_block_out_channels = {256, 512, 1024};
  std::vector<std::int64_t> decoder_layers_per_block = {5, 5, 5, 5};
  std::vector<std::string> upsample_type = {"spatiotemporal", "spatiotemporal", "spatiotemporal"};
  std::vector<bool> upsample_residual = {true, true, true};
  std::vector<std::int64_t> upsample_factor = {2, 2, 2};
  bool reflects = false;  // rows and columns in those before them, so that there must be two
};

struct TextSpec {
  std::int64_t vocab_size, hidden_size;
  std::int64_t max_tokens;
  std::int64_t bos_token_id;
  std::int64_t pad_token_id;
  std::string instruction;
};

// Defaults of a request.
struct SamplingSpec {
  Solver solver = Solver::kDpmpp2m;
  std::int64_t num_inference_steps = 50;
  double guidance_scale = 6.0;
  double flow_shift = 8.0;
  std::int64_t height = 480;
  std::int64_t width = 832;
  std::int64_t num_frames = 81;
  std::int64_t fps = 16;
  std::optional<std::int64_t> motion_score = 30;
  std::string negative_prompt;
};

// Block-causal sampling (LongSANA).
struct StreamingSpec {
  std::int64_t chunk_frames = 10;
  std::vector<double> timesteps = {1000.0, 960.0, 889.0, 727.0};
  double flow_shift = 7.0;
};

struct ModelSpec {
  std::string name;
  TransformerSpec transformer;
  VaeSpec vae;
  TextSpec text;
  SamplingSpec sampling;
  std::optional<StreamingSpec> streaming;

  // How a block-causal clip is sampled; LongSANA's values if the model does not say.
  StreamingSpec chunking() const { return streaming.value_or(StreamingSpec{}); }
  // Latent frames of a clip; a length that has none is a RequestError.
  std::int64_t latent_frames(std::int64_t num_frames) const;
  // Height and width of sizes in pixels are multiples of these.
  std::array<std::int64_t, 2> size_multiples() const;
  // Latent height and width; a size that has none is a RequestError.
  std::array<std::int64_t, 2> latent_size(std::int64_t height, std::int64_t width) const;
};

ModelSpec as_model_spec(const Json& value, const Path& path);

}  // namespace sana_rt::runtime
