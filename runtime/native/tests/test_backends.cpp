// What backends are told and what they refuse, as Python computed it (tests/data/native).
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "backend.hpp"
#include "cuda_device.hpp"
#include "data.hpp"
#include "error.hpp"
#include "onnxruntime_rtx.hpp"

namespace fs = std::filesystem;
using namespace sana_rt::runtime;

namespace {

const nlohmann::json& vectors() {
  static const auto all = read_json(root() / "tests/data/native/vectors.json");
  return all;
}

TensorSpec spec_of(const nlohmann::json& one) {
  TensorSpec spec{one[0], dtype_of(one[1].get<std::string>(), "a vector"), {}};
  for (const auto& dim : one[2]) {
    if (dim.is_string()) spec.shape.emplace_back(dim.get<std::string>());
    else spec.shape.emplace_back(dim.get<std::int64_t>());
  }
  return spec;
}

Variant variant_of(const nlohmann::json& one) {
  Variant variant{};
  variant.dtype = dtype_of(one["dtype"].get<std::string>(), "a vector");
  const auto form = one["form"].get<std::string>();
  if (form != "plain") variant.quantization = {"max", "", form == "device"};
  return variant;
}

const Candidate& candidate(const std::string& name) {
  for (const auto& one : candidates()) {
    if (one.name == name) return one;
  }
  FAIL("there is no backend ", name);
  std::abort();
}

}  // namespace

TEST_CASE("sessions are configured as in Python") {
  for (const auto& one : vectors()["sessions"]) {
    CHECK(session_config(true, one["lasting"]) == one["entries"].get<ProviderOptions>());
  }
  CHECK(session_config(false, true).at("session.use_env_allocators") == "0");
}

TEST_CASE("the CUDA provider is told what Python tells it") {
  CHECK(cuda_options(0xABC) == vectors()["cuda"].get<ProviderOptions>());
}

TEST_CASE("the plug-in is told what Python tells it") {
  for (const auto& one : vectors()["artifacts"]) {
    Artifact artifact{"x", {}, "x.onnx", "", {}};
    for (const auto& input : one["inputs"]) artifact.signature.inputs.push_back(spec_of(input));
    for (const auto& [dim, range] : one["sizes"].items()) {
      artifact.sizes[dim] = {range[0], range[1], range[2]};
    }
    CHECK(rtx_options(artifact, one["stream"].get<std::uintptr_t>(), "kernels") ==
          one["options"].get<ProviderOptions>());
  }
}

TEST_CASE("backends play and refuse the variants that Python's do, in its words") {
  for (const auto& one : vectors()["offers"]) {
    INFO(one.dump());
    const auto refusal = candidate(one["backend"]).refusal(variant_of(one));
    CHECK(refusal.has_value() == !one["refusal"].is_null());
    if (refusal) CHECK(*refusal == one["refusal"].get<std::string>());
  }
}

TEST_CASE("what is compiled for a card is kept where Python keeps it") {
  const Card card{"NVIDIA GeForce RTX 5090", "12.0", "13.0"};
  CHECK(kernel_folder("/k", "0.5.0", card) ==
        "/k/onnxruntime-0.5.0-NVIDIA_GeForce_RTX_5090-12.0-13.0");
}

TEST_CASE("what is compiled is never kept beside where the program runs") {
  const auto folder = [](const char* cache, const char* home) {
    cache == nullptr ? ::unsetenv("XDG_CACHE_HOME") : ::setenv("XDG_CACHE_HOME", cache, 1);
    home == nullptr ? ::unsetenv("HOME") : ::setenv("HOME", home, 1);
    return kernel_folder({}, "1", {"Card", "12.0", "13.0"}).parent_path();
  };
  const std::string home = std::getenv("HOME") == nullptr ? "" : std::getenv("HOME");
  CHECK(folder("/cache", "/one") == "/cache/sana-rt/kernels");
  CHECK(folder("cache", "/one") == "/one/.cache/sana-rt/kernels");
  CHECK(folder(nullptr, "/one") == "/one/.cache/sana-rt/kernels");
  for (const char* each : {static_cast<const char*>(nullptr), "", "here"}) {
    const auto listed = folder(nullptr, each);
    CHECK((listed.empty() || listed.is_absolute()));
  }
  if (!home.empty()) ::setenv("HOME", home.c_str(), 1);
  CHECK(rtx_options({"x", {}, "x.onnx", "", {}}, 1, {}).contains("nv_runtime_cache_path") == false);
}

TEST_CASE("an emulation is of the same recipe, calibration and weights") {
  const Calibration calibration{"max", "c", "p", "s", 3};
  Variant device{};
  device.quantization = {"mixed", "r", true, calibration};
  device.source = {"checkpoint", "diffusers", "s", std::nullopt};
  const auto emulates = [&](auto change) {
    auto variant = device;
    variant.quantization->device = false;
    change(variant);
    return is_emulation(variant, device);
  };
  CHECK(emulates([](auto&) {}));
  CHECK_FALSE(emulates([](auto& one) { one.quantization->device = true; }));
  CHECK_FALSE(emulates([](auto& one) { one.quantization->recipe_sha256 = "other"; }));
  CHECK_FALSE(emulates([](auto& one) { one.quantization->calibration.reset(); }));
  CHECK_FALSE(emulates([](auto& one) { one.quantization->calibration->passes = 4; }));
  CHECK_FALSE(emulates([](auto& one) { one.source.sha256 = "other"; }));
  CHECK_FALSE(emulates([](auto& one) { one.source.merged = Merged{"s", {{"l", "h", 1.0}}}; }));
}

TEST_CASE("a quoted text ends between two characters") {
  CHECK(in_quotes(std::string(100, 'a')) == "'" + std::string(100, 'a') + "'");
  CHECK(in_quotes(std::string(99, 'a') + "\u5706") == "'" + std::string(99, 'a') + "...'");
  CHECK(in_quotes(std::string(97, 'a') + "\u5706b") == "'" + std::string(97, 'a') + "\u5706...'");
}

TEST_CASE("float32 is rounded to bfloat16 as in Python, and comes back") {
  HostMemory memory;
  const auto allocation = memory.allocate(2);
  const Buffer buffer{allocation.get(), DType::kBFloat16, {1}};
  for (const auto& one : vectors()["bfloat16"]) {
    const auto value = std::bit_cast<float>(one["float32"].get<std::uint32_t>());
    memory.upload(buffer, std::span(&value, 1));
    std::uint16_t bits = 0;
    std::memcpy(&bits, buffer.address, sizeof bits);
    CHECK(bits == one["bfloat16"].get<std::uint16_t>());
    const auto widened = std::bit_cast<std::uint32_t>(memory.download_floats(buffer)[0]);
    CHECK(widened == std::uint32_t{bits} << 16U);
  }
}

TEST_CASE("a plug-in that is not there is named, with what installs it") {
  try {
    plugin_path("/no/such/library.so");
    FAIL("it was found");
  } catch (const Error& error) {
    CHECK(error.status() == SANA_BACKEND_ERROR);
    CHECK(std::string(error.what()).find("/no/such/library.so") != std::string::npos);
    CHECK(std::string(error.what()).find("pip install") != std::string::npos);
  }
}
