#include "signatures.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "error.hpp"
#include "graph_names.hpp"

namespace sana_rt::runtime {
namespace {

// Frames of the past that a causal convolution of Wan's sees: its kernel has three in time.
constexpr std::int64_t kWanCacheFrames = 2;

using Dimensions = std::vector<Dim>;
using Tensors = std::vector<TensorSpec>;

TensorSpec tensor(std::string name, DType dtype, Dimensions shape) {
  return {std::move(name), dtype, std::move(shape)};
}

TensorSpec f32(std::string name, Dimensions shape) {
  return tensor(std::move(name), DType::kFloat32, std::move(shape));
}

// The outputs that inputs become in the next run.
Tensors next(Tensors tensors) {
  for (auto& one : tensors) one.name += "_out";
  return tensors;
}

Tensors joined(std::initializer_list<Tensors> parts) {
  Tensors all;
  for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

TensorSpec latents(std::string name, std::int64_t channels) {
  return f32(std::move(name), {"batch", channels, "frames", "latent_height", "latent_width"});
}

// Keys and values of the cross attention, and the bias that hides padding.
Tensors text(const ModelSpec& model, DType dtype, const Dimensions& leading) {
  const auto& t = model.transformer;
  auto shape = leading;
  for (const Dim& dim : Dimensions{"batch", t.num_cross_heads, model.text.max_tokens,
                                   t.cross_head_dim}) {
    shape.push_back(dim);
  }
  return {tensor("text_k", dtype, shape), tensor("text_v", dtype, shape),
          tensor("text_bias", dtype,
                 {"batch", std::int64_t{1}, std::int64_t{1}, model.text.max_tokens})};
}

// A head's channels are rotated by the t, h and w position.
Tensors rope_tables(const TransformerSpec& spec) {
  const auto side = 2 * (spec.head_dim / 6);
  const auto table = [](const char* name, const char* dim, std::int64_t channels) {
    return f32(name, {dim, channels / 2, std::int64_t{2}});
  };
  return {table("rope_t", "frames", spec.head_dim - 2 * side), table("rope_h", "rows", side),
          table("rope_w", "columns", side)};
}

TensorSpec modulation(const TransformerSpec& spec, DType dtype) {
  return tensor("modulation", dtype, {"batch", "frames", std::int64_t{6}, spec.width()});
}

TensorSpec embedding(const TransformerSpec& spec, DType dtype) {
  return tensor("embedding", dtype, {"batch", "frames", spec.width()});
}

TensorSpec tokens(const TransformerSpec& spec, DType dtype) {
  return tensor("tokens", dtype, {"batch", "frames", "rows", "columns", spec.width()});
}

Signature block(const ModelSpec& model, DType dtype) {
  const auto& t = model.transformer;
  const Tensors state{f32("state_s", {"batch", t.num_heads, t.head_dim, t.head_dim}),
                      f32("state_k", {"batch", t.num_heads, t.head_dim}),
                      tensor("state_z", dtype, {"batch", "rows", "columns", t.width()})};
  const Tensors hidden{tokens(t, dtype)};
  return {joined({hidden, {modulation(t, dtype)}, text(model, dtype, {}), rope_tables(t), state}),
          next(joined({hidden, state}))};
}

Signature transformer_graph(const std::string& name, const ModelSpec& model, DType dtype) {
  const auto& t = model.transformer;
  const auto length = model.text.max_tokens;
  if (name == kTextEncoder) {
    return {{tensor("input_ids", DType::kInt64, {"batch", "length"}),
             tensor("attention_mask", DType::kInt64, {"batch", "length"})},
            {f32("hidden_states", {"batch", "length", model.text.hidden_size})}};
  }
  if (name == kPrompt) {
    return {{f32("hidden_states", {"batch", length, t.caption_channels}),
             tensor("attention_mask", DType::kInt64, {"batch", length})},
            text(model, dtype, {t.num_layers})};
  }
  if (name == kRope) {
    return {{tensor("frame_index", DType::kInt64, {"frames"}),
             tensor("row_index", DType::kInt64, {"rows"}),
             tensor("column_index", DType::kInt64, {"columns"})},
            rope_tables(t)};
  }
  if (name == kTimestep) {
    return {{f32("timestep", {"batch", "frames"})}, {modulation(t, dtype), embedding(t, dtype)}};
  }
  if (name == kPatchEmbed) return {{latents("latents", t.in_channels)}, {tokens(t, dtype)}};
  if (name == kFinalLayer) {
    return {{tokens(t, dtype), embedding(t, dtype)}, {latents("velocity", t.out_channels)}};
  }
  Signature solver;
  for (const auto* each :
       {"latents", "velocity_negative", "velocity_positive", "previous_sample", "noise"}) {
    solver.inputs.push_back(latents(each, t.in_channels));
  }
  solver.inputs.push_back(f32("coefficients", {"frames", std::int64_t{6}}));
  for (const auto* each : {"latents_out", "sample"}) {
    solver.outputs.push_back(latents(each, t.in_channels));
  }
  return solver;
}

// A dimension of a feature map, `level` halvings above the latents.
Dim scaled(const std::string& axis, std::int64_t level, const VaeSpec& vae) {
  if (std::int64_t{1} << level == vae.spatial_stride) return axis;
  return level == 0 ? "latent_" + axis
                    : "latent_" + axis + "_x" + std::to_string(std::int64_t{1} << level);
}

// The last frames that each causal convolution saw, in the order of the computation: from the
// latents to the widest level, two residual blocks, then level by level residual blocks of two
// convolutions, and one in time where the level doubles the frames. Upsampling halves the channels.
Tensors wan_caches(const VaeSpec& vae, DType dtype) {
  Tensors caches;
  const auto add = [&](std::int64_t channels, std::int64_t level, std::int64_t count = 1) {
    for (std::int64_t i = 0; i < count; ++i) {
      const auto index = std::to_string(caches.size());
      caches.push_back(tensor(kCachePrefix + (index.size() < 2 ? "0" + index : index), dtype,
                              {"batch", kWanCacheFrames, channels, scaled("height", level, vae),
                               scaled("width", level, vae)}));
    }
  };
  std::vector<std::int64_t> widths;
  for (auto mult = vae.dim_mult.rbegin(); mult != vae.dim_mult.rend(); ++mult) {
    widths.push_back(times(vae.base_dim, *mult));
  }
  add(vae.latent_channels, 0);
  add(widths.front(), 0, 4);
  const auto levels = static_cast<std::int64_t>(widths.size());
  for (std::int64_t level = 0; level < levels; ++level) {
    const auto at = static_cast<std::size_t>(level);
    add(level == 0 ? widths[0] : widths[at - 1] / 2, level);
    add(widths[at], level, 2 * vae.num_res_blocks + 1);
    const bool doubles =
        level + 1 < levels && vae.temporal_downsample[vae.temporal_downsample.size() - 1 - at];
    if (doubles) add(widths[at], level);
  }
  add(widths.back(), levels - 1);
  return caches;
}

bool is_autoencoder(const std::string& name) {
  return name == kDecoderFirst || name == kDecoder || name == kDecoderWhole || name == kEncoder;
}

Tensors vae_latents(const VaeSpec& vae, Dim frames) {
  return {f32("latents", {"batch", vae.latent_channels, std::move(frames), "latent_height",
                          "latent_width"})};
}

Tensors vae_frames(Dim count) {
  return {tensor("frames", DType::kUInt8,
                 {"batch", std::move(count), "height", "width", std::int64_t{3}})};
}

Signature encoder_graph(const VaeSpec& vae) {
  return {{tensor("image", DType::kUInt8, {"batch", "height", "width", std::int64_t{3}})},
          vae_latents(vae, std::int64_t{1})};
}

std::optional<Signature> wan_graph(const std::string& name, const VaeSpec& vae, DType dtype) {
  if (name == kEncoder) return encoder_graph(vae);
  if (name == kDecoderWhole) return std::nullopt;
  const auto latent = vae_latents(vae, std::int64_t{1});
  const auto caches = wan_caches(vae, dtype);
  if (name == kDecoderFirst) return Signature{latent, joined({vae_frames(std::int64_t{1}), next(caches)})};
  return Signature{joined({latent, caches}), joined({vae_frames(vae.temporal_stride), next(caches)})};
}

// A clip at once, or in windows whose frames fade from one to the next.
std::optional<Signature> ltx2_graph(const std::string& name, const VaeSpec& vae, DType dtype,
                                    const std::optional<DecodeWindow>& window) {
  if (name == kEncoder) return encoder_graph(vae);
  if (name == kDecoderWhole) return Signature{vae_latents(vae, "frames"), vae_frames("video_frames")};
  if (!window) return std::nullopt;
  Tensors caches;
  if (window->blend > 0) {
    caches.push_back(tensor(concat(kCachePrefix, "00"), dtype,
                            {"batch", window->blend, std::int64_t{3}, "height", "width"}));
  }
  if (name == kDecoderFirst) {
    return Signature{vae_latents(vae, window->first_latent_frames + window->lookahead),
                     joined({vae_frames(window->first_frames), next(caches)})};
  }
  const Dim seen = window->lookahead > 0 ? Dim{kSeen}
                                         : Dim{window->lookback + window->latent_frames};
  return Signature{joined({vae_latents(vae, seen), caches}),
                   joined({vae_frames(window->frames), next(caches)})};
}

void check_field(bool fits, const char* field, const std::string& expected) {
  if (fits) return;
  throw Error(SANA_MANIFEST_VALUE_ERROR, concat("model.", field, " does not fit the other fields."),
              {.expected = expected + ".", .remedy = "export the checkpoint again."});
}

// Whether `divisor` divides one · other, which 64 bits need not hold; `other` is small.
bool product_divides(std::int64_t one, std::int64_t other, std::int64_t divisor) {
  return one % divisor * other % divisor == 0;
}

// Whether a number is 2 to the power of `exponent`.
bool is_power(std::int64_t number, std::size_t exponent) {
  return exponent < 62 && number == std::int64_t{1} << exponent;
}

void check_wan(const VaeSpec& vae) {
  const auto& doubling = vae.temporal_downsample;
  const auto doublings =
      static_cast<std::size_t>(std::count(doubling.begin(), doubling.end(), true));
  check_field(vae.dim_mult.size() == doubling.size() + 1, "vae.dim_mult",
              "one value more than vae.temporal_downsample has");
  check_field(is_power(vae.temporal_stride, doublings), "vae.temporal_stride",
              "as vae.temporal_downsample says");
  check_field(is_power(vae.spatial_stride, doubling.size()), "vae.spatial_stride",
              "as vae.temporal_downsample says");
}

// What scalings come to in time and space; no larger than 64 bits have to hold.
std::array<std::int64_t, 2> strides(const VaeSpec& vae, const std::vector<std::string>& scalings) {
  constexpr std::int64_t kPowers = 54;
  const auto unlike = [&](const char* other) {
    const auto found = std::count_if(scalings.begin(), scalings.end(),
                                     [&](const std::string& each) { return each != other; });
    return std::int64_t{1} << std::min<std::int64_t>(found, kPowers);
  };
  return {unlike("spatial"), times(vae.patch_size, unlike("temporal"))};
}

std::int64_t pixels_of(const std::string& scaling) {
  return scaling == "spatial" ? 4 : scaling == "temporal" ? 2 : 8;
}

// What folds and unfolds must divide, and what is added must have the same channels.
void check_ltx2_stages(const VaeSpec& vae) {
  auto before = vae.latent_channels;
  for (std::size_t i = 0; i < vae.downsample_type.size(); ++i) {
    const auto width = vae.block_out_channels[i];
    const auto pixels = pixels_of(vae.downsample_type[i]);
    check_field(width % pixels == 0 && product_divides(before, pixels, width),
                "vae.block_out_channels", "multiples of what a stage folds");
    before = width;
  }
  const auto stages = vae.upsample_type.size();
  if (stages == 0) return;
  before = vae.decoder_block_out_channels.back();
  for (std::size_t i = 0; i < stages; ++i) {
    const auto back = stages - 1 - i;
    const auto width = vae.decoder_block_out_channels[back];
    const auto factor = vae.upsample_factor[back];
    const auto pixels = pixels_of(vae.upsample_type[i]);
    check_field(width % factor == 0 && (factor == 1 || before == width),
                "vae.decoder_block_out_channels", "the width before, a multiple of its factor");
    check_field(!vae.upsample_residual[back] || (pixels % factor == 0 && width % pixels == 0),
                "vae.upsample_factor", "a divisor of what a stage unfolds");
    before = width / factor;
  }
}

void check_ltx2(const VaeSpec& vae) {
  const auto down = vae.downsample_type.size();
  const auto up = vae.upsample_type.size();
  check_field(vae.block_out_channels.size() == down && vae.layers_per_block.size() == down + 1,
              "vae.block_out_channels or layers_per_block", "as vae.downsample_type says");
  check_field(vae.decoder_block_out_channels.size() == up && vae.upsample_residual.size() == up &&
                  vae.upsample_factor.size() == up && vae.decoder_layers_per_block.size() == up + 1,
              "vae.decoder_block_out_channels or a list beside it", "as vae.upsample_type says");
  const std::array wanted{vae.temporal_stride, vae.spatial_stride};
  check_field(strides(vae, vae.downsample_type) == wanted, "vae.downsample_type",
              "scalings that make the strides");
  check_field(strides(vae, vae.upsample_type) == wanted, "vae.upsample_type",
              "scalings that make the strides");
  check_ltx2_stages(vae);
}

}  // namespace

std::int64_t times(std::int64_t one, std::int64_t other) {
  std::int64_t product = 0;
  return __builtin_mul_overflow(one, other, &product) ? std::numeric_limits<std::int64_t>::max()
                                                      : product;
}

bool is_block(const std::string& name) {
  const std::string prefix = "block_";
  return name.size() >= prefix.size() + 2 && name.starts_with(prefix) &&
         name.find_first_not_of("0123456789", prefix.size()) == std::string::npos;
}

bool is_known_graph(const std::string& name) {
  constexpr std::array kTransformer{kTextEncoder, kPrompt,     kRope,  kTimestep,
                                    kPatchEmbed,  kFinalLayer, kSolver};
  return is_block(name) || is_autoencoder(name) ||
         std::find(kTransformer.begin(), kTransformer.end(), name) != kTransformer.end();
}

std::optional<Signature> signature_of(const std::string& name, const ModelSpec& model, DType dtype,
                                      const std::optional<DecodeWindow>& window) {
  if (is_block(name)) return block(model, dtype);
  if (!is_autoencoder(name)) return transformer_graph(name, model, dtype);
  if (model.vae.kind == "wan") return wan_graph(name, model.vae, dtype);
  if (model.vae.kind == "ltx2") return ltx2_graph(name, model.vae, dtype, window);
  return std::nullopt;
}

std::int64_t wan_cache_count(const VaeSpec& vae) {
  const auto doubling = std::count(vae.temporal_downsample.begin(), vae.temporal_downsample.end(),
                                   true);
  const auto levels = static_cast<std::int64_t>(vae.dim_mult.size());
  const auto in_levels = times(2 * (vae.num_res_blocks + 1), levels);
  constexpr std::int64_t kEndsAndMiddle = 6;
  return std::min(in_levels, std::int64_t{1} << 60) + kEndsAndMiddle + doubling;
}

void check_model(const ModelSpec& model) {
  const auto& [name, t, vae, text, sampling, streaming] = model;
  check_field(t.patch_size[0] == 1, "transformer.patch_size", "patches of 1 latent frame");
  check_field(t.out_channels == t.in_channels, "transformer.out_channels",
              "transformer.in_channels");
  check_field(vae.latent_channels == t.in_channels, "vae.latent_channels",
              "transformer.in_channels");
  check_field(text.bos_token_id < text.vocab_size, "text.bos_token_id", "below text.vocab_size");
  check_field(text.pad_token_id < text.vocab_size, "text.pad_token_id", "below text.vocab_size");
  for (const auto count : {vae.means, vae.deviations}) {
    check_field(count == 0 || static_cast<std::int64_t>(count) == vae.latent_channels,
                "vae.latents_mean or latents_std", "a value for each channel, or none");
  }
  if (vae.kind == "wan") check_wan(vae);
  if (vae.kind == "ltx2") check_ltx2(vae);
  check_field(t.causal == streaming.has_value(), "streaming",
              "given for a block-causal transformer, and for no other");
  check_field(!streaming || !streaming->timesteps.empty(), "streaming.timesteps",
              "at least one timestep");
  check_field(streaming || sampling.solver != Solver::kRenoise, "sampling.solver",
              "another solver for a model without streaming");
}

}  // namespace sana_rt::runtime
