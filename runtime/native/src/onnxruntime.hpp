// ONNX Runtime's C API: sessions that bind our buffers by address. Its CPU provider everywhere, its
// CUDA provider on NVIDIA GPUs, which has not been run on hardware yet.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "backend.hpp"

namespace sana_rt::runtime {

// The options of a provider, as texts.
using ProviderOptions = std::map<std::string, std::string>;

// The entries of a session's configuration; `shared` says that sessions share our arena.
ProviderOptions session_config(bool shared, bool lasting);

// The first GPU and our stream; float32 stays float32 (no TF32).
ProviderOptions cuda_options(std::uintptr_t stream);

// A BackendError where ONNX Runtime is too old.
void check_onnxruntime();
// Also where it has no CUDA provider, or there is no card.
void check_cuda();

std::unique_ptr<Backend> open_cpu(const BackendOptions& options);
std::unique_ptr<Backend> open_cuda(const BackendOptions& options);

}  // namespace sana_rt::runtime
