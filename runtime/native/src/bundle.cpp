#include "bundle.hpp"

#include <algorithm>
#include <set>

#include "error.hpp"
#include "files.hpp"
#include "onnx_file.hpp"

namespace sana_rt::runtime {
namespace {

namespace fs = std::filesystem;

constexpr const char* kRemedy =
    "copy the bundle again, or make it again with the command that wrote it.";

bool is_inside(const fs::path& target, const fs::path& root) {
  const auto relative = target.lexically_relative(root);
  return !relative.empty() && *relative.begin() != "..";
}

void check_size(const fs::path& root, const File& file) {
  const auto path = root / file.path;
  std::error_code error;
  const auto target = fs::weakly_canonical(path, error);
  if (error || !is_inside(target, fs::weakly_canonical(root))) {
    throw Error(SANA_MANIFEST_PATH_ERROR,
                concat(path.string(), " is a link to ", target.string(), "."),
                {.expected = "a file inside the bundle.",
                 .remedy = "put a copy of the file in the place of the link."});
  }
  const auto expected = concat(file.bytes, " bytes.");
  if (!fs::is_regular_file(path, error)) {
    throw Error(SANA_BUNDLE_FILE_ERROR, concat(path.string(), " is missing."),
                {.expected = expected, .remedy = kRemedy});
  }
  const auto actual = fs::file_size(path);
  if (actual != static_cast<std::uintmax_t>(file.bytes)) {
    throw Error(SANA_BUNDLE_FILE_ERROR, concat(path.string(), " has ", actual, " bytes."),
                {.expected = expected, .remedy = kRemedy});
  }
}

[[noreturn]] void refuse(const std::string& happened, const std::string& expected,
                         const char* remedy = kRemedy) {
  throw Error(SANA_BUNDLE_FILE_ERROR, happened, {.expected = expected, .remedy = remedy});
}

// The bytes of a graph's weight files, by their names from the folder of its own.
std::map<std::string, std::uint64_t> weight_sizes(const Graph& graph, const Manifest& manifest) {
  const auto folder = graph.path.substr(0, graph.path.rfind('/') + 1);  // none is npos + 1
  std::map<std::string, std::uint64_t> sizes;
  for (const auto& path : graph.weights) {
    if (!path.starts_with(folder)) continue;
    sizes.emplace(path.substr(folder.size()),
                  static_cast<std::uint64_t>(manifest.files.at(path).bytes));
  }
  return sizes;
}

// Every tensor outside of the graph's file lies in one that is listed for it.
void check_outside(const fs::path& path, const std::vector<Outside>& tensors,
                   const std::map<std::string, std::uint64_t>& sizes) {
  for (const auto& [location, offset, length] : tensors) {
    const auto found = sizes.find(location);
    if (found == sizes.end()) {
      std::vector<std::string> names;
      for (const auto& [name, size] : sizes) names.push_back(name);
      refuse(concat(path.string(), " keeps weights in ", in_quotes(location), "."),
             concat("a file that the manifest lists for it: ", listed(names), "."),
             "do not use this bundle: no command of sana-rt writes such a graph.");
    }
    if (offset > found->second || length > found->second - offset) {
      refuse(concat(path.string(), " reads ", in_quotes(location), " at byte ", offset, ", ", length,
                    " bytes."),
             concat("at most ", found->second, ", its size."));
    }
  }
}

OnnxTensor listed_tensor(const TensorSpec& spec) {
  return {spec.name, dtype_name(spec.dtype), spec.shape};
}

std::string in_words(const OnnxTensor& tensor) {
  std::vector<std::string> dims;
  for (const auto& dim : tensor.shape) {
    dims.push_back(std::visit([](const auto& one) { return concat(one); }, dim));
  }
  return concat(in_quotes(tensor.name), " (", tensor.dtype, " ", listed(dims), ")");
}

void check_side(const fs::path& path, const char* side, const std::vector<OnnxTensor>& found,
                const std::vector<TensorSpec>& specs) {
  std::vector<OnnxTensor> wanted;
  std::transform(specs.begin(), specs.end(), std::back_inserter(wanted), listed_tensor);
  const auto [there, expected] =
      std::mismatch(found.begin(), found.end(), wanted.begin(), wanted.end());
  if (there == found.end() && expected == wanted.end()) return;
  const auto words = [](auto at, auto end) { return at == end ? "nothing" : in_words(*at); };
  refuse(concat(path.string(), " has ", words(there, found.end()), " as ", side, "[",
                there - found.begin(), "]."),
         concat(words(expected, wanted.end()), ", as the manifest says."));
}

}  // namespace

Bundle Bundle::open(const fs::path& root) {
  const auto path = root / "manifest.json";
  std::error_code error;
  if (!fs::is_regular_file(path, error)) {
    if (error && error != std::errc::no_such_file_or_directory &&
        error != std::errc::not_a_directory) {
      throw_storage_error(path, error.value());
    }
    throw Error(SANA_MANIFEST_MISSING_ERROR, concat(root.string(), " has no manifest.json."),
                {.expected = "a bundle; its manifest is written last, so an interrupted one has "
                             "none.",
                 .remedy = "run the command that writes the bundle (sana-rt export) again."});
  }
  Bundle bundle{root, decode_manifest(read_file(path, kMaxManifestBytes))};
  for (const auto& [name, file] : bundle.manifest.files) check_size(root, file);
  return bundle;
}

std::string Bundle::content(const std::string& relative) const {
  const auto& file = manifest.files.at(relative);
  check_size(root, file);
  auto content = read_file(root / file.path, static_cast<std::size_t>(file.bytes));
  const auto actual = sha256(content);
  if (actual != file.sha256) {
    refuse(concat((root / file.path).string(), " has SHA-256 ", actual, "."), file.sha256);
  }
  return content;
}

std::string Bundle::onnx(const Graph& graph) const {
  const auto path = this->path(graph.path);
  auto content = this->content(graph.path);
  try {
    const auto found = OnnxFile::parse(content);
    check_outside(path, found.outside, weight_sizes(graph, manifest));
    if (found.opset != graph.opset) {
      refuse(concat(path.string(), " has opset ", found.opset, "."),
             concat(graph.opset, ", as the manifest says."));
    }
    check_side(path, "inputs", found.inputs, graph.signature.inputs);
    check_side(path, "outputs", found.outputs, graph.signature.outputs);
  } catch (const DamagedOnnx& error) {
    refuse(concat(path.string(), " is not an ONNX graph: ", error.what(), "."), "");
  }
  for (const auto& weights : graph.weights) check_size(root, manifest.files.at(weights));
  return content;
}

std::string Bundle::graphs_sha256(const std::string& variant) const {
  std::set<std::string> paths;
  for (const auto& [name, graph] : manifest.variant(variant).graphs) {
    paths.insert(graph.path);
    paths.insert(graph.weights.begin(), graph.weights.end());
  }
  std::string hashes;
  for (const auto& path : paths) hashes += manifest.files.at(path).sha256;
  return sha256(hashes);
}

}  // namespace sana_rt::runtime
