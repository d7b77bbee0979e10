// What is read of ONNX files is what Python reads, of damaged ones too.
#include <doctest/doctest.h>

#include <algorithm>

#include "data.hpp"
#include "onnx_file.hpp"

using namespace sana_rt::runtime;

namespace {

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (std::size_t at = 0; at < hex.size(); at += 2) {
    bytes += static_cast<char>(std::stoi(hex.substr(at, 2), nullptr, 16));
  }
  return bytes;
}

nlohmann::json side(const std::vector<OnnxTensor>& tensors) {
  auto all = nlohmann::json::array();
  for (const auto& tensor : tensors) {
    auto dims = nlohmann::json::array();
    for (const auto& dim : tensor.shape) {
      std::visit([&](const auto& one) { dims.push_back(one); }, dim);
    }
    all.push_back({tensor.name, tensor.dtype, dims});
  }
  return all;
}

nlohmann::json read(const std::string& content) {
  try {
    auto found = OnnxFile::parse(content);
    std::sort(found.outside.begin(), found.outside.end(), [](const auto& one, const auto& other) {
      return std::tie(one.location, one.offset, one.length) <
             std::tie(other.location, other.offset, other.length);
    });
    auto outside = nlohmann::json::array();
    for (const auto& [location, offset, length] : found.outside) {
      outside.push_back({location, offset, length});
    }
    return {{"opset", found.opset}, {"outside", outside}, {"inputs", side(found.inputs)},
            {"outputs", side(found.outputs)}};
  } catch (const DamagedOnnx& error) {
    return error.what();
  }
}

}  // namespace

TEST_CASE("ONNX files, whole and damaged, are read as in Python") {
  const auto vectors = read_json(root() / "tests/data/native/vectors.json")["onnx"];
  const auto content = from_hex(vectors["content"]);
  int damaged = 0;
  for (const auto& one : vectors["reads"]) {
    INFO(one["edit"].dump());
    const auto& [at, removed] = std::pair{one["edit"][0].get<std::size_t>(),
                                          one["edit"][1].get<std::size_t>()};
    auto edited = content;
    edited.replace(at, removed, from_hex(one["edit"][2]));
    CHECK(read(edited) == one["read"]);
    damaged += one["read"].is_string() ? 1 : 0;
  }
  CHECK(damaged > 20);
}
