#include "tensor_spec.hpp"

#include <algorithm>
#include <array>

#include "error.hpp"

namespace sana_rt::runtime {
namespace {

struct DTypeInfo {
  const char* name;
  std::size_t bits;
};

constexpr std::array<DTypeInfo, 9> kDTypes{{{"float32", 32},
                                            {"float16", 16},
                                            {"bfloat16", 16},
                                            {"float8_e4m3fn", 8},
                                            {"float4_e2m1", 4},
                                            {"int64", 64},
                                            {"int32", 32},
                                            {"uint8", 8},
                                            {"bool", 8}}};

const DTypeInfo& info(DType dtype) { return kDTypes.at(static_cast<std::size_t>(dtype)); }

bool is_name(std::string_view name, std::size_t most) {
  const auto lower = [](char c) { return c >= 'a' && c <= 'z'; };
  return !name.empty() && name.size() <= most && lower(name.front()) &&
         std::all_of(name.begin(), name.end(), [&](char c) {
           return lower(c) || (c >= '0' && c <= '9') || c == '_';
         });
}

Dim as_dim(const Json& value, const Path& path) {
  if (const auto* name = value.string()) {
    if (!is_name(*name, 32)) {
      throw Error(SANA_MANIFEST_SHAPE_ERROR, concat(path, " is the dimension ", in_quotes(*name), "."),
                  {.expected = "a name like 'batch'."});
    }
    return *name;
  }
  const auto number = as_integer(value, path);
  if (number < 0 || number > kMaxDim) {
    throw Error(SANA_MANIFEST_SHAPE_ERROR, concat(path, " is the dimension ", number, "."),
                {.expected = concat("0 to ", kMaxDim, ".")});
  }
  return number;
}

std::string shown(const std::vector<Dim>& shape) {
  std::vector<std::string> parts;
  for (const auto& dim : shape) {
    parts.push_back(std::visit([](const auto& one) { return concat(one); }, dim));
  }
  return listed(parts);
}

}  // namespace

const char* dtype_name(DType dtype) { return info(dtype).name; }

DType dtype_of(std::string_view name, std::string_view where) {
  for (std::size_t index = 0; index < kDTypes.size(); ++index) {
    if (kDTypes[index].name == name) return static_cast<DType>(index);
  }
  throw Error(SANA_MANIFEST_SHAPE_ERROR, concat(where, " has the dtype ", in_quotes(name), "."),
              {.expected = "one of float32, float16, bfloat16, float8_e4m3fn, float4_e2m1, int64, "
                           "int32, uint8, bool."});
}

std::int64_t num_elements(const Shape& shape) {
  std::int64_t elements = 1;
  for (const auto dim : shape) {
    if (__builtin_mul_overflow(elements, dim, &elements)) {
      throw Error(SANA_BINDING_ERROR, concat("A tensor has the shape ", listed(shape), "."),
                  {.expected = "fewer than 2^63 elements."});
    }
  }
  return elements;
}

std::size_t num_bytes(DType dtype, const Shape& shape) {
  std::size_t bits = 0;
  if (__builtin_mul_overflow(static_cast<std::size_t>(num_elements(shape)), info(dtype).bits,
                             &bits)) {
    throw Error(SANA_BINDING_ERROR, concat("A tensor has the shape ", listed(shape), "."),
                {.expected = "fewer than 2^64 bits."});
  }
  return bits / 8 + (bits % 8 != 0 ? 1 : 0);
}

Shape resolve(const std::vector<Dim>& shape, const Dims& dims) {
  Shape resolved;
  for (const auto& dim : shape) {
    if (const auto* number = std::get_if<std::int64_t>(&dim)) {
      resolved.push_back(*number);
      continue;
    }
    const auto found = dims.find(std::get<std::string>(dim));
    if (found == dims.end()) {
      throw Error(SANA_BINDING_ERROR, concat("The shape ", shown(shape), " needs a value for '",
                                           std::get<std::string>(dim), "'."),
                  {.expected = "a value for each of its names."});
    }
    resolved.push_back(found->second);
  }
  return resolved;
}

void unify(const TensorSpec& spec, const Shape& shape, Dims& dims) {
  bool fits = shape.size() == spec.shape.size();
  for (std::size_t axis = 0; fits && axis < shape.size(); ++axis) {
    const auto* number = std::get_if<std::int64_t>(&spec.shape[axis]);
    fits = shape[axis] == (number != nullptr ? *number
                                             : dims.try_emplace(std::get<std::string>(
                                                                    spec.shape[axis]),
                                                                shape[axis])
                                                   .first->second);
  }
  if (!fits) {
    throw Error(SANA_BINDING_ERROR,
                concat("The tensor '", spec.name, "' was given the shape ", listed(shape), "."),
                {.expected = concat("the shape ", shown(spec.shape), ".")});
  }
}

TensorSpec as_tensor_spec(const Json& value, const Path& path) {
  Fields fields(value, path);
  const auto name = fields.required("name", as_string);
  const auto dtype = fields.required("dtype", as_string);
  auto shape = fields.required("shape", [](const Json& list, const Path& where) {
    return as_list(list, where, as_dim);
  });
  fields.finish();
  if (!is_name(name, 64)) {
    throw Error(SANA_MANIFEST_SHAPE_ERROR, concat(path, " is called ", in_quotes(name), "."),
                {.expected = "a name like 'state_s', at most 64 characters."});
  }
  if (shape.size() > kMaxRank) {
    throw Error(SANA_MANIFEST_SHAPE_ERROR,
                concat(path, " '", name, "' has ", shape.size(), " dimensions."),
                {.expected = concat("at most ", kMaxRank, ".")});
  }
  return {name, dtype_of(dtype, path), std::move(shape)};
}

}  // namespace sana_rt::runtime
