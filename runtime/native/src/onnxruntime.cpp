#include "onnxruntime.hpp"

#define ORT_API_MANUAL_INIT
#include <cstdlib>
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include <algorithm>
#include <mutex>
#include <set>
#include <unordered_map>

#include "error.hpp"

namespace sana_rt::runtime {
namespace {

constexpr std::size_t kSameAsRequested = 1;  // how the arena grows

// Two dozen sessions, of which one runs: pools that wait must not spin; one arena for the
// activations of all; weights are not activations, so that closing a session gives theirs back.
constexpr std::pair<const char*, const char*> kConfig[] = {
    {"session.intra_op.allow_spinning", "0"},
    {"session.use_env_allocators", "1"},
    {"session.use_device_allocator_for_initializers", "1"},
};

ONNXTensorElementDataType element_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case DType::kFloat16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case DType::kBFloat16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    case DType::kFloat8E4M3FN: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN;
    case DType::kInt64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case DType::kInt32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case DType::kUInt8: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    case DType::kBool: return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    case DType::kFloat4E2M1: break;
  }
  throw Error(SANA_BACKEND_ERROR, concat("ONNX Runtime takes no tensor of ", dtype_name(dtype), "."));
}

// The one environment of the process, with the arena that all sessions share: they run one after
// another. It lives as long as the process, as ONNX Runtime's own threads may.
Ort::Env& environment() {
  static Ort::Env* const env = [] {
    ::setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // it would report its use to its vendor
    Ort::InitApi();
    auto* made = new Ort::Env(ORT_LOGGING_LEVEL_FATAL, "sana-rt");
    const auto info = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const Ort::ArenaCfg arena(std::unordered_map<std::string, std::size_t>{
        {"arena_extend_strategy", kSameAsRequested}});
    made->CreateAndRegisterAllocator(info, arena);
    return made;
  }();
  return *env;
}

void check_names(const std::string& graph, const char* side, const std::vector<std::string>& found,
                 const std::vector<TensorSpec>& specs) {
  std::set<std::string> wanted;
  for (const auto& spec : specs) wanted.insert(spec.name);
  if (std::set<std::string>(found.begin(), found.end()) != wanted) {
    throw Error(SANA_BUNDLE_FILE_ERROR,
                concat("The file of the graph '", graph, "' has the ", side, " ", listed(found), "."),
                {.expected = concat(listed(wanted), ", as the manifest says."),
                 .remedy = "export the checkpoint again."});
  }
}

void check_buffers(const std::string& where, const std::vector<TensorSpec>& specs,
                   const BufferMap& buffers, Dims& dims) {
  for (const auto& spec : specs) {
    const auto found = buffers.find(spec.name);
    if (found == buffers.end() || found->second.dtype != spec.dtype || specs.size() != buffers.size()) {
      throw Error(SANA_BINDING_ERROR, concat(where, " '", spec.name, "' has no buffer that fits."),
                  {.expected = concat("a buffer of ", dtype_name(spec.dtype), ".")});
    }
    unify(spec, found->second.shape, dims);
  }
}

class OrtBinding : public Binding {
 public:
  OrtBinding(const std::string& graph, Ort::Session& session, const Ort::MemoryInfo& info,
             const BufferMap& inputs, const BufferMap& outputs)
      : Binding(graph, outputs), session_(session), io_(session) {
    for (const auto& [name, buffer] : inputs) io_.BindInput(name.c_str(), value(info, buffer));
    for (const auto& [name, buffer] : outputs) io_.BindOutput(name.c_str(), value(info, buffer));
  }

  void run() override {
    try {
      session_.Run(Ort::RunOptions{nullptr}, io_);
    } catch (const Ort::Exception& error) {
      throw Error(SANA_BACKEND_ERROR,
                  concat("ONNX Runtime failed in the graph '", graph(), "': ", error.what()));
    }
  }

 private:
  const Ort::Value& value(const Ort::MemoryInfo& info, const Buffer& buffer) {
    values_.push_back(Ort::Value::CreateTensor(info, buffer.address, buffer.nbytes(),
                                               buffer.shape.data(), buffer.shape.size(),
                                               element_type(buffer.dtype)));
    return values_.back();
  }

  Ort::Session& session_;
  Ort::IoBinding io_;
  std::vector<Ort::Value> values_;
};

class OrtContext : public Context {
 public:
  OrtContext(std::string graph, Signature signature, const std::filesystem::path& path,
             const Ort::SessionOptions& options, const Ort::MemoryInfo& info)
      : graph_(std::move(graph)),
        signature_(std::move(signature)),
        info_(info),
        session_(environment(), path.c_str(), options) {
    check_names(graph_, "inputs", session_.GetInputNames(), signature_.inputs);
    check_names(graph_, "outputs", session_.GetOutputNames(), signature_.outputs);
  }

  std::unique_ptr<Binding> bind(const BufferMap& inputs, const BufferMap& outputs) override {
    Dims dims;
    check_buffers("The input of " + graph_, signature_.inputs, inputs, dims);
    check_buffers("The output of " + graph_, signature_.outputs, outputs, dims);
    return std::make_unique<OrtBinding>(graph_, session_, info_, inputs, outputs);
  }

 private:
  std::string graph_;
  Signature signature_;
  const Ort::MemoryInfo& info_;
  Ort::Session session_;
};

class OrtBackend : public Backend {
 public:
  OrtBackend(std::string name, std::unique_ptr<Memory> memory, Ort::MemoryInfo info, int threads)
      : name_(std::move(name)),
        memory_(std::move(memory)),
        info_(std::move(info)),
        threads_(threads) {}

  const std::string& name() const override { return name_; }
  Memory& memory() override { return *memory_; }

  std::unique_ptr<Context> open(const std::string& graph, const Signature& signature,
                                const std::filesystem::path& path, bool lasting) override {
    try {
      return std::make_unique<OrtContext>(graph, signature, path, options(lasting), info_);
    } catch (const Ort::Exception& error) {
      throw Error(SANA_BACKEND_ERROR, concat(name_, " cannot load the graph '", graph, "' from ",
                                             path.string(), ": ", error.what()));
    }
  }

 private:
  Ort::SessionOptions options(bool lasting) const {
    Ort::SessionOptions options;
    options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);
    options.SetIntraOpNumThreads(threads_);
    options.SetInterOpNumThreads(1);
    // One block for all activations of a run fits no free piece of a shared arena.
    options.DisableMemPattern();
    for (const auto& [key, value] : kConfig) options.AddConfigEntry(key, value);
    if (!lasting) options.AddConfigEntry("session.disable_prepacking", "1");
    return options;
  }

  std::string name_;
  std::unique_ptr<Memory> memory_;
  Ort::MemoryInfo info_;
  int threads_;
};

}  // namespace

std::optional<std::string> ort_missing() {
  if (OrtGetApiBase()->GetApi(ORT_API_VERSION) != nullptr) return std::nullopt;
  return concat("ONNX Runtime ", OrtGetApiBase()->GetVersionString(), " is older than 1.",
                ORT_API_VERSION, ", which this library was built for");
}

std::unique_ptr<Backend> open_cpu(int threads) {
  environment();
  return std::make_unique<OrtBackend>("onnxruntime", std::make_unique<HostMemory>(),
                                      Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault),
                                      threads);
}

}  // namespace sana_rt::runtime
