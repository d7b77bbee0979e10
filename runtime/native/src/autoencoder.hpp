// Latent frames to pictures, call by call, and one picture to a latent frame.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "geometry.hpp"
#include "graphs.hpp"

namespace sana_rt::runtime {

// Latent frames are [1, C, T, h, w] in the host's memory; this takes some out.
std::vector<float> cut_frames(const HostTensor& latents, Range frames);

// The causal decoder: latent frames become frames, given those before them. The feature caches
// exist twice. A call reads one set and writes the other.
class Decoder {
 public:
  static std::vector<Region> regions(const Graphs& graphs);
  // One set of the caches.
  static std::vector<Region> cache_regions(const Graphs& graphs);
  // Error MANIFEST_REFERENCE where the variant has no decoder.
  static const DecodeWindow& window(const Graphs& graphs);

  Decoder(Graphs& graphs, const Buffers& buffers);

  // Frames u8 [1, n, height, width, 3] of the call that begins at a latent frame. Calls must come
  // in order, from 0.
  HostTensor decode(std::span<const float> latents, std::int64_t start);

  // A host copy of what the call that begins at a latent frame will read.
  std::map<std::string, HostTensor> caches(std::int64_t start) const;
  void restore(std::int64_t start, const std::map<std::string, HostTensor>& tensors);

 private:
  Program program(std::int64_t call) const;
  BufferMap read_by(std::int64_t call) const;

  Graphs& graphs_;
  const Buffers& buffers_;
  std::vector<std::string> cache_names_;
  Program first_;
  std::array<Program, 2> later_;
};

// A RequestError unless each chunk can be decoded before there is another.
void check_chunks(const Graphs& graphs, const std::vector<Range>& chunks);

// The first frame of image-to-video.
class ImageEncoder {
 public:
  static std::vector<Region> regions(const Graphs& graphs);

  ImageEncoder(Graphs& graphs, const Buffers& buffers);

  // Normalised latents [1, C, 1, h, w] of a picture u8 [height, width, 3].
  std::vector<float> encode(std::span<const std::uint8_t> image);

 private:
  Graphs& graphs_;
  const Buffers& buffers_;
  Program program_;
};

}  // namespace sana_rt::runtime
