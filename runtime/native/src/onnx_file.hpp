// What an ONNX file says of itself, read without its weights and without ONNX.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "tensor_spec.hpp"

namespace sana_rt::runtime {

// What is wrong with a file; callers name it in their own error.
class DamagedOnnx : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Where a tensor lies outside of the file: `location` is relative to the file's folder.
struct Outside {
  std::string location;
  std::uint64_t offset, length;

  bool operator==(const Outside&) const = default;
};

// An input or output; its type may be one that no tensor of a manifest has.
struct OnnxTensor {
  std::string name, dtype;
  std::vector<Dim> shape;

  bool operator==(const OnnxTensor&) const = default;
};

// The signature and the opset of a model, and what of it lies in other files.
struct OnnxFile {
  std::int64_t opset = 0;
  std::vector<OnnxTensor> inputs, outputs;
  std::vector<Outside> outside;

  // Reads the bytes of a file, or throws DamagedOnnx.
  static OnnxFile parse(std::string_view content);
};

}  // namespace sana_rt::runtime
