#include "cuda_device.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <thread>

#include "error.hpp"

namespace sana_rt::runtime {
namespace {

using Clock = std::chrono::steady_clock;

// Numbers of the driver's header, which is not needed to build this.
constexpr int kSuccess = 0;
constexpr int kOutOfMemory = 2;
constexpr int kNoDevice = 100;
constexpr int kNotReady = 600;
constexpr int kComputeCapabilityMajor = 75;
constexpr int kComputeCapabilityMinor = 76;
constexpr unsigned kNonBlocking = 1;    // a stream that does not wait for the default one
constexpr unsigned kDisableTiming = 2;  // of events

constexpr std::chrono::microseconds kShortestPause{20}, kLongestPause{500};

// After these the context answers every call with the same error.
const std::set<std::string>& losses() {
  static const std::set<std::string> names{
      "CUDA_ERROR_ILLEGAL_ADDRESS",      "CUDA_ERROR_ILLEGAL_INSTRUCTION",
      "CUDA_ERROR_MISALIGNED_ADDRESS",   "CUDA_ERROR_INVALID_ADDRESS_SPACE",
      "CUDA_ERROR_INVALID_PC",           "CUDA_ERROR_HARDWARE_STACK_ERROR",
      "CUDA_ERROR_ASSERT",               "CUDA_ERROR_LAUNCH_FAILED",
      "CUDA_ERROR_LAUNCH_TIMEOUT",       "CUDA_ERROR_ECC_UNCORRECTABLE",
      "CUDA_ERROR_NVLINK_UNCORRECTABLE", "CUDA_ERROR_EXTERNAL_DEVICE",
      "CUDA_ERROR_CONTAINED",            "CUDA_ERROR_CONTEXT_IS_DESTROYED",
      "CUDA_ERROR_MPS_CLIENT_TERMINATED", "CUDA_ERROR_TENSOR_MEMORY_LEAK",
      "CUDA_ERROR_UNKNOWN"};
  return names;
}

// The functions of libcuda.so.1 that are used here.
struct Driver {
  int (*init)(unsigned);
  int (*driver_version)(int*);
  int (*device_get)(int*, int);
  int (*device_name)(char*, int, int);
  int (*device_attribute)(int*, int, int);
  int (*context_retain)(void**, int);
  int (*context_release)(int);
  int (*context_set)(void*);
  int (*memory_info)(std::size_t*, std::size_t*);
  int (*allocate)(unsigned long long*, std::size_t);
  int (*free)(unsigned long long);
  int (*copy)(unsigned long long, unsigned long long, std::size_t, void*);
  int (*clear)(unsigned long long, unsigned char, std::size_t, void*);
  int (*stream_create)(void**, unsigned);
  int (*stream_destroy)(void*);
  int (*event_create)(void**, unsigned);
  int (*event_record)(void*, void*);
  int (*event_query)(void*);
  int (*event_destroy)(void*);
  int (*error_name)(int, const char**);
};

[[noreturn]] void throw_no_driver() {
  const char* why = ::dlerror();
  throw Error(SANA_BACKEND_ERROR,
              concat("NVIDIA's driver is not installed: ", why == nullptr ? "" : why, "."),
              {.remedy = "install NVIDIA's driver for CUDA 13."});
}

template <class Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  if (function == nullptr) throw_no_driver();
}

Driver load() {
  void* library = ::dlopen("libcuda.so.1", RTLD_NOW);
  if (library == nullptr) throw_no_driver();
  Driver driver{};
  find(library, "cuInit", driver.init);
  find(library, "cuDriverGetVersion", driver.driver_version);
  find(library, "cuDeviceGet", driver.device_get);
  find(library, "cuDeviceGetName", driver.device_name);
  find(library, "cuDeviceGetAttribute", driver.device_attribute);
  find(library, "cuDevicePrimaryCtxRetain", driver.context_retain);
  find(library, "cuDevicePrimaryCtxRelease_v2", driver.context_release);
  find(library, "cuCtxSetCurrent", driver.context_set);
  find(library, "cuMemGetInfo_v2", driver.memory_info);
  find(library, "cuMemAlloc_v2", driver.allocate);
  find(library, "cuMemFree_v2", driver.free);
  find(library, "cuMemcpyAsync", driver.copy);
  find(library, "cuMemsetD8Async", driver.clear);
  find(library, "cuStreamCreate", driver.stream_create);
  find(library, "cuStreamDestroy_v2", driver.stream_destroy);
  find(library, "cuEventCreate", driver.event_create);
  find(library, "cuEventRecord", driver.event_record);
  find(library, "cuEventQuery", driver.event_query);
  find(library, "cuEventDestroy_v2", driver.event_destroy);
  find(library, "cuGetErrorName", driver.error_name);
  return driver;
}

// Loaded once, and never unloaded.
const Driver& driver() {
  static const Driver loaded = load();
  return loaded;
}

std::string name_of(int status) {
  const char* name = nullptr;
  driver().error_name(status, &name);
  return name == nullptr ? concat("error ", status) : name;
}

// Before there is a context.
void checked(int status) {
  if (status == kSuccess) return;
  if (status == kNoDevice) throw Error(SANA_BACKEND_ERROR, "CUDA finds no GPU.");
  throw Error(SANA_BACKEND_ERROR, concat("A call of CUDA's driver failed (", name_of(status), ")."));
}

int first_device() {
  int device = 0;
  checked(driver().init(0));
  checked(driver().device_get(&device, 0));
  return device;
}

Card describe(int device) {
  char name[256] = {};
  int version = 0;
  int major = 0;
  int minor = 0;
  checked(driver().device_name(name, sizeof name - 1, device));
  checked(driver().driver_version(&version));
  checked(driver().device_attribute(&major, kComputeCapabilityMajor, device));
  checked(driver().device_attribute(&minor, kComputeCapabilityMinor, device));
  return {name, concat(major, ".", minor), concat(version / 1000, ".", version % 1000 / 10)};
}

std::uint64_t number(const void* address) { return reinterpret_cast<std::uintptr_t>(address); }

}  // namespace

Card find_card() { return describe(first_device()); }

CudaDevice::CudaDevice(double timeout) : timeout_(timeout), device_(first_device()) {
  card_ = describe(device_);
  checked(driver().context_retain(&context_, device_));
  try {
    void* stream = nullptr;
    call("cuStreamCreate", driver().stream_create, &stream, kNonBlocking);
    stream_ = number(stream);
    call("cuEventCreate", driver().event_create, &idle_, kDisableTiming);
  } catch (...) {
    close();
    throw;
  }
}

CudaDevice::~CudaDevice() { close(); }

// What a lost device held stays where it is: the driver would refuse, or wait for ever.
void CudaDevice::close() noexcept {
  if (lost_ || context_ == nullptr) return;
  driver().context_set(context_);
  if (idle_ != nullptr) driver().event_destroy(idle_);
  if (stream_ != 0) driver().stream_destroy(reinterpret_cast<void*>(stream_));
  driver().context_release(device_);
}

std::uint64_t CudaDevice::allocate(std::size_t nbytes) {
  unsigned long long address = 0;
  if (lost_) throw_lost();
  int status = driver().context_set(context_);
  if (status != kSuccess) fail("cuCtxSetCurrent", status);
  status = driver().allocate(&address, nbytes);
  if (status == kOutOfMemory) {
    const auto [free, total] = memory_info();
    throw Error(SANA_DEVICE_MEMORY_ERROR,
                concat("CUDA did not allocate ", nbytes, " bytes of ", card_.name, "; ", free, " of ",
                       total, " bytes of the GPU are free."),
                {.remedy = "free memory that other programs use, or ask for a smaller clip."});
  }
  if (status != kSuccess) fail("cuMemAlloc", status);
  try {
    clear(address, nbytes);
  } catch (...) {
    free(address);
    throw;
  }
  return address;
}

void CudaDevice::free(std::uint64_t address) noexcept {
  try {
    synchronize();
  } catch (const std::exception&) {
    // What a lost device held stays where it is; else it is given back all the same.
  }
  if (!lost_) driver().free(address);
}

void CudaDevice::copy(std::uint64_t destination, std::uint64_t source, std::size_t nbytes) {
  if (nbytes == 0) return;
  call("cuMemcpyAsync", driver().copy, destination, source, nbytes,
       reinterpret_cast<void*>(stream_));
}

void CudaDevice::clear(std::uint64_t destination, std::size_t nbytes) {
  if (nbytes == 0) return;
  call("cuMemsetD8Async", driver().clear, destination, static_cast<unsigned char>(0), nbytes,
       reinterpret_cast<void*>(stream_));
}

void CudaDevice::synchronize() {
  call("cuEventRecord", driver().event_record, idle_, reinterpret_cast<void*>(stream_));
  const auto deadline = Clock::now() + std::chrono::duration<double>(timeout_);
  auto pause = kShortestPause;
  while (!reached()) {
    if (Clock::now() > deadline) lose(concat("did not answer for ", timeout_, " seconds"));
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, kLongestPause);
  }
}

std::pair<std::uint64_t, std::uint64_t> CudaDevice::memory_info() {
  std::size_t free = 0;
  std::size_t total = 0;
  call("cuMemGetInfo", driver().memory_info, &free, &total);
  return {free, total};
}

template <class... Parameters, class... Arguments>
void CudaDevice::call(const char* name, int (*function)(Parameters...), Arguments... arguments) {
  if (lost_) throw_lost();
  int status = driver().context_set(context_);
  if (status == kSuccess) status = function(arguments...);
  if (status != kSuccess) fail(name, status);
}

bool CudaDevice::reached() {
  const int status = driver().event_query(idle_);
  if (status != kSuccess && status != kNotReady) fail("cuEventQuery", status);
  return status == kSuccess;
}

void CudaDevice::fail(const char* name, int status) {
  const auto error = name_of(status);
  if (losses().contains(error)) lose("failed with " + error);
  throw Error(SANA_BACKEND_ERROR,
              concat(name, " of CUDA's driver failed with ", error,
                     moment_.empty() ? "" : concat(" (", moment_, ")"), "."));
}

void CudaDevice::lose(const std::string& failure) {
  lost_ = true;
  failure_ = failure + (moment_.empty() ? "" : concat(" (", moment_, ")"));
  throw_lost();
}

void CudaDevice::throw_lost() const {
  throw Error(SANA_DEVICE_LOST_ERROR,
              concat(card_.name, " ", failure_, ". Its CUDA context is lost."),
              {.remedy = "restart the process. If it happens again, find the graph with "
                         "check_finite."});
}

Memory::Allocation CudaMemory::allocate(std::size_t nbytes) {
  const auto address = device_->allocate(std::max<std::size_t>(nbytes, 1));
  return {reinterpret_cast<std::byte*>(address),
          [device = device_, address](std::byte*) { device->free(address); }};
}

// The driver makes a copy from or to ordinary host memory wait inside the call, where a wait
// cannot give up. So the stream is idle before.
void CudaMemory::upload(std::byte* destination, const void* source, std::size_t nbytes) {
  device_->synchronize();
  device_->copy(number(destination), number(source), nbytes);
  device_->synchronize();
}

void CudaMemory::download(void* destination, const std::byte* source, std::size_t nbytes) {
  device_->synchronize();
  device_->copy(number(destination), number(source), nbytes);
  device_->synchronize();
}

void CudaMemory::copy(std::byte* destination, const std::byte* source, std::size_t nbytes) {
  device_->copy(number(destination), number(source), nbytes);
}

void CudaMemory::clear(std::byte* destination, std::size_t nbytes) {
  device_->clear(number(destination), nbytes);
}

}  // namespace sana_rt::runtime
