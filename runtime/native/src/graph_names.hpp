// The graphs that a bundle can have; docs/architecture.md says what each computes.
#pragma once

#include <cstdint>
#include <string>

namespace sana_rt::runtime {

constexpr const char* kTextEncoder = "text_encoder";
constexpr const char* kPrompt = "prompt";
constexpr const char* kRope = "rope";
constexpr const char* kTimestep = "timestep";
constexpr const char* kPatchEmbed = "patch_embed";
constexpr const char* kFinalLayer = "final_layer";
constexpr const char* kSolver = "solver";
constexpr const char* kDecoderFirst = "vae_decoder_first";
constexpr const char* kDecoder = "vae_decoder";
constexpr const char* kDecoderWhole = "vae_decoder_whole";
constexpr const char* kEncoder = "vae_encoder";

// Whether a graph sees one sample only, whatever the guidance.
inline bool is_single(const std::string& name) {
  for (const auto* single : {kTextEncoder, kSolver, kDecoderFirst, kDecoder, kEncoder}) {
    if (name == single) return true;
  }
  return false;
}

// The graph of a transformer block, from 0.
inline std::string block_name(std::int64_t index) {
  return (index < 10 ? "block_0" : "block_") + std::to_string(index);
}

}  // namespace sana_rt::runtime
