#include "model_spec.hpp"

#include <algorithm>

#include "error.hpp"
#include "signatures.hpp"

namespace sana_rt::runtime {
namespace {

constexpr std::array<const char*, 3> kSolvers{"dpmpp_2m", "flow_euler", "renoise"};

std::vector<double> as_numbers(const Json& value, const Path& path) {
  return as_list(value, path, as_number);
}

std::vector<double> as_positives(const Json& value, const Path& path) {
  return as_list(value, path, as_positive);
}

std::vector<double> as_non_negatives(const Json& value, const Path& path) {
  return as_list(value, path, as_non_negative);
}

std::vector<std::int64_t> as_counts(const Json& value, const Path& path) {
  return as_list(value, path, as_count);
}

std::vector<bool> as_bools(const Json& value, const Path& path) {
  return as_list(value, path, as_bool);
}

std::array<std::int64_t, 3> as_patch_size(const Json& value, const Path& path) {
  const auto sizes = as_counts(value, path);
  if (sizes.size() != 3) throw DocumentError(Rule::kValue, path + " has not three sizes");
  return {sizes[0], sizes[1], sizes[2]};
}

TransformerSpec as_transformer(const Json& value, const Path& path) {
  Fields fields(value, path);
  TransformerSpec spec{};
  spec.in_channels = fields.required("in_channels", as_count);
  spec.out_channels = fields.required("out_channels", as_count);
  spec.patch_size = fields.required("patch_size", as_patch_size);
  spec.num_layers = fields.required("num_layers", as_count);
  spec.num_heads = fields.required("num_heads", as_count);
  spec.head_dim = fields.required("head_dim", as_count);
  spec.num_cross_heads = fields.required("num_cross_heads", as_count);
  spec.cross_head_dim = fields.required("cross_head_dim", as_count);
  spec.caption_channels = fields.required("caption_channels", as_count);
  fields.required("ffn_dim", as_count);
  spec.rope_max_positions = fields.defaulted<std::int64_t>("rope_max_positions", 1024, as_count);
  for (const auto* name : {"norm_eps", "qk_norm_eps", "caption_norm_eps"}) {
    fields.defaulted(name, 1.0, as_positive);
  }
  fields.defaulted("attention_eps", 1.0, as_non_negative);
  spec.causal = fields.defaulted("causal", false, as_bool);
  fields.finish();
  return spec;
}

std::vector<std::string> as_scalings(const Json& value, const Path& path) {
  return as_list(value, path, [](const Json& each, const Path& where) {
    return one_of(each, where, {"spatial", "temporal", "spatiotemporal"});
  });
}

std::string as_padding(const Json& value, const Path& path) {
  return one_of(value, path, {"zeros", "reflect"});
}

void read_ltx2(Fields& fields, VaeSpec& spec) {
  const auto counts = [&](const char* name, std::vector<std::int64_t>& list) {
    list = fields.defaulted(name, list, as_counts);
  };
  spec.patch_size = fields.defaulted("patch_size", spec.patch_size, as_count);
  counts("block_out_channels", spec.block_out_channels);
  counts("layers_per_block", spec.layers_per_block);
  spec.downsample_type = fields.defaulted("downsample_type", spec.downsample_type, as_scalings);
  counts("decoder_block_out_channels", spec.decoder_block_out_channels);
  counts("decoder_layers_per_block", spec.decoder_layers_per_block);
  spec.upsample_type = fields.defaulted("upsample_type", spec.upsample_type, as_scalings);
  spec.upsample_residual = fields.defaulted("upsample_residual", spec.upsample_residual, as_bools);
  counts("upsample_factor", spec.upsample_factor);
  fields.defaulted("encoder_causal", true, as_bool);
  fields.defaulted("decoder_causal", false, as_bool);
  const auto encoder = fields.defaulted("encoder_padding", std::string{"zeros"}, as_padding);
  const auto decoder = fields.defaulted("decoder_padding", std::string{"reflect"}, as_padding);
  spec.reflects = encoder == "reflect" || decoder == "reflect";
  fields.defaulted("norm_eps", 1.0, as_positive);
}

VaeSpec as_vae(const Json& value, const Path& path) {
  Fields fields(value, path);
  VaeSpec spec{};
  spec.kind = fields.required("kind", [](const Json& kind, const Path& where) {
    return one_of(kind, where, {"wan", "ltx2", "dcae"});
  });
  spec.latent_channels = fields.required("latent_channels", as_count);
  spec.temporal_stride = fields.required("temporal_stride", as_count);
  spec.spatial_stride = fields.required("spatial_stride", as_count);
  spec.means = fields.defaulted("latents_mean", std::vector<double>{}, as_numbers).size();
  spec.deviations = fields.defaulted("latents_std", std::vector<double>{}, as_positives).size();
  if (spec.kind == "wan") {
    spec.base_dim = fields.defaulted("base_dim", spec.base_dim, as_count);
    spec.dim_mult = fields.defaulted("dim_mult", spec.dim_mult, as_counts);
    spec.num_res_blocks = fields.defaulted("num_res_blocks", spec.num_res_blocks, as_count);
    spec.temporal_downsample =
        fields.defaulted("temporal_downsample", spec.temporal_downsample, as_bools);
  }
  if (spec.kind == "ltx2") read_ltx2(fields, spec);
  fields.finish();
  return spec;
}

TextSpec as_text(const Json& value, const Path& path) {
  Fields fields(value, path);
  TextSpec spec;
  spec.vocab_size = fields.required("vocab_size", as_count);
  spec.hidden_size = fields.required("hidden_size", as_count);
  for (const auto* name : {"intermediate_size", "num_layers", "num_heads",
                           "num_kv_heads", "head_dim"}) {
    fields.required(name, as_count);
  }
  fields.required("query_pre_attn_scalar", as_positive);
  fields.nullable("attn_logit_softcap", as_positive);
  fields.defaulted<std::int64_t>("sliding_window", 4096, as_count);
  fields.defaulted("rope_theta", 1.0, as_positive);
  fields.defaulted("rms_norm_eps", 1.0, as_positive);
  spec.max_tokens = fields.defaulted<std::int64_t>("max_tokens", 300, as_count);
  spec.bos_token_id = fields.defaulted<std::int64_t>("bos_token_id", 2, as_natural);
  spec.pad_token_id = fields.defaulted<std::int64_t>("pad_token_id", 0, as_natural);
  spec.instruction = fields.defaulted("instruction", std::string{}, as_string);
  fields.finish();
  return spec;
}

using MotionScore = std::optional<std::int64_t>;

MotionScore as_motion_score(const Json& value, const Path& path) {
  return value.is_null() ? MotionScore{} : as_integer(value, path);
}

SamplingSpec as_sampling(const Json& value, const Path& path) {
  Fields fields(value, path);
  SamplingSpec spec;
  const auto count = [&](const char* name, std::int64_t& size) {
    size = fields.defaulted(name, size, as_count);
  };
  spec.solver = fields.defaulted("solver", spec.solver, as_solver);
  count("num_inference_steps", spec.num_inference_steps);
  spec.guidance_scale = fields.defaulted("guidance_scale", spec.guidance_scale, as_non_negative);
  spec.flow_shift = fields.defaulted("flow_shift", spec.flow_shift, as_positive);
  count("height", spec.height);
  count("width", spec.width);
  count("num_frames", spec.num_frames);
  count("fps", spec.fps);
  spec.motion_score = fields.defaulted("motion_score", spec.motion_score, as_motion_score);
  spec.negative_prompt = fields.defaulted("negative_prompt", spec.negative_prompt, as_string);
  fields.finish();
  return spec;
}

StreamingSpec as_streaming(const Json& value, const Path& path) {
  Fields fields(value, path);
  StreamingSpec spec;
  spec.chunk_frames = fields.defaulted("chunk_frames", spec.chunk_frames, as_count);
  spec.timesteps = fields.defaulted("timesteps", spec.timesteps, as_non_negatives);
  spec.flow_shift = fields.defaulted("flow_shift", spec.flow_shift, as_positive);
  fields.finish();
  return spec;
}

}  // namespace

const char* solver_name(Solver solver) { return kSolvers.at(static_cast<std::size_t>(solver)); }

Solver as_solver(const Json& value, const Path& path) {
  const auto name = one_of(value, path, {kSolvers[0], kSolvers[1], kSolvers[2]});
  return static_cast<Solver>(std::find(kSolvers.begin(), kSolvers.end(), name) - kSolvers.begin());
}

ModelSpec as_model_spec(const Json& value, const Path& path) {
  Fields fields(value, path);
  ModelSpec spec;
  spec.name = fields.required("name", as_string);
  spec.transformer = fields.required("transformer", as_transformer);
  spec.vae = fields.required("vae", as_vae);
  spec.text = fields.required("text", as_text);
  spec.sampling = fields.defaulted("sampling", SamplingSpec{}, as_sampling);
  spec.streaming = fields.nullable("streaming", as_streaming);
  fields.finish();
  return spec;
}

std::int64_t TransformerSpec::width() const { return times(num_heads, head_dim); }

std::int64_t ModelSpec::latent_frames(std::int64_t num_frames) const {
  const auto stride = vae.temporal_stride;
  if (num_frames < 1 || (num_frames - 1) % stride != 0) {
    const auto below = std::max<std::int64_t>(1, (num_frames - 1) / stride * stride + 1);
    throw Error(SANA_REQUEST_ERROR, concat("num_frames is ", num_frames, "."),
                {.expected = concat(stride, "k + 1 frames for the ", vae.kind, " autoencoder."),
                 .remedy = concat("ask for ", below, " or ", below + stride, " frames.")});
  }
  return (num_frames - 1) / stride + 1;
}

std::array<std::int64_t, 2> ModelSpec::size_multiples() const {
  return {vae.spatial_stride * transformer.patch_size[1],
          vae.spatial_stride * transformer.patch_size[2]};
}

std::array<std::int64_t, 2> ModelSpec::latent_size(std::int64_t height, std::int64_t width) const {
  const auto multiples = size_multiples();
  const auto check = [&](const char* side, std::int64_t pixels, std::int64_t multiple) {
    const auto least = vae.reflects ? std::max(multiple, 2 * vae.spatial_stride) : multiple;
    if (pixels >= least && pixels % multiple == 0) return;
    const auto below = std::max(least, pixels / multiple * multiple);
    throw Error(SANA_REQUEST_ERROR, concat(side, " is ", pixels, " pixels."),
                {.expected = concat("a positive multiple of ", multiple, "."),
                 .remedy = concat("ask for ", below, " or ", below + multiple, ".")});
  };
  check("height", height, multiples[0]);
  check("width", width, multiples[1]);
  return {height / vae.spatial_stride, width / vae.spatial_stride};
}

}  // namespace sana_rt::runtime
