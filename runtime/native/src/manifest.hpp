// The bundle's manifest.json, as docs/manifest.md specifies it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model_spec.hpp"
#include "signatures.hpp"
#include "tensor_spec.hpp"

namespace sana_rt::runtime {

constexpr std::size_t kMaxManifestBytes = std::size_t{16} << 20;

struct File {
  std::string path;
  std::int64_t bytes;
  std::string sha256;
};

// An ONNX graph and its weight files.
struct Graph {
  std::string path;
  std::vector<std::string> weights;
  std::int64_t opset = 0;
  Signature signature;
};

struct DimRange {
  std::int64_t min, opt, max;

  bool operator==(const DimRange&) const = default;
};

// A compiled engine of one graph. This library plays graphs; of plans it uses the profiles.
struct Plan {
  std::string path, log;
  Signature signature;
  std::map<std::string, DimRange> profile;
};

// How the scales of layers' inputs were found.
struct Calibration {
  std::string algorithm, sha256, prompts_sha256, source_sha256;
  std::int64_t passes;

  bool operator==(const Calibration&) const = default;
};

struct Quantization {
  std::string recipe, recipe_sha256;
  bool device;  // operators that only TensorRT has; otherwise an emulation
  std::optional<Calibration> calibration = {};

  bool operator==(const Quantization&) const = default;
};

struct Lora {
  std::string name, sha256;
  double scale;

  bool operator==(const Lora&) const = default;
};

// LoRAs merged into the weights of a checkpoint, whose hash is `base`.
struct Merged {
  std::string base;
  std::vector<Lora> loras;

  bool operator==(const Merged&) const = default;
};

// Where weights came from.
struct Source {
  std::string checkpoint, layout, sha256;
  std::optional<Merged> merged;

  bool operator==(const Source&) const = default;
};

struct Variant {
  DType dtype;
  Source source;
  std::map<std::string, Graph> graphs;
  std::map<std::string, std::map<std::string, Plan>> plans;  // by target, then graph
  std::optional<Quantization> quantization;
  std::optional<DecodeWindow> decoder;
};

// Whether a variant rounds as `device`, which is for TensorRT, does, in operators that others have.
bool is_emulation(const Variant& variant, const Variant& device);

struct Manifest {
  ModelSpec model;
  std::map<std::string, File> files;                       // by path
  std::vector<std::pair<std::string, Variant>> variants;  // in the manifest's order
  std::optional<std::string> tokenizer;

  // The variant called `name`; none is Error MANIFEST_REFERENCE.
  const Variant& variant(std::string_view name) const;
};

// Parses and checks; a broken rule is its named error.
Manifest decode_manifest(std::string_view data);

}  // namespace sana_rt::runtime
