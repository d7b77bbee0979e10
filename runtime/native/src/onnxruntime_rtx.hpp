// NVIDIA's plug-in for ONNX Runtime: TensorRT-RTX compiles graphs when they are loaded. Graphs in
// TensorRT's operators (NVFP4) are played as they are. Not run on hardware yet.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "cuda_device.hpp"
#include "onnxruntime.hpp"

namespace sana_rt::runtime {

// The library of the plug-in: `given`, else $SANA_RT_PLUGIN, else where its wheel puts it beside
// ONNX Runtime's. A BackendError if there is none.
std::filesystem::path plugin_path(const std::filesystem::path& given);

// What the plug-in is told: our stream, the sizes, and where compiled kernels are kept. It captures
// no CUDA graphs of its own: those would hold the addresses of the first run.
ProviderOptions rtx_options(const Artifact& artifact, std::uintptr_t stream,
                            const std::filesystem::path& cache);

// Where the plug-in of a version keeps what it compiled for a card: in `given`, or in the user's
// folder for what can be made again. Nothing where there is no such folder: it keeps nothing then.
std::filesystem::path kernel_folder(const std::filesystem::path& given, const std::string& version,
                                    const Card& card);

// An Error where there is no card, or the plug-in is missing, does not load, or finds no card.
void check_rtx();

std::unique_ptr<Backend> open_rtx(const BackendOptions& options);

}  // namespace sana_rt::runtime
