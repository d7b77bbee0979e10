#include "onnxruntime_rtx.hpp"

#include <dlfcn.h>
#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <optional>

#include "error.hpp"
#include "ort_backend.hpp"

namespace sana_rt::runtime {
namespace {

namespace fs = std::filesystem;

constexpr const char* kProvider = "NvTensorRTRTXExecutionProvider";
constexpr const char* kRegistration = "sana-rt";  // ONNX Runtime's name for the library
constexpr const char* kLibrary = "libonnxruntime_providers_nv_tensorrt_rtx.so";
constexpr const char* kPackage = "onnxruntime_ep_nv_tensorrt_rtx";
constexpr const char* kVariable = "SANA_RT_PLUGIN";
constexpr const char* kInstall = "pip install onnxruntime-ep-nv-tensorrt-rtx-cu13";

// What it needs of its own folder, in the order in which it is loaded. Its wheel has no file of the
// names that the linker looks for, so that they have to be there before.
constexpr const char* kNeeded[] = {"libcudart.so.", "libtensorrt_rtx.so.",
                                   "libtensorrt_onnxparser_rtx.so."};

// The folder of the ONNX Runtime that is used, links resolved.
fs::path onnxruntime_folder() {
  Dl_info info{};
  if (::dladdr(reinterpret_cast<const void*>(&OrtGetApiBase), &info) == 0) return {};
  std::error_code error;
  return fs::weakly_canonical(info.dli_fname, error).parent_path();
}

void preload(const fs::path& folder) {
  for (const std::string prefix : kNeeded) {
    std::error_code error;
    for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
         entry.increment(error)) {
      // One that does not load is the plug-in's to report.
      if (entry->path().filename().string().starts_with(prefix)) {
        ::dlopen(entry->path().c_str(), RTLD_NOW | RTLD_GLOBAL);
      }
    }
  }
}

// Loads the plug-in into ONNX Runtime, once a process.
void register_plugin(const fs::path& path) {
  static std::mutex mutex;
  static std::optional<fs::path> registered;
  const std::lock_guard lock(mutex);
  if (registered == path) return;
  if (registered) {
    throw Error(SANA_USAGE_ERROR, concat("Another plug-in is loaded: ", registered->string(), "."),
                {.expected = "one for all sessions of a process."});
  }
  preload(path.parent_path());
  try {
    environment().RegisterExecutionProviderLibrary(kRegistration, path.string());
  } catch (const Ort::Exception& error) {
    throw Error(SANA_BACKEND_ERROR,
                concat("ONNX Runtime ", OrtGetApiBase()->GetVersionString(),
                       " cannot load NVIDIA's plug-in: ", error.what(), "."),
                {.remedy = concat("install NVIDIA's driver; if it is there, ", kInstall, ".")});
  }
  registered = path;
}

// The first card that the plug-in can use.
Ort::ConstEpDevice find_device(const fs::path& plugin) {
  register_plugin(plugin);
  for (const auto& device : environment().GetEpDevices()) {
    if (std::string_view(device.EpName()) == kProvider) return device;
  }
  throw Error(SANA_BACKEND_ERROR, "NVIDIA's plug-in for ONNX Runtime finds no card that it can use.",
              {.expected = "compute capability 8.6, 8.9 or 12.0 and later, and a driver for CUDA 13.",
               .remedy = "nvidia-smi shows the card and its driver."});
}

std::string version_of(const Ort::ConstEpDevice& device) {
  const char* version = device.EpMetadata().GetValue("version");
  return version == nullptr ? "unknown" : version;
}

// What ONNX Runtime throws of the plug-in is an Error.
template <class Work>
auto with_plugin_errors(const Work& work) {
  try {
    return work();
  } catch (const Ort::Exception& error) {
    throw Error(SANA_BACKEND_ERROR,
                concat("ONNX Runtime cannot use NVIDIA's plug-in: ", error.what(), "."));
  }
}

// `input:2x16x21,other:1x300`: the inputs whose shapes have named dimensions.
std::string profile_shapes(const Artifact& artifact, std::int64_t DimRange::*end) {
  Dims dims;
  for (const auto& [name, range] : artifact.sizes) dims.emplace(name, range.*end);
  std::string all;
  for (const auto& spec : artifact.signature.inputs) {
    const bool named = std::any_of(spec.shape.begin(), spec.shape.end(), [](const Dim& dim) {
      return std::holds_alternative<std::string>(dim);
    });
    if (!named) continue;
    all += concat(all.empty() ? "" : ",", spec.name);
    char separator = ':';
    for (const auto size : resolve(spec.shape, dims)) {
      all += concat(separator, size);
      separator = 'x';
    }
  }
  return all;
}

class RtxBackend : public OrtBackend {
 public:
  RtxBackend(const std::shared_ptr<CudaMemory>& memory, const Ort::ConstEpDevice& device,
             const BackendOptions& options)
      : OrtBackend("onnxruntime-rtx", memory, cuda_memory_info(), options.threads),
        device_(device),
        stream_(memory->device()->stream()),
        cache_(kernel_folder(options.kernel_cache, version_of(device), memory->device()->card())) {}

  bool specializes() const override { return true; }

 private:
  void add_provider(Ort::SessionOptions& options, const Artifact& artifact) const override {
    // What TensorRT does not take would be copied to the host and back, in silence.
    options.AddConfigEntry("session.disable_cpu_ep_fallback", "1");
    const auto given = rtx_options(artifact, stream_, cache_);
    options.AppendExecutionProvider_V2(
        environment(), {device_},
        std::unordered_map<std::string, std::string>(given.begin(), given.end()));
  }
  // It allocates for each run from a pool of its own.
  bool shares_arena() const override { return false; }

  Ort::ConstEpDevice device_;
  std::uintptr_t stream_;
  fs::path cache_;
};

// In a name of a folder: letters, digits and dots, all else becomes "_".
std::string in_names(const std::string& text) {
  std::string name;
  for (const char each : text) {
    const bool kept = (each >= 'a' && each <= 'z') || (each >= 'A' && each <= 'Z') ||
                      (each >= '0' && each <= '9') || each == '.';
    if (kept) {
      name += each;
    } else if (!name.ends_with('_')) {
      name += '_';
    }
  }
  return name;
}

// What an environment variable names, if that is an absolute path.
fs::path absolute_variable(const char* name) {
  const char* value = std::getenv(name);
  const fs::path path(value == nullptr ? "" : value);
  return path.is_absolute() ? path : fs::path();
}

// The user's folder as the system lists it, or nothing.
fs::path listed_home() {
  passwd entry{};
  passwd* found = nullptr;
  std::vector<char> texts(1 << 14);
  ::getpwuid_r(::getuid(), &entry, texts.data(), texts.size(), &found);
  const fs::path path(found == nullptr || found->pw_dir == nullptr ? "" : found->pw_dir);
  return path.is_absolute() ? path : fs::path();
}

// The user's folder for what can be made again, or nothing.
fs::path user_cache() {
  if (auto folder = absolute_variable("XDG_CACHE_HOME"); !folder.empty()) return folder;
  auto home = absolute_variable("HOME");
  if (home.empty()) home = listed_home();
  return home.empty() ? home : home / ".cache";
}

}  // namespace

fs::path plugin_path(const fs::path& given) {
  const char* named = std::getenv(kVariable);
  std::vector<fs::path> places;
  if (!given.empty()) {
    places = {given};
  } else if (named != nullptr && *named != '\0') {
    places = {named};
  } else {
    const auto folder = onnxruntime_folder();
    const auto packages = folder.parent_path().parent_path();  // of Python, if it is of a wheel
    places = {folder / kLibrary, packages / kPackage / kLibrary};
  }
  std::vector<std::string> texts;
  for (const auto& place : places) {
    std::error_code error;
    if (fs::is_regular_file(place, error)) return fs::weakly_canonical(place, error);
    texts.push_back(place.string());
  }
  throw Error(SANA_BACKEND_ERROR,
              concat("NVIDIA's plug-in for ONNX Runtime is not at ", listed(texts), "."),
              {.remedy = concat(kInstall, ", or name its library ", kLibrary, " in the option plugin "
                                "or in ", kVariable, ".")});
}

ProviderOptions rtx_options(const Artifact& artifact, std::uintptr_t stream, const fs::path& cache) {
  ProviderOptions options{
      {"has_user_compute_stream", "1"},
      {"user_compute_stream", std::to_string(stream)},
      {"enable_cuda_graph", "0"},
  };
  if (!cache.empty()) options.emplace("nv_runtime_cache_path", cache.string());
  const std::pair<const char*, std::int64_t DimRange::*> ends[] = {
      {"nv_profile_min_shapes", &DimRange::min},
      {"nv_profile_opt_shapes", &DimRange::opt},
      {"nv_profile_max_shapes", &DimRange::max},
  };
  for (const auto& [name, end] : ends) {
    auto shapes = profile_shapes(artifact, end);
    if (!shapes.empty()) options.emplace(name, std::move(shapes));
  }
  return options;
}

fs::path kernel_folder(const fs::path& given, const std::string& version, const Card& card) {
  const auto user = given.empty() ? user_cache() : fs::path();
  if (given.empty() && user.empty()) return {};
  const auto folder = given.empty() ? user / "sana-rt" / "kernels" : given;
  std::string name = "onnxruntime";
  for (const auto& part : {version, card.name, card.compute_capability, card.driver}) {
    name += '-' + in_names(part);
  }
  return folder / name;
}

void check_rtx() {
  environment();
  find_card();
  with_plugin_errors([] { return find_device(plugin_path({})); });
}

std::unique_ptr<Backend> open_rtx(const BackendOptions& options) {
  environment();
  const auto memory = std::make_shared<CudaMemory>(options.timeout);
  return with_plugin_errors([&] {
    const auto device = find_device(plugin_path(options.plugin));
    return std::make_unique<RtxBackend>(memory, device, options);
  });
}

}  // namespace sana_rt::runtime
