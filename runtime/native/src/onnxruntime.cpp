#include "onnxruntime.hpp"

#include <onnxruntime_run_options_config_keys.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <set>
#include <unordered_map>

#include "cuda_device.hpp"
#include "error.hpp"
#include "ort_backend.hpp"

namespace sana_rt::runtime {
namespace {

constexpr const char* kCuda = "CUDAExecutionProvider";
constexpr std::size_t kSameAsRequested = 1;  // how the arena grows
constexpr std::uint32_t kNvidia = 0x10DE;    // its PCI vendor number

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

// A graph may write an output before it has read all inputs.
void check_overlap(const std::string& graph, const BufferMap& inputs, const BufferMap& outputs) {
  for (const auto& [name, output] : outputs) {
    for (const auto* side : {&inputs, &outputs}) {
      for (const auto& [other, buffer] : *side) {
        const bool apart = output.address >= buffer.address + buffer.nbytes() ||
                           buffer.address >= output.address + output.nbytes();
        if (other == name || apart) continue;
        throw Error(SANA_BINDING_ERROR,
                    concat("Output '", name, "' of ", graph, " shares memory with '", other, "'."),
                    {.expected = "outputs in memory of their own."});
      }
    }
  }
}

// Closes a session when the device is done with it. That of a lost device would wait for ever: it
// stays.
struct CloseSession {
  std::shared_ptr<Memory> memory;

  void operator()(Ort::Session* session) const noexcept {
    try {
      memory->check();
    } catch (const std::exception&) {
      // Said where the device was given something to do.
    }
    if (!memory->lost()) delete session;
  }
};

class OrtBinding : public Binding {
 public:
  OrtBinding(const std::string& graph, std::shared_ptr<Ort::Session> session,
             const Ort::MemoryInfo& info, std::shared_ptr<Memory> memory, const BufferMap& inputs,
             const BufferMap& outputs)
      : Binding(graph, outputs),
        session_(std::move(session)),
        memory_(std::move(memory)),
        io_(*session_) {
    // What waits for the device is our memory, which gives up in time.
    options_.AddConfigEntry(kOrtRunOptionsConfigDisableSynchronizeExecutionProviders, "1");
    for (const auto& [name, buffer] : inputs) io_.BindInput(name.c_str(), value(info, buffer));
    for (const auto& [name, buffer] : outputs) io_.BindOutput(name.c_str(), value(info, buffer));
  }

  void run() override {
    try {
      session_->Run(options_, io_);
    } catch (const Ort::Exception& error) {
      memory_->check();  // a device that failed says more
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

  std::shared_ptr<Ort::Session> session_;
  std::shared_ptr<Memory> memory_;
  Ort::RunOptions options_;
  Ort::IoBinding io_;
  std::vector<Ort::Value> values_;
};

class OrtContext : public Context {
 public:
  OrtContext(const Artifact& artifact, std::shared_ptr<Ort::Session> session,
             std::shared_ptr<Memory> memory, const Ort::MemoryInfo& info)
      : graph_(artifact.name),
        signature_(artifact.signature),
        session_(std::move(session)),
        memory_(std::move(memory)),
        info_(info) {
    check_names(graph_, "inputs", session_->GetInputNames(), signature_.inputs);
    check_names(graph_, "outputs", session_->GetOutputNames(), signature_.outputs);
  }

  std::unique_ptr<Binding> bind(const BufferMap& inputs, const BufferMap& outputs) override {
    Dims dims;
    check_buffers("The input of " + graph_, signature_.inputs, inputs, dims);
    check_buffers("The output of " + graph_, signature_.outputs, outputs, dims);
    check_overlap(graph_, inputs, outputs);
    return std::make_unique<OrtBinding>(graph_, session_, info_, memory_, inputs, outputs);
  }

 private:
  std::string graph_;
  Signature signature_;
  std::shared_ptr<Ort::Session> session_;
  std::shared_ptr<Memory> memory_;
  const Ort::MemoryInfo& info_;
};

// One arena for all sessions of a provider: they run one after another, so their activations can
// share. It stays as long as the process.
void share_arena(const char* provider, const Ort::MemoryInfo& info) {
  static std::mutex mutex;
  static std::set<std::string> shared;
  const std::lock_guard lock(mutex);
  if (!shared.insert(provider).second) return;
  const Ort::ArenaCfg arena(std::unordered_map<std::string, std::size_t>{
      {"arena_extend_strategy", kSameAsRequested}});
  environment().CreateAndRegisterAllocatorV2(provider, info, {}, arena);
}

class CpuBackend : public OrtBackend {
 public:
  explicit CpuBackend(int threads)
      : OrtBackend("onnxruntime", std::make_shared<HostMemory>(),
                   Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault), threads) {}

 private:
  void add_provider(Ort::SessionOptions& /*options*/, const Artifact& /*artifact*/) const override {}
};

class CudaBackend : public OrtBackend {
 public:
  CudaBackend(const std::shared_ptr<CudaMemory>& memory, int threads)
      : OrtBackend("onnxruntime-cuda", memory, cuda_memory_info(), threads),
        options_(cuda_options(memory->device()->stream())) {
    share_arena(kCuda, cuda_memory_info(OrtArenaAllocator));
  }

 private:
  void add_provider(Ort::SessionOptions& options, const Artifact& /*artifact*/) const override {
    Ort::CUDAProviderOptions provider;
    provider.Update({options_.begin(), options_.end()});
    options.AppendExecutionProvider_CUDA_V2(*provider);
  }

  ProviderOptions options_;
};

}  // namespace

Ort::Env& environment() {
  static Ort::Env* const env = [] {
    ::setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // it would report its use to its vendor
    check_onnxruntime();
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

Ort::MemoryInfo cuda_memory_info(OrtAllocatorType allocator) {
  return {"Cuda", OrtMemoryInfoDeviceType_GPU, kNvidia, 0, OrtDeviceMemoryType_DEFAULT, 0, allocator};
}

std::unique_ptr<Context> OrtBackend::open(const Artifact& artifact, bool lasting) {
  try {
    return std::make_unique<OrtContext>(artifact, session(artifact, lasting), memory_, info_);
  } catch (const Ort::Exception& error) {
    memory_->check();  // a device that failed says more
    throw Error(SANA_BACKEND_ERROR, concat(name_, " cannot load the graph '", artifact.name,
                                           "' from ", artifact.path.string(), ": ", error.what()));
  }
}

std::shared_ptr<Ort::Session> OrtBackend::session(const Artifact& artifact, bool lasting) const {
  Ort::SessionOptions options;
  options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);
  options.SetIntraOpNumThreads(threads_);
  options.SetInterOpNumThreads(1);
  // One block for all activations of a run fits no free piece of a shared arena.
  options.DisableMemPattern();
  for (const auto& [key, value] : session_config(shares_arena(), lasting)) {
    options.AddConfigEntry(key.c_str(), value.c_str());
  }
  // The graph is the content that was checked; its weights lie beside the file that it is from.
  const auto folder = artifact.path.parent_path();
  options.AddConfigEntry("session.model_external_initializers_file_folder_path", folder.c_str());
  add_provider(options, artifact);
  return {new Ort::Session(environment(), artifact.content.data(), artifact.content.size(), options),
          CloseSession{memory_}};
}

ProviderOptions session_config(bool shared, bool lasting) {
  ProviderOptions config{
      // Two dozen sessions, of which one runs: pools that wait must not spin.
      {"session.intra_op.allow_spinning", "0"},
      {"session.use_env_allocators", shared ? "1" : "0"},
      // Weights are not activations: closing a session gives theirs back to the system.
      {"session.use_device_allocator_for_initializers", "1"},
  };
  if (!lasting) config.emplace("session.disable_prepacking", "1");
  return config;
}

ProviderOptions cuda_options(std::uintptr_t stream) {
  return {{"device_id", "0"}, {"user_compute_stream", std::to_string(stream)}, {"use_tf32", "0"}};
}

void check_onnxruntime() {
  if (OrtGetApiBase()->GetApi(ORT_API_VERSION) != nullptr) return;
  throw Error(SANA_BACKEND_ERROR,
              concat("ONNX Runtime ", OrtGetApiBase()->GetVersionString(), " is older than 1.",
                     ORT_API_VERSION, ", which this library was built for."),
              {.remedy = "pip install --upgrade onnxruntime, and let its library be found."});
}

void check_cuda() {
  environment();
  const auto found = Ort::GetAvailableProviders();
  if (std::find(found.begin(), found.end(), kCuda) == found.end()) {
    throw Error(SANA_BACKEND_ERROR,
                concat("this build of ONNX Runtime has only ", listed(found), "."),
                {.expected = kCuda,
                 .remedy = "pip install onnxruntime-gpu, and put its libonnxruntime.so.1 and "
                           "libonnxruntime_providers_*.so in the place of those beside "
                           "libsana_rt.so."});
  }
  find_card();
}

std::unique_ptr<Backend> open_cpu(const BackendOptions& options) {
  environment();
  return std::make_unique<CpuBackend>(options.threads);
}

std::unique_ptr<Backend> open_cuda(const BackendOptions& options) {
  check_cuda();
  const auto memory = std::make_shared<CudaMemory>(options.timeout);
  try {
    return std::make_unique<CudaBackend>(memory, options.threads);
  } catch (const Ort::Exception& error) {
    throw Error(SANA_BACKEND_ERROR, concat("ONNX Runtime has no arena for CUDA: ", error.what()));
  }
}

}  // namespace sana_rt::runtime
