// Names of dtypes, and shapes whose dimensions may be named.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "json.hpp"

namespace sana_rt::runtime {

enum class DType {
  kFloat32,
  kFloat16,
  kBFloat16,
  kFloat8E4M3FN,
  kFloat4E2M1,
  kInt64,
  kInt32,
  kUInt8,
  kBool
};

using Dim = std::variant<std::int64_t, std::string>;
using Shape = std::vector<std::int64_t>;
using Dims = std::map<std::string, std::int64_t>;

constexpr std::size_t kMaxRank = 8;
constexpr std::int64_t kMaxDim = (std::int64_t{1} << 31) - 1;

// An input or output of a graph.
struct TensorSpec {
  std::string name;
  DType dtype;
  std::vector<Dim> shape;

  bool operator==(const TensorSpec&) const = default;
};

const char* dtype_name(DType dtype);

// The dtype called `name`, or Error MANIFEST_SHAPE; `where` is for the message.
DType dtype_of(std::string_view name, std::string_view where);

// Bytes of a dense tensor, rounded up to whole bytes.
std::size_t num_bytes(DType dtype, const Shape& shape);

std::int64_t num_elements(const Shape& shape);

// Replaces named dimensions by their values; a name without one is a BindingError.
Shape resolve(const std::vector<Dim>& shape, const Dims& dims);

// Matches a shape with a spec, adding the named dimensions to `dims`; or a BindingError.
void unify(const TensorSpec& spec, const Shape& shape, Dims& dims);

// A tensor of a manifest; breaks of its own rules are Error MANIFEST_SHAPE.
TensorSpec as_tensor_spec(const Json& value, const Path& path);

}  // namespace sana_rt::runtime
