// Memory of a GPU, on the simulated driver of tests/simulator: LD_LIBRARY_PATH has its folder.
#include <doctest/doctest.h>
#include <dlfcn.h>

#include <numeric>

#include "cuda_device.hpp"
#include "error.hpp"

using namespace sana_rt::runtime;

namespace {

constexpr int kOutOfMemory = 2, kIllegalAddress = 700;

template <class Function>
Function control(const char* name) {
  void* library = ::dlopen("libcuda.so.1", RTLD_NOW);
  REQUIRE(library != nullptr);
  void* function = ::dlsym(library, name);
  REQUIRE_MESSAGE(function != nullptr, "not the simulated driver");
  return reinterpret_cast<Function>(function);
}

void fail(const char* call, int result, bool sticky = false) {
  control<void (*)(const char*, std::uint64_t, int, int)>("simFail")(call, 1, result, sticky);
}

std::string report() { return control<const char* (*)()>("simReport")(); }

template <class Work>
std::pair<sana_status, std::string> refusal(const Work& work) {
  try {
    work();
    return {SANA_OK, ""};
  } catch (const Error& error) {
    return {error.status(), error.what()};
  }
}

}  // namespace

TEST_CASE("tensors go there and back, in order") {
  CudaMemory memory(600);
  const auto [one, other] = std::pair{memory.allocate(48), memory.allocate(48)};
  const Buffer first{one.get(), DType::kFloat32, {4, 3}};
  const Buffer second{other.get(), DType::kFloat32, {4, 3}};
  std::vector<float> values(12);
  std::iota(values.begin(), values.end(), 0.0F);
  CHECK(memory.download_floats(first) == std::vector<float>(12));
  memory.upload(first, values);
  memory.copy(second.rows(1, 2), first.rows(2, 2));
  memory.clear(second.rows(2, 1));
  CHECK(memory.download_floats(first) == values);
  CHECK(memory.download_floats(second) == std::vector<float>{0, 0, 0, 6, 7, 8, 0, 0, 0, 0, 0, 0});
  const auto narrow = memory.allocate(6);
  const Buffer rounded{narrow.get(), DType::kBFloat16, {3}};
  memory.upload(rounded, std::vector<float>{1.0F, -2.5F, 3.0F});
  CHECK(memory.download_floats(rounded) == std::vector<float>{1.0F, -2.5F, 3.0F});
  CHECK(*memory.free_bytes() > 0);
}

TEST_CASE("the card is described") {
  CHECK(find_card().name.find("Simulated") == 0);
  CHECK(find_card().compute_capability.find('.') != std::string::npos);
}

TEST_CASE("memory that is refused says how much was asked for") {
  CudaMemory memory(600);
  fail("cuMemAlloc", kOutOfMemory);
  const auto [status, text] = refusal([&] { memory.allocate(12345); });
  CHECK(status == SANA_DEVICE_MEMORY_ERROR);
  CHECK(text.find("12345 bytes") != std::string::npos);
  CHECK(memory.allocate(12345) != nullptr);
}

TEST_CASE("nothing is leaked and no rule is broken") {
  INFO(report());
  CHECK(report().find("\"violations\":[]") != std::string::npos);
}

TEST_CASE("a lost device says so for ever, and what it held does not hang") {
  CudaMemory memory(600);
  memory.begin("step 1 of 2");
  const auto allocation = memory.allocate(16);
  CHECK_FALSE(memory.lost());
  fail("cuMemcpyAsync", kIllegalAddress, true);
  const auto copy = [&] { memory.copy(allocation.get(), allocation.get() + 8, 8); };
  for (int time = 0; time < 2; ++time) {
    const auto [status, text] = refusal(copy);
    CHECK(status == SANA_DEVICE_LOST_ERROR);
    CHECK(text.find("CUDA_ERROR_ILLEGAL_ADDRESS (step 1 of 2)") != std::string::npos);
  }
  CHECK(memory.lost());
  CHECK(refusal([&] { memory.check(); }).first == SANA_DEVICE_LOST_ERROR);
}
