#include "bundle.hpp"

#include <set>

#include "error.hpp"
#include "files.hpp"

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
