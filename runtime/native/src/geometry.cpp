#include "geometry.hpp"

#include <array>
#include <charconv>
#include <cmath>
#include <numeric>

#include "error.hpp"

namespace sana_rt::runtime {
namespace {

// Rounded to six decimals, ties by the exact value, as Python's round does.
double round_to_micro(double value) {
  std::array<char, 400> digits{};
  const auto end =
      std::to_chars(digits.begin(), digits.end(), value, std::chars_format::fixed, 6).ptr;
  std::from_chars(digits.begin(), end, value);
  return value;
}

void check_limit(const char* what, std::int64_t count, const ModelSpec& model) {
  const auto limit = model.transformer.rope_max_positions;
  if (count <= limit) return;
  throw Error(SANA_REQUEST_ERROR, concat("The clip has ", count, " ", what, "."),
              {.expected = concat("at most ", limit, ", the model's rotary positions."),
               .remedy = concat("ask for a shorter or smaller clip (at most ", longest_clip(model),
                                " frames).")});
}

void add_axis(Dims& dims, const std::string& axis, std::int64_t pixels, std::int64_t latent,
              std::int64_t spatial_stride) {
  dims[axis] = pixels;
  dims["latent_" + axis] = latent;
  // The autoencoder's stages between latents and pixels.
  for (std::int64_t scale = 2; scale <= spatial_stride; scale *= 2) {
    dims["latent_" + axis + "_x" + std::to_string(scale)] = scale * latent;
  }
}

}  // namespace

std::int64_t batch_size(double guidance_scale) { return guidance_scale == 1 ? 1 : 2; }

std::int64_t video_frames(const ModelSpec& model, std::int64_t latent_frames) {
  return (latent_frames - 1) * model.vae.temporal_stride + 1;
}

std::int64_t frames_of_seconds(double seconds, std::int64_t fps, const ModelSpec& model) {
  const auto stride = model.vae.temporal_stride;
  const auto pictures = round_to_micro(seconds * static_cast<double>(fps));
  const auto latent = std::ceil(pictures / static_cast<double>(stride));
  if (!(latent < 1e9)) {
    throw Error(SANA_REQUEST_ERROR, concat("A clip of ", seconds, " s is asked for."),
                {.expected = concat("at most ", longest_clip(model), " frames.")});
  }
  return static_cast<std::int64_t>(latent) * stride + 1;
}

double start_seconds(std::int64_t latent_frame, std::int64_t fps, const ModelSpec& model) {
  const auto frames = latent_frame == 0 ? 0 : video_frames(model, latent_frame);
  return static_cast<double>(frames) / static_cast<double>(fps);
}

Dims size_dims(const ModelSpec& model, std::int64_t height, std::int64_t width) {
  const auto latent = model.latent_size(height, width);
  Dims dims;
  add_axis(dims, "height", height, latent[0], model.vae.spatial_stride);
  add_axis(dims, "width", width, latent[1], model.vae.spatial_stride);
  dims["rows"] = latent[0] / model.transformer.patch_size[1];
  dims["columns"] = latent[1] / model.transformer.patch_size[2];
  return dims;
}

std::int64_t longest_clip(const ModelSpec& model) {
  return video_frames(model,
                      model.transformer.rope_max_positions * model.transformer.patch_size[0]);
}

void check_positions(const ModelSpec& model, std::int64_t num_frames, std::int64_t height,
                     std::int64_t width) {
  const auto dims = size_dims(model, height, width);
  check_limit("latent frames", model.latent_frames(num_frames) / model.transformer.patch_size[0],
              model);
  check_limit("token rows", dims.at("rows"), model);
  check_limit("token columns", dims.at("columns"), model);
}

std::vector<std::int64_t> positions(std::int64_t first, std::int64_t count) {
  std::vector<std::int64_t> found(static_cast<std::size_t>(count));
  std::iota(found.begin(), found.end(), first);
  return found;
}

std::vector<Range> chunk_ranges(const ModelSpec& model, std::int64_t latent_frames,
                                std::int64_t start) {
  const auto size = model.chunking().chunk_frames;
  const auto left = latent_frames - start;
  if (left <= 0) return {};
  if (!model.transformer.causal || left < 2 * size) return {{start, latent_frames}};
  std::vector<Range> chunks{{start, start + size + left % size}};
  while (chunks.back().stop < latent_frames) {
    chunks.push_back({chunks.back().stop, chunks.back().stop + size});
  }
  return chunks;
}

}  // namespace sana_rt::runtime
