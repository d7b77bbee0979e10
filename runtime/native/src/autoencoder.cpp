#include "autoencoder.hpp"

#include <cstring>

#include "error.hpp"
#include "graph_names.hpp"

namespace sana_rt::runtime {
namespace {

std::string cache_buffer(const std::string& name, std::int64_t turn) {
  return name + (turn == 0 ? ".0" : ".1");
}

}  // namespace

std::vector<float> cut_frames(const HostTensor& latents, Range frames) {
  if (frames.start < 0 || frames.stop > latents.shape[2]) {
    throw Error(SANA_BINDING_ERROR, concat("Latent frames up to ", frames.stop, " are taken from ",
                                           latents.shape[2], "."));
  }
  const auto channels = latents.shape[1];
  const auto count = latents.shape[2];
  const auto plane = static_cast<std::size_t>(latents.shape[3] * latents.shape[4]);
  std::vector<float> cut(static_cast<std::size_t>(channels * frames.size()) * plane);
  const auto row = static_cast<std::size_t>(frames.size()) * plane;
  for (std::int64_t channel = 0; channel < channels; ++channel) {
    const auto from = static_cast<std::size_t>(channel * count + frames.start) * plane;
    std::memcpy(cut.data() + static_cast<std::size_t>(channel) * row,
                latents.data.data() + from * sizeof(float), row * sizeof(float));
  }
  return cut;
}

const DecodeWindow& Decoder::window(const Graphs& graphs) {
  if (!graphs.variant().decoder) {
    throw Error(SANA_MANIFEST_REFERENCE_ERROR,
                concat("The variant '", graphs.variant_name(), "' has no decoder."),
                {.remedy = "export the checkpoint again, with its autoencoder."});
  }
  return *graphs.variant().decoder;
}

std::vector<Region> Decoder::cache_regions(const Graphs& graphs) {
  const auto& later = graphs.signature(kDecoder);
  std::vector<Region> found;
  for (const auto& tensor : later.inputs) {
    if (tensor.name.starts_with(kCachePrefix)) {
      found.push_back(region("autoencoder", later, tensor.name).single());
    }
  }
  return found;
}

std::vector<Region> Decoder::regions(const Graphs& graphs) {
  std::vector<Region> found;
  const auto add = [&](const char* graph, const char* tensor, const char* name) {
    found.push_back(region("autoencoder", graphs.signature(graph), tensor).single().named(name));
  };
  add(kDecoderFirst, "latents", "first_latents");
  add(kDecoderFirst, "frames", "first_frames");
  add(kDecoder, "latents", "later_latents");
  add(kDecoder, "frames", "later_frames");
  for (const auto& cache : cache_regions(graphs)) {
    for (const std::int64_t turn : {0, 1}) {
      found.push_back(cache.named(cache_buffer(cache.name, turn)));
    }
  }
  return found;
}

Decoder::Decoder(Graphs& graphs, const Buffers& buffers) : graphs_(graphs), buffers_(buffers) {
  for (const auto& cache : cache_regions(graphs)) cache_names_.push_back(cache.name);
  first_ = program(0);
  later_ = {program(1), program(2)};
}

Program Decoder::program(std::int64_t call) const {
  const std::string moment = call == 0 ? "first" : "later";
  BufferMap inputs = read_by(call);
  inputs.emplace("latents", buffers_[moment + "_latents"]);
  BufferMap outputs{{"frames", buffers_[moment + "_frames"]}};
  for (const auto& [name, buffer] : read_by(call + 1)) outputs.emplace(name + "_out", buffer);
  return {graphs_.bind(call == 0 ? kDecoderFirst : kDecoder, inputs, outputs)};
}

// The caches that a call reads; none for the first.
BufferMap Decoder::read_by(std::int64_t call) const {
  BufferMap read;
  if (call == 0) return read;
  for (const auto& name : cache_names_) {
    read.emplace(name, buffers_[cache_buffer(name, (call - 1) % 2)]);
  }
  return read;
}

HostTensor Decoder::decode(std::span<const float> latents, std::int64_t start) {
  const auto call = window(graphs_).call(start);
  const std::string moment = call == 0 ? "first" : "later";
  graphs_.memory().upload(buffers_[moment + "_latents"], latents);
  graphs_.run(call == 0 ? first_ : later_.at(static_cast<std::size_t>((call - 1) % 2)));
  return graphs_.memory().download(buffers_[moment + "_frames"]);
}

std::map<std::string, HostTensor> Decoder::caches(std::int64_t start) const {
  std::map<std::string, HostTensor> copies;
  for (const auto& [name, buffer] : read_by(window(graphs_).call(start))) {
    copies.emplace(name, graphs_.memory().download(buffer));
  }
  return copies;
}

void Decoder::restore(std::int64_t start, const std::map<std::string, HostTensor>& tensors) {
  for (const auto& [name, buffer] : read_by(window(graphs_).call(start))) {
    graphs_.memory().upload(buffer, tensors.at(name));
  }
}

void check_chunks(const Graphs& graphs, const std::vector<Range>& chunks) {
  const auto& window = Decoder::window(graphs);
  for (const auto& chunk : chunks) {
    auto stop = chunk.start;
    while (stop < chunk.stop) stop = window.stop(stop);
    if (window.lookahead == 0 && window.lookback == 0 && stop == chunk.stop) continue;
    throw Error(SANA_REQUEST_ERROR,
                concat("Latent frames ", chunk.start, " to ", chunk.stop - 1,
                       " cannot be decoded by themselves: the decoder takes ",
                       window.first_latent_frames, ", then ", window.latent_frames,
                       " a call and looks ", window.lookback, " back and ", window.lookahead, " ahead."),
                {.expected = "chunks of whole calls.", .remedy = "ask for another number of frames."});
  }
}

std::vector<Region> ImageEncoder::regions(const Graphs& graphs) {
  const auto& encoder = graphs.signature(kEncoder);
  return {region("autoencoder", encoder, "image").single(),
          region("autoencoder", encoder, "latents").single().named("image_latents")};
}

ImageEncoder::ImageEncoder(Graphs& graphs, const Buffers& buffers)
    : graphs_(graphs), buffers_(buffers) {
  program_.emplace_back(graphs.bind(kEncoder, {{"image", buffers["image"]}},
                                    {{"latents", buffers["image_latents"]}}));
}

std::vector<float> ImageEncoder::encode(std::span<const std::uint8_t> image) {
  graphs_.memory().upload(buffers_["image"], image);
  graphs_.run(program_);
  return graphs_.memory().download_floats(buffers_["image_latents"]);
}

}  // namespace sana_rt::runtime
