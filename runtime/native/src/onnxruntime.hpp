// ONNX Runtime's C API: sessions that bind our buffers by address.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "backend.hpp"

namespace sana_rt::runtime {

// Why ONNX Runtime cannot be used, or nothing.
std::optional<std::string> ort_missing();

// Its CPU provider.
std::unique_ptr<Backend> open_cpu(int threads);

}  // namespace sana_rt::runtime
