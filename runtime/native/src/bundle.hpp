// A bundle on disk: a directory whose manifest.json says what the other files are.
#pragma once

#include <filesystem>
#include <string>

#include "manifest.hpp"

namespace sana_rt::runtime {

struct Bundle {
  std::filesystem::path root;
  Manifest manifest;

  // Reads the manifest, and checks that every listed file has its listed size.
  static Bundle open(const std::filesystem::path& root);

  std::filesystem::path path(const std::string& relative) const { return root / relative; }
  // The content of a listed file, whose hash is the listed one; or an Error BUNDLE_FILE. What is
  // made of a file is made of these bytes, not of what a second look at it would find.
  std::string content(const std::string& relative) const;
  // The ONNX file of a graph: its weights lie in the files listed for it, and its opset, inputs
  // and outputs are those listed; or an Error BUNDLE_FILE. The weights are not read.
  std::string onnx(const Graph& graph) const;
  // SHA-256 of the hashes of all files of a variant's graphs: which graphs a state belongs to.
  std::string graphs_sha256(const std::string& variant) const;
};

}  // namespace sana_rt::runtime
