#include "onnx_file.hpp"

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "error.hpp"
#include "unicode.hpp"

namespace sana_rt::runtime {
namespace {

// The numbers of `TensorProto.DataType`.
constexpr std::pair<std::uint64_t, const char*> kDTypes[] = {
    {1, "float32"},   {2, "uint8"},          {6, "int32"},
    {7, "int64"},     {9, "bool"},           {10, "float16"},
    {16, "bfloat16"}, {17, "float8_e4m3fn"}, {23, "float4_e2m1"},
};

enum class Kind { kModel, kTrainingInfo, kFunction, kGraph, kNode, kAttribute, kSparse, kTensor };

// The fields in which a tensor can lie, however deep, by the message that has them.
const std::map<Kind, std::map<std::uint64_t, Kind>>& ways_to_tensors() {
  static const std::map<Kind, std::map<std::uint64_t, Kind>> ways{
      {Kind::kModel, {{7, Kind::kGraph}, {20, Kind::kTrainingInfo}, {25, Kind::kFunction}}},
      {Kind::kTrainingInfo, {{1, Kind::kGraph}, {2, Kind::kGraph}}},
      {Kind::kFunction, {{7, Kind::kNode}, {11, Kind::kAttribute}}},
      {Kind::kGraph, {{1, Kind::kNode}, {5, Kind::kTensor}, {15, Kind::kSparse}}},
      {Kind::kNode, {{5, Kind::kAttribute}}},
      {Kind::kAttribute,
       {{5, Kind::kTensor}, {6, Kind::kGraph}, {10, Kind::kTensor}, {11, Kind::kGraph},
        {22, Kind::kSparse}, {23, Kind::kSparse}}},
      {Kind::kSparse, {{1, Kind::kTensor}, {2, Kind::kTensor}}},
  };
  return ways;
}

constexpr unsigned kVarint = 0, kEightBytes = 1, kLength = 2, kFourBytes = 5;
constexpr std::size_t kVarintBytes = 10;  // of 64 bits, seven a byte
constexpr std::uint64_t kMostOfKeys = 0xFFFF'FFFF;
constexpr const char* kNotOnnx = "it is no protocol buffer, or has fields that ONNX does not";

// A number that may have more than 64 bits is the largest, which nothing equals.
std::uint64_t varint(std::string_view& rest) {
  std::uint64_t value = 0;
  bool too_large = false;
  for (std::size_t index = 0; index < std::min(rest.size(), kVarintBytes); ++index) {
    const auto byte = static_cast<unsigned char>(rest[index]);
    too_large |= index == kVarintBytes - 1 && (byte & 0x7FU) > 1;
    value |= std::uint64_t{byte & 0x7FU} << (7 * index);
    if (byte < 0x80U) {
      rest.remove_prefix(index + 1);
      return too_large ? std::numeric_limits<std::uint64_t>::max() : value;
    }
  }
  throw DamagedOnnx("it is cut off");
}

// A field of a message: a number, or the bytes of what has a length.
struct Field {
  std::uint64_t name = 0;
  std::optional<std::uint64_t> number = {};
  std::string_view bytes = {};
};

std::uint64_t size_of(unsigned kind, std::string_view& rest) {
  switch (kind) {
    case kLength: return varint(rest);
    case kEightBytes: return 8;
    case kFourBytes: return 4;
    default: throw DamagedOnnx(kNotOnnx);
  }
}

// A field's name and kind. Readers differ in what they make of more than 32 bits, or of name 0.
std::uint64_t key_of(std::string_view& rest) {
  const auto key = varint(rest);
  if (key > kMostOfKeys || key >> 3U == 0) throw DamagedOnnx(kNotOnnx);
  return key;
}

// Floats of a fixed width, of which what is read here has none, are passed over.
void each_field(std::string_view message, const std::function<void(const Field&)>& visit) {
  while (!message.empty()) {
    const auto key = key_of(message);
    const auto kind = static_cast<unsigned>(key & 7U);
    if (kind == kVarint) {
      visit({.name = key >> 3U, .number = varint(message)});
      continue;
    }
    const auto size = size_of(kind, message);
    if (size > message.size()) throw DamagedOnnx("it is cut off");
    if (kind == kLength) visit({.name = key >> 3U, .bytes = message.substr(0, size)});
    message.remove_prefix(size);
  }
}

std::vector<std::string_view> messages(std::string_view message, std::uint64_t name) {
  std::vector<std::string_view> found;
  each_field(message, [&](const Field& field) {
    if (field.name == name && !field.number) found.push_back(field.bytes);
  });
  return found;
}

std::string text(std::string_view bytes) {
  std::string copy(bytes);
  if (invalid_utf8(copy) != std::string::npos) {
    throw DamagedOnnx("it holds text that is not UTF-8");
  }
  return copy;
}

// The last of a field counts.
std::optional<std::string> last_text(std::string_view message, std::uint64_t name) {
  std::optional<std::string> last;
  for (const auto& each : messages(message, name)) last = text(each);
  return last;
}

std::optional<std::uint64_t> last_number(std::string_view message, std::uint64_t name) {
  std::optional<std::uint64_t> last;
  each_field(message, [&](const Field& field) {
    if (field.name == name && field.number) last = field.number;
  });
  return last;
}

// Every tensor, wherever in the model it is.
std::vector<std::string_view> tensors(std::string_view model) {
  std::vector<std::string_view> found;
  std::vector<std::pair<Kind, std::string_view>> open{{Kind::kModel, model}};
  while (!open.empty()) {
    const auto [kind, message] = open.back();
    open.pop_back();
    if (kind == Kind::kTensor) {
      found.push_back(message);
      continue;
    }
    const auto& ways = ways_to_tensors().at(kind);
    each_field(message, [&](const Field& field) {
      const auto way = ways.find(field.name);
      if (way != ways.end() && !field.number) open.emplace_back(way->second, field.bytes);
    });
  }
  return found;
}

std::uint64_t count(const std::string& digits) {
  constexpr std::size_t kMost = 19;
  const bool fits = !digits.empty() && digits.size() <= kMost &&
                    digits.find_first_not_of("0123456789") == std::string::npos;
  if (!fits) throw DamagedOnnx("it holds a tensor at no offset or of no length");
  return std::stoull(digits);
}

// Where a tensor lies, if it says so; a key that is there twice has its last value.
std::optional<Outside> place_of(std::string_view tensor) {
  std::map<std::string, std::string> entries{{"location", ""}, {"offset", "0"}, {"length", "0"}};
  const auto said = messages(tensor, 13);
  for (const auto& entry : said) {
    entries[last_text(entry, 1).value_or("")] = last_text(entry, 2).value_or("");
  }
  if (said.empty()) return std::nullopt;
  return Outside{entries["location"], count(entries["offset"]), count(entries["length"])};
}

// No field of a manifest has a number beyond these.
std::int64_t as_signed(std::uint64_t number) {
  constexpr std::uint64_t kMost = std::numeric_limits<std::int64_t>::max();
  return number > kMost ? -1 : static_cast<std::int64_t>(number);
}

std::int64_t opset_of(std::string_view model) {
  for (const auto& each : messages(model, 8)) {
    const auto domain = last_text(each, 1).value_or("");
    if (!domain.empty() && domain != "ai.onnx") continue;
    return as_signed(last_number(each, 2).value_or(0));
  }
  return 0;
}

std::string dtype(std::uint64_t number) {
  for (const auto& [known, name] : kDTypes) {
    if (known == number) return name;
  }
  return concat("type ", number);
}

// A number or a name; what is said last counts, and nothing at all is a name of nothing.
Dim dimension(std::string_view message) {
  Dim found = std::string();
  each_field(message, [&](const Field& field) {
    if (field.name == 1 && field.number) found = as_signed(*field.number);
    if (field.name == 2 && !field.number) found = text(field.bytes);
  });
  return found;
}

OnnxTensor tensor(std::string_view value_info) {
  OnnxTensor found{last_text(value_info, 1).value_or(""), "no type", {}};
  for (const auto& kind : messages(value_info, 2)) {
    for (const auto& type : messages(kind, 1)) {
      if (const auto number = last_number(type, 1)) found.dtype = dtype(*number);
      for (const auto& shape : messages(type, 2)) {
        for (const auto& dim : messages(shape, 1)) found.shape.push_back(dimension(dim));
      }
    }
  }
  return found;
}

}  // namespace

OnnxFile OnnxFile::parse(std::string_view content) {
  if (content.empty()) throw DamagedOnnx("it is empty");
  const auto graphs = messages(content, 7);
  if (graphs.empty()) throw DamagedOnnx("it holds no graph");
  OnnxFile file;
  for (const auto& graph : graphs) {
    for (const auto& each : messages(graph, 11)) file.inputs.push_back(tensor(each));
    for (const auto& each : messages(graph, 12)) file.outputs.push_back(tensor(each));
  }
  for (const auto& each : tensors(content)) {
    if (auto place = place_of(each)) file.outside.push_back(*std::move(place));
  }
  file.opset = opset_of(content);
  return file;
}

}  // namespace sana_rt::runtime
