// The driver's symbols, under the names and with the signatures of the real libcuda.so.1.
#include <algorithm>
#include <chrono>
#include <cstring>

#include "device.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {

// What a call needs, and what it may not do.
enum Rules : unsigned {
  kAlways = 1,        // works without initialization and after the device has failed
  kNoContext = 2,     // needs no current context
  kUnsafe = 4,        // "potentially unsafe" while a stream is captured
  kSynchronizes = 8,  // waits for the device
};

// The groups of calls that a fault can name.
const std::map<std::string, std::string> kGroups{
    {"cuMemAlloc", "allocation"},      {"cuMemAllocHost", "allocation"},
    {"cuMemHostAlloc", "allocation"},  {"cuGraphLaunch", "launch"},
    {"simLaunch", "launch"},           {"cuMemcpy", "copy"},
    {"cuMemcpyAsync", "copy"},         {"cuMemcpyHtoD", "copy"},
    {"cuMemcpyHtoDAsync", "copy"},     {"cuMemcpyDtoH", "copy"},
    {"cuMemcpyDtoHAsync", "copy"},     {"cuMemcpyDtoD", "copy"},
    {"cuMemcpyDtoDAsync", "copy"},     {"cuMemsetD8", "clear"},
    {"cuMemsetD8Async", "clear"},      {"cuMemsetD32", "clear"},
    {"cuMemsetD32Async", "clear"},
};

void inject(const std::string& call) {
  const auto group = kGroups.find(call);
  for (auto fault = device.faults.begin(); fault != device.faults.end(); ++fault) {
    const bool meant = fault->call == "*" || fault->call == call ||
                       (group != kGroups.end() && fault->call == group->second);
    if (!meant || --fault->remaining != 0) continue;
    const Fault due = *fault;
    device.faults.erase(fault);
    if (due.sticky) {
      device.work.drop();
      device.sticky = due.result;
    }
    fail(due.result, "as the test demanded");
  }
}

void check_failed() {
  if (device.sticky != CUDA_SUCCESS) fail(device.sticky, "the device has failed");
}

void enter(const std::string& call, unsigned rules) {
  if (rules & kAlways) return;
  check_failed();
  if (!device.initialized) violate(CUDA_ERROR_NOT_INITIALIZED, "cuInit was not called");
  if (!(rules & kNoContext)) {
    if (current_context == nullptr)
      violate(CUDA_ERROR_INVALID_CONTEXT, "this thread has no current context");
    if (device.retained == 0) violate(CUDA_ERROR_CONTEXT_IS_DESTROYED, "the context was released");
  }
  inject(call);
  device.work.run_ahead();
  check_failed();
  if (rules & kUnsafe) device.unsafe(call.c_str());
}

// Count a call, refuse it where it must fail, do it, and turn what it throws into a result.
template <class Body>
CUresult call(const char* name, unsigned rules, Body body) {
  std::unique_lock<std::recursive_mutex> lock(device.mutex);
  auto* outer = held_lock;
  const std::string outer_call = current_call;
  held_lock = &lock;
  current_call = name;
  ++device.calls[name];
  CUresult result = CUDA_SUCCESS;
  try {
    enter(name, rules);
    body();
  } catch (const Failure& failure) {
    result = failure.result;
    if (failure.violation) device.violation(failure.reason);
    if (result != CUDA_ERROR_NOT_READY)
      device.errors.push_back(std::string(name) + ": " + failure.reason);
  }
  held_lock = outer;
  current_call = outer_call;
  return result;
}

double milliseconds() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

template <class T>
void give(T* out, T value) {
  if (out == nullptr) violate(CUDA_ERROR_INVALID_VALUE, "a result has nowhere to go");
  *out = value;
}

// --- Copies ---

enum class Side { device, pinned, pageable };

Side side_of(const Block* block) {
  if (block == nullptr) return Side::pageable;
  return block->place == Place::device ? Side::device : Side::pinned;
}

std::string kind_of(Side from, Side to) {
  const char* names[] = {"device", "pinned", "pageable"};
  return std::string(names[static_cast<int>(from)]) + " to " + names[static_cast<int>(to)];
}

void copy(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream handle, bool wait) {
  if (bytes == 0) return;
  const Range reads{from, bytes, false}, writes{to, bytes, true};
  Stream& stream = device.stream(handle);
  const Side source = side_of(device.memory.around(reads));
  const Side target = side_of(device.memory.around(writes));
  const std::string kind = kind_of(source, target);
  if (from < to + bytes && to < from + bytes)
    violate(CUDA_ERROR_INVALID_VALUE, "the copy's source and destination overlap");
  const bool pageable = source == Side::pageable || target == Side::pageable;
  if (pageable) {  // it may synchronize, and the address may be nothing's when a graph runs
    device.refuse_capture(stream, "a copy with pageable memory in");
    device.unsafe(current_call.c_str());
  }
  std::shared_ptr<std::vector<unsigned char>> staged;
  if (source == Side::pageable) {
    const auto* host = reinterpret_cast<const unsigned char*>(from);
    staged = std::make_shared<std::vector<unsigned char>>(host, host + bytes);
  }
  Task task{current_call + " (" + kind + ")", {writes}, nullptr};
  if (!staged) task.ranges.push_back(reads);
  task.run = [=] {
    const unsigned char* source_bytes = staged ? staged->data() : device.memory.bytes(reads);
    std::memcpy(device.memory.bytes(writes), source_bytes, bytes);
    device.bytes[kind] += bytes;
  };
  device.submit(stream, std::move(task));
  const bool host_waits = target == Side::pageable || (wait && source != Side::device) ||
                          (wait && target == Side::pinned);
  if (host_waits && !stream.capture) device.work.complete(stream.tail);
}

void clear(CUdeviceptr at, std::size_t count, std::size_t width, unsigned value, CUstream handle) {
  if (count == 0) return;
  const Range range{at, count * width, true};
  if (at % width != 0) violate(CUDA_ERROR_INVALID_VALUE, "the address is not aligned");
  if (side_of(device.memory.around(range)) == Side::pageable)
    violate(CUDA_ERROR_INVALID_VALUE, hex(at) + " is not memory of the device");
  device.submit(device.stream(handle), {current_call, {range}, [=] {
                  unsigned char* bytes = device.memory.bytes(range);
                  for (std::size_t index = 0; index < count; ++index)
                    std::memcpy(bytes + index * width, &value, width);
                  device.bytes["cleared"] += range.bytes;
                }});
}

void release_memory(Place place, CUdeviceptr address) {
  if (address == 0) return;
  Block& block = device.memory.started_at(place, address);
  if (device.work.hung) device.work.complete_all();
  std::vector<std::uint64_t> users;
  for (const Access& access : block.pending) users.push_back(access.operation);
  if (!users.empty()) {
    // cuMemFree "may perform implicit synchronization", as it does; cuMemFreeHost says nothing.
    if (place == Place::pinned)
      device.violation("pinned memory is freed while " + block.pending[0].name + " uses it");
    ++device.calls["implicit synchronization"];
    device.work.complete(users);
  }
  device.memory.release(block);
}

// --- Captures ---

Capture& ended(Stream& stream, CUstream handle) {
  if (!stream.capture) violate(CUDA_ERROR_ILLEGAL_STATE, "the stream is not captured");
  Capture& capture = *stream.capture;
  if (capture.origin != handle) {
    device.invalidate(capture, "the capture was ended in another stream than it began in");
    fail(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, capture.broken);
  }
  if (capture.mode != CU_STREAM_CAPTURE_MODE_RELAXED &&
      capture.thread != std::this_thread::get_id())
    fail(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "another thread began the capture");
  return capture;
}

bool is_joined(const Graph& graph, const std::vector<std::size_t>& ends) {
  for (std::size_t node = 0; node < graph.nodes.size(); ++node)
    if (std::none_of(ends.begin(), ends.end(),
                     [&](std::size_t end) { return graph.precedes(node, end); }))
      return false;
  return true;
}

void leave(Capture& capture) {
  capture.ended = true;
  for (auto& [handle, stream] : device.streams.objects)
    if (stream.capture.get() == &capture) {
      stream.nodes.clear();
      stream.capture.reset();
    }
  std::erase_if(device.captures, [&](const auto& other) { return other.get() == &capture; });
}

// Nodes that touch the same bytes need an order.
void check_races(const Graph& graph) {
  for (std::size_t later = 0; later < graph.nodes.size(); ++later)
    for (std::size_t earlier = 0; earlier < later; ++earlier)
      for (const Range& one : graph.nodes[earlier].task->ranges)
        for (const Range& other : graph.nodes[later].task->ranges)
          if ((one.writes || other.writes) && one.address < other.address + other.bytes &&
              other.address < one.address + one.bytes && !graph.precedes(earlier, later))
            return device.violation("in a graph, nothing orders " +
                                    graph.nodes[earlier].task->name + " and " +
                                    graph.nodes[later].task->name);
}

void join_capture(Stream& stream, const Event& event) {
  const auto& capture = event.capture;
  if (capture->ended)
    violate(CUDA_ERROR_CAPTURED_EVENT, "the event was last recorded in a capture that has ended");
  if (stream.capture && stream.capture != capture) {
    device.invalidate(*stream.capture, "the wait would merge two captures");
    device.invalidate(*capture, "the wait would merge two captures");
    fail(CUDA_ERROR_STREAM_CAPTURE_MERGE, capture->broken);
  }
  stream.capture = capture;
  for (const std::size_t node : event.nodes)
    if (std::find(stream.nodes.begin(), stream.nodes.end(), node) == stream.nodes.end())
      stream.nodes.push_back(node);
}

void refuse_captured(const Event& event) {
  if (event.capture) fail(CUDA_ERROR_CAPTURED_EVENT, "the event was last recorded in a capture");
}

void record(CUevent handle, CUstream stream_handle) {
  Event& event = device.events.at(handle);
  Stream& stream = device.stream(stream_handle);
  if (stream.capture) {
    event.capture = stream.capture;
    event.nodes = stream.nodes;
    event.recorded = false;
    return;
  }
  const auto time = event.time = std::make_shared<double>(0);
  device.submit(stream, {"cuEventRecord", {}, [time] { *time = milliseconds(); }});
  event.capture.reset();
  event.recorded = true;
  event.operation = stream.tail.at(0);
  event.clock = stream.clock;
}

void instantiate(CUgraphExec* exec, CUgraph handle) {
  const auto graph = device.graphs.at(handle);
  check_races(*graph);
  for (const Node& node : graph->nodes)
    for (const Range& range : node.task->ranges) device.memory.around(range);
  give(exec, device.execs.add({std::make_shared<const Graph>(*graph), {}, {}}));
}

}  // namespace

// --- Initialization, device, context -----------------------------------------------------------

API CUresult cuInit(unsigned int Flags) {
  return call("cuInit", kAlways, [] {
    if (device.card.count == 0) fail(CUDA_ERROR_NO_DEVICE, "there is no device");
    device.initialized = true;
  });
}

API CUresult cuDriverGetVersion(int* driverVersion) {
  return call("cuDriverGetVersion", kAlways, [&] { give(driverVersion, device.card.driver); });
}

API CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  return call("cuDeviceGet", kNoContext, [&] {
    if (ordinal < 0 || ordinal >= ::device.card.count)
      violate(CUDA_ERROR_INVALID_DEVICE, "there is no device " + std::to_string(ordinal));
    give(device, ordinal);
  });
}

API CUresult cuDeviceGetCount(int* count) {
  return call("cuDeviceGetCount", kNoContext, [&] { give(count, device.card.count); });
}

API CUresult cuDeviceGetName(char* name, int len, CUdevice dev) {
  return call("cuDeviceGetName", kNoContext, [&] {
    if (len <= 0) violate(CUDA_ERROR_INVALID_VALUE, "no room for the name");
    std::strncpy(name, device.card.name.c_str(), static_cast<std::size_t>(len));
    name[len - 1] = '\0';
  });
}

API CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice dev) {
  return call("cuDeviceGetUuid", kNoContext, [&] {
    std::memset(uuid->bytes, 0, sizeof uuid->bytes);
    std::strncpy(uuid->bytes, "simulated card", sizeof uuid->bytes);
  });
}

API CUresult cuDeviceTotalMem_v2(std::size_t* bytes, CUdevice dev) {
  return call("cuDeviceTotalMem", kNoContext, [&] { give(bytes, device.memory.total); });
}

API CUresult cuDeviceGetAttribute(int* pi, CUdevice_attribute attrib, CUdevice dev) {
  return call("cuDeviceGetAttribute", kNoContext, [&] {
    switch (attrib) {
      case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return give(pi, device.card.major);
      case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return give(pi, device.card.minor);
      case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return give(pi, 170);
      case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return give(pi, 32);
      case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: return give(pi, 1);
      case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY: return give(pi, 1);
      case CU_DEVICE_ATTRIBUTE_INTEGRATED: return give(pi, 0);
      case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: return give(pi, 0);
      default: fail(CUDA_ERROR_INVALID_VALUE, "attribute " + std::to_string(attrib) + " is not simulated");
    }
  });
}

API CUresult cuDevicePrimaryCtxRetain(CUcontext* pctx, CUdevice dev) {
  return call("cuDevicePrimaryCtxRetain", kNoContext, [&] {
    give(pctx, device.primary());
    ++device.retained;
  });
}

API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice dev) {
  return call("cuDevicePrimaryCtxRelease", kNoContext | kAlways, [] {
    if (device.retained == 0) violate(CUDA_ERROR_INVALID_CONTEXT, "released more than retained");
    --device.retained;
  });
}

API CUresult cuDevicePrimaryCtxGetState(CUdevice dev, unsigned int* flags, int* active) {
  return call("cuDevicePrimaryCtxGetState", kNoContext, [&] {
    give(flags, 0u);
    give(active, static_cast<int>(device.retained != 0));
  });
}

API CUresult cuCtxSetCurrent(CUcontext ctx) {
  return call("cuCtxSetCurrent", kAlways, [&] {
    if (ctx != nullptr && ctx != device.primary())
      violate(CUDA_ERROR_INVALID_CONTEXT, "not a context");
    current_context = ctx;
  });
}

API CUresult cuCtxGetCurrent(CUcontext* pctx) {
  return call("cuCtxGetCurrent", kAlways, [&] { give(pctx, current_context); });
}

API CUresult cuCtxGetDevice(CUdevice* device) {
  return call("cuCtxGetDevice", 0, [&] { give(device, 0); });
}

API CUresult cuCtxSynchronize() {
  return call("cuCtxSynchronize", kUnsafe, [] {
    for (auto& [handle, stream] : device.streams.objects)
      device.refuse_capture(stream, "cuCtxSynchronize waits for");
    device.work.complete_all();
  });
}

// --- Memory ------------------------------------------------------------------------------------

API CUresult cuMemAlloc_v2(CUdeviceptr* dptr, std::size_t bytesize) {
  return call("cuMemAlloc", kUnsafe, [&] {
    give(dptr, device.memory.allocate(Place::device, bytesize, allocation_label));
  });
}

API CUresult cuMemFree_v2(CUdeviceptr dptr) {
  return call("cuMemFree", kUnsafe, [&] { release_memory(Place::device, dptr); });
}

API CUresult cuMemAllocHost_v2(void** pp, std::size_t bytesize) {
  return call("cuMemAllocHost", kUnsafe, [&] {
    const auto at = device.memory.allocate(Place::pinned, bytesize, allocation_label);
    give(pp, reinterpret_cast<void*>(at));
  });
}

API CUresult cuMemHostAlloc(void** pp, std::size_t bytesize, unsigned int Flags) {
  return call("cuMemHostAlloc", kUnsafe, [&] {
    const auto at = device.memory.allocate(Place::pinned, bytesize, allocation_label);
    give(pp, reinterpret_cast<void*>(at));
  });
}

API CUresult cuMemFreeHost(void* p) {
  return call("cuMemFreeHost", kUnsafe,
              [&] { release_memory(Place::pinned, reinterpret_cast<CUdeviceptr>(p)); });
}

API CUresult cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
  return call("cuMemGetInfo", 0, [&] {
    give(free, device.memory.total - device.memory.live_bytes[0]);
    give(total, device.memory.total);
  });
}

API CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* pdptr, void* p, unsigned int Flags) {
  return call("cuMemHostGetDevicePointer", 0, [&] {
    const auto address = reinterpret_cast<CUdeviceptr>(p);
    if (side_of(device.memory.around({address, 1, false})) != Side::pinned)
      violate(CUDA_ERROR_INVALID_VALUE, hex(address) + " is not pinned memory");
    give(pdptr, address);
  });
}

API CUresult cuMemcpy(CUdeviceptr dst, CUdeviceptr src, std::size_t ByteCount) {
  return call("cuMemcpy", kUnsafe, [&] { copy(dst, src, ByteCount, nullptr, true); });
}

API CUresult cuMemcpyAsync(CUdeviceptr dst, CUdeviceptr src, std::size_t ByteCount, CUstream hStream) {
  return call("cuMemcpyAsync", 0, [&] { copy(dst, src, ByteCount, hStream, false); });
}

API CUresult cuMemcpyHtoD_v2(CUdeviceptr dstDevice, const void* srcHost, std::size_t ByteCount) {
  return call("cuMemcpyHtoD", kUnsafe, [&] {
    copy(dstDevice, reinterpret_cast<CUdeviceptr>(srcHost), ByteCount, nullptr, true);
  });
}

API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr dstDevice, const void* srcHost, std::size_t ByteCount,
                                  CUstream hStream) {
  return call("cuMemcpyHtoDAsync", 0, [&] {
    copy(dstDevice, reinterpret_cast<CUdeviceptr>(srcHost), ByteCount, hStream, false);
  });
}

API CUresult cuMemcpyDtoH_v2(void* dstHost, CUdeviceptr srcDevice, std::size_t ByteCount) {
  return call("cuMemcpyDtoH", kUnsafe, [&] {
    copy(reinterpret_cast<CUdeviceptr>(dstHost), srcDevice, ByteCount, nullptr, true);
  });
}

API CUresult cuMemcpyDtoHAsync_v2(void* dstHost, CUdeviceptr srcDevice, std::size_t ByteCount,
                                  CUstream hStream) {
  return call("cuMemcpyDtoHAsync", 0, [&] {
    copy(reinterpret_cast<CUdeviceptr>(dstHost), srcDevice, ByteCount, hStream, false);
  });
}

API CUresult cuMemcpyDtoD_v2(CUdeviceptr dstDevice, CUdeviceptr srcDevice, std::size_t ByteCount) {
  return call("cuMemcpyDtoD", kUnsafe,
              [&] { copy(dstDevice, srcDevice, ByteCount, nullptr, true); });
}

API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr dstDevice, CUdeviceptr srcDevice, std::size_t ByteCount,
                                  CUstream hStream) {
  return call("cuMemcpyDtoDAsync", 0,
              [&] { copy(dstDevice, srcDevice, ByteCount, hStream, false); });
}

API CUresult cuMemsetD8_v2(CUdeviceptr dstDevice, unsigned char uc, std::size_t N) {
  return call("cuMemsetD8", kUnsafe, [&] { clear(dstDevice, N, 1, uc, nullptr); });
}

API CUresult cuMemsetD8Async(CUdeviceptr dstDevice, unsigned char uc, std::size_t N, CUstream hStream) {
  return call("cuMemsetD8Async", 0, [&] { clear(dstDevice, N, 1, uc, hStream); });
}

API CUresult cuMemsetD32_v2(CUdeviceptr dstDevice, unsigned int ui, std::size_t N) {
  return call("cuMemsetD32", kUnsafe, [&] { clear(dstDevice, N, 4, ui, nullptr); });
}

API CUresult cuMemsetD32Async(CUdeviceptr dstDevice, unsigned int ui, std::size_t N, CUstream hStream) {
  return call("cuMemsetD32Async", 0, [&] { clear(dstDevice, N, 4, ui, hStream); });
}

// --- Streams -----------------------------------------------------------------------------------

API CUresult cuStreamCreate(CUstream* phStream, unsigned int Flags) {
  return call("cuStreamCreate", 0, [&] {
    const bool blocking = Flags != CU_STREAM_NON_BLOCKING;
    give(phStream, device.streams.add({++device.lanes, blocking, Flags, {}, {}, nullptr, {}}));
  });
}

API CUresult cuStreamDestroy_v2(CUstream hStream) {
  return call("cuStreamDestroy", 0, [&] {
    Stream& stream = device.streams.at(hStream);
    if (stream.capture) device.invalidate(*stream.capture, "a captured stream was destroyed");
    device.streams.objects.erase(hStream);
  });
}

API CUresult cuStreamSynchronize(CUstream hStream) {
  return call("cuStreamSynchronize", 0, [&] {
    Stream& stream = device.stream(hStream);
    device.refuse_capture(stream, "cuStreamSynchronize waits for");
    device.unsafe("cuStreamSynchronize");
    device.work.complete(stream.tail);
  });
}

API CUresult cuStreamQuery(CUstream hStream) {
  return call("cuStreamQuery", 0, [&] {
    Stream& stream = device.stream(hStream);
    device.refuse_capture(stream, "cuStreamQuery asks for");
    device.unsafe("cuStreamQuery");
    const auto done = [&] {
      return std::none_of(stream.tail.begin(), stream.tail.end(),
                          [](auto id) { return device.work.is_pending(id); });
    };
    if (done()) return;
    device.work.progress(stream.tail);
    fail(CUDA_ERROR_NOT_READY, "work is left");
  });
}

API CUresult cuStreamWaitEvent(CUstream hStream, CUevent hEvent, unsigned int Flags) {
  return call("cuStreamWaitEvent", 0, [&] {
    Stream& stream = device.stream(hStream);
    const Event& event = device.events.at(hEvent);
    if (event.capture) return join_capture(stream, event);
    if (!event.recorded) return;
    if (stream.capture) {
      device.invalidate(*stream.capture, "it waits for an event that was recorded outside of it");
      fail(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, stream.capture->broken);
    }
    if (device.work.is_pending(event.operation)) stream.tail.push_back(event.operation);
    merge(stream.clock, event.clock);
  });
}

API CUresult cuStreamGetFlags(CUstream hStream, unsigned int* flags) {
  return call("cuStreamGetFlags", 0, [&] { give(flags, device.stream(hStream).flags); });
}

API CUresult cuStreamBeginCapture_v2(CUstream hStream, CUstreamCaptureMode mode) {
  return call("cuStreamBeginCapture", 0, [&] {
    Stream& stream = device.stream(hStream);
    if (&stream == &device.legacy)
      fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the legacy default stream cannot be captured");
    if (stream.capture) {
      device.invalidate(*stream.capture, "a capture began in a stream that is captured");
      violate(CUDA_ERROR_ILLEGAL_STATE, stream.capture->broken);
    }
    stream.capture = std::make_shared<Capture>(
        Capture{++device.capture_ids, mode, std::this_thread::get_id(), hStream});
    stream.nodes.clear();
    device.captures.push_back(stream.capture);
  });
}

API CUresult cuStreamEndCapture(CUstream hStream, CUgraph* phGraph) {
  return call("cuStreamEndCapture", 0, [&] {
    give(phGraph, CUgraph{});
    Stream& stream = device.stream(hStream);
    const auto capture = stream.capture;
    ended(stream, hStream);
    const auto ends = stream.nodes;
    leave(*capture);
    if (!capture->broken.empty()) fail(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, capture->broken);
    if (!is_joined(*capture->graph, ends))
      fail(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "another stream was captured and not joined");
    *phGraph = device.graphs.add(capture->graph);
  });
}

API CUresult cuStreamIsCapturing(CUstream hStream, CUstreamCaptureStatus* captureStatus) {
  return call("cuStreamIsCapturing", 0, [&] {
    const auto& capture = device.stream(hStream).capture;
    give(captureStatus, !capture                 ? CU_STREAM_CAPTURE_STATUS_NONE
                        : capture->broken.empty() ? CU_STREAM_CAPTURE_STATUS_ACTIVE
                                                  : CU_STREAM_CAPTURE_STATUS_INVALIDATED);
  });
}

API CUresult cuStreamGetCaptureInfo_v3(CUstream hStream, CUstreamCaptureStatus* captureStatus_out,
                                       cuuint64_t* id_out, CUgraph* graph_out,
                                       const CUgraphNode** dependencies_out,
                                       const CUgraphEdgeData** edgeData_out,
                                       std::size_t* numDependencies_out) {
  return call("cuStreamGetCaptureInfo", 0, [&] {
    const auto& capture = device.stream(hStream).capture;
    give(captureStatus_out, !capture                 ? CU_STREAM_CAPTURE_STATUS_NONE
                            : capture->broken.empty() ? CU_STREAM_CAPTURE_STATUS_ACTIVE
                                                      : CU_STREAM_CAPTURE_STATUS_INVALIDATED);
    if (id_out != nullptr) *id_out = capture ? capture->id : 0;
    if (graph_out != nullptr) *graph_out = nullptr;  // graphs are not edited while captured here
    if (dependencies_out != nullptr) *dependencies_out = nullptr;
    if (edgeData_out != nullptr) *edgeData_out = nullptr;
    if (numDependencies_out != nullptr) *numDependencies_out = 0;
  });
}

API CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  return call("cuThreadExchangeStreamCaptureMode", 0, [&] { std::swap(*mode, capture_mode); });
}

API CUresult cuLaunchHostFunc(CUstream hStream, CUhostFn fn, void* userData) {
  return call("cuLaunchHostFunc", 0, [&] {
    device.submit(device.stream(hStream),
                  {"a host function", {}, [=] { fn(userData); }, true});
  });
}

// --- Events ------------------------------------------------------------------------------------

API CUresult cuEventCreate(CUevent* phEvent, unsigned int Flags) {
  return call("cuEventCreate", 0, [&] {
    Event event;
    event.flags = Flags;
    give(phEvent, device.events.add(event));
  });
}

API CUresult cuEventRecord(CUevent hEvent, CUstream hStream) {
  return call("cuEventRecord", 0, [&] { record(hEvent, hStream); });
}

API CUresult cuEventQuery(CUevent hEvent) {
  return call("cuEventQuery", 0, [&] {
    const Event& event = device.events.at(hEvent);
    refuse_captured(event);
    device.unsafe("cuEventQuery");
    if (!event.recorded || !device.work.is_pending(event.operation)) return;
    device.work.progress({event.operation});
    fail(CUDA_ERROR_NOT_READY, "the event has not happened");
  });
}

API CUresult cuEventSynchronize(CUevent hEvent) {
  return call("cuEventSynchronize", 0, [&] {
    const Event& event = device.events.at(hEvent);
    refuse_captured(event);
    device.unsafe("cuEventSynchronize");
    if (event.recorded) device.work.complete({event.operation});
  });
}

API CUresult cuEventElapsedTime_v2(float* pMilliseconds, CUevent hStart, CUevent hEnd) {
  return call("cuEventElapsedTime", 0, [&] {
    const Event &start = device.events.at(hStart), &end = device.events.at(hEnd);
    for (const Event* event : {&start, &end}) {
      if ((event->flags & CU_EVENT_DISABLE_TIMING) || !event->recorded)
        violate(CUDA_ERROR_INVALID_HANDLE, "an event without timing, or that was never recorded");
      if (device.work.is_pending(event->operation))
        fail(CUDA_ERROR_NOT_READY, "an event has not happened");
    }
    give(pMilliseconds, static_cast<float>(*end.time - *start.time));
  });
}

API CUresult cuEventDestroy_v2(CUevent hEvent) {
  return call("cuEventDestroy", 0, [&] {
    device.events.at(hEvent);
    device.events.objects.erase(hEvent);
  });
}

// --- Graphs ------------------------------------------------------------------------------------

API CUresult cuGraphInstantiateWithFlags(CUgraphExec* phGraphExec, CUgraph hGraph, unsigned long long flags) {
  return call("cuGraphInstantiate", 0, [&] { instantiate(phGraphExec, hGraph); });
}

API CUresult cuGraphLaunch(CUgraphExec hGraphExec, CUstream hStream) {
  return call("cuGraphLaunch", 0, [&] {
    GraphExec& exec = device.execs.at(hGraphExec);
    Stream& stream = device.stream(hStream);
    if (device.work.running) violate(CUDA_ERROR_NOT_PERMITTED, "work of the device enqueues work");
    if (stream.capture) violate(CUDA_ERROR_NOT_SUPPORTED, "graphs in graphs are not simulated");
    for (const Node& node : exec.graph->nodes)
      for (const Range& range : node.task->ranges) device.memory.around(range);
    exec.last = device.launch(stream, *exec.graph, exec.last, exec.clock);
    exec.clock = stream.clock;
  });
}

API CUresult cuGraphUpload(CUgraphExec hGraphExec, CUstream hStream) {
  return call("cuGraphUpload", 0, [&] {
    device.execs.at(hGraphExec);
    device.refuse_capture(device.stream(hStream), "cuGraphUpload in");
  });
}

API CUresult cuGraphGetNodes(CUgraph hGraph, CUgraphNode* nodes, std::size_t* numNodes) {
  return call("cuGraphGetNodes", 0, [&] {
    const std::size_t count = device.graphs.at(hGraph)->nodes.size();
    if (nodes != nullptr)
      for (std::size_t index = 0; index < *numNodes; ++index)
        nodes[index] = index < count ? reinterpret_cast<CUgraphNode>(index + 1) : nullptr;
    *numNodes = nodes == nullptr ? count : std::min(count, *numNodes);
  });
}

API CUresult cuGraphDestroy(CUgraph hGraph) {
  return call("cuGraphDestroy", 0, [&] {
    device.graphs.at(hGraph);
    device.graphs.objects.erase(hGraph);
  });
}

API CUresult cuGraphExecDestroy(CUgraphExec hGraphExec) {
  return call("cuGraphExecDestroy", 0, [&] {
    device.execs.at(hGraphExec);
    device.execs.objects.erase(hGraphExec);
  });
}

// --- Errors and symbols ------------------------------------------------------------------------

API CUresult cuGetErrorName(CUresult error, const char** pStr) {
  return call("cuGetErrorName", kAlways, [&] {
    *pStr = name_of(error);
    if (*pStr == nullptr) fail(CUDA_ERROR_INVALID_VALUE, "no such error");
  });
}

API CUresult cuGetErrorString(CUresult error, const char** pStr) {
  return cuGetErrorName(error, pStr);
}

namespace {

struct Symbol {
  const char* name;
  int introduced, replaced;  // CUDA versions, as in the driver's own tables
  void* function;
};

constexpr int kNever = 1 << 30;
#define SYMBOL(name, introduced, function) \
  {name, introduced, kNever, reinterpret_cast<void*>(function)}

extern const std::vector<Symbol> kSymbols;

const Symbol* find_symbol(const std::string& name, int version) {
  const Symbol* found = nullptr;
  for (const Symbol& symbol : kSymbols)
    if (name == symbol.name && symbol.introduced <= version && version < symbol.replaced)
      found = &symbol;
  return found;
}

}  // namespace

API CUresult cuGetProcAddress_v2(const char* symbol, void** pfn, int cudaVersion, cuuint64_t flags,
                                 CUdriverProcAddressQueryResult* symbolStatus) {
  const Symbol* found = find_symbol(symbol, cudaVersion);
  *pfn = found == nullptr ? nullptr : found->function;
  if (symbolStatus != nullptr)
    *symbolStatus = found == nullptr ? CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND
                                     : CU_GET_PROC_ADDRESS_SUCCESS;
  return found == nullptr ? CUDA_ERROR_NOT_FOUND : CUDA_SUCCESS;
}

namespace {

const std::vector<Symbol> kSymbols{
    SYMBOL("cuInit", 2000, cuInit),
    SYMBOL("cuDriverGetVersion", 2020, cuDriverGetVersion),
    SYMBOL("cuDeviceGet", 2000, cuDeviceGet),
    SYMBOL("cuDeviceGetCount", 2000, cuDeviceGetCount),
    SYMBOL("cuDeviceGetName", 2000, cuDeviceGetName),
    SYMBOL("cuDeviceGetUuid", 11040, cuDeviceGetUuid_v2),
    SYMBOL("cuDeviceTotalMem", 3020, cuDeviceTotalMem_v2),
    SYMBOL("cuDeviceGetAttribute", 2000, cuDeviceGetAttribute),
    SYMBOL("cuDevicePrimaryCtxRetain", 7000, cuDevicePrimaryCtxRetain),
    SYMBOL("cuDevicePrimaryCtxRelease", 11000, cuDevicePrimaryCtxRelease_v2),
    SYMBOL("cuDevicePrimaryCtxGetState", 7000, cuDevicePrimaryCtxGetState),
    SYMBOL("cuCtxSetCurrent", 4000, cuCtxSetCurrent),
    SYMBOL("cuCtxGetCurrent", 4000, cuCtxGetCurrent),
    {"cuCtxGetDevice", 2000, 13000, reinterpret_cast<void*>(cuCtxGetDevice)},
    {"cuCtxSynchronize", 2000, 13000, reinterpret_cast<void*>(cuCtxSynchronize)},
    SYMBOL("cuMemAlloc", 3020, cuMemAlloc_v2),
    SYMBOL("cuMemFree", 3020, cuMemFree_v2),
    SYMBOL("cuMemAllocHost", 3020, cuMemAllocHost_v2),
    SYMBOL("cuMemHostAlloc", 2020, cuMemHostAlloc),
    SYMBOL("cuMemFreeHost", 2000, cuMemFreeHost),
    SYMBOL("cuMemGetInfo", 3020, cuMemGetInfo_v2),
    SYMBOL("cuMemHostGetDevicePointer", 3020, cuMemHostGetDevicePointer_v2),
    SYMBOL("cuMemcpy", 4000, cuMemcpy),
    SYMBOL("cuMemcpyAsync", 4000, cuMemcpyAsync),
    SYMBOL("cuMemcpyHtoD", 3020, cuMemcpyHtoD_v2),
    SYMBOL("cuMemcpyHtoDAsync", 3020, cuMemcpyHtoDAsync_v2),
    SYMBOL("cuMemcpyDtoH", 3020, cuMemcpyDtoH_v2),
    SYMBOL("cuMemcpyDtoHAsync", 3020, cuMemcpyDtoHAsync_v2),
    SYMBOL("cuMemcpyDtoD", 3020, cuMemcpyDtoD_v2),
    SYMBOL("cuMemcpyDtoDAsync", 3020, cuMemcpyDtoDAsync_v2),
    SYMBOL("cuMemsetD8", 3020, cuMemsetD8_v2),
    SYMBOL("cuMemsetD8Async", 3020, cuMemsetD8Async),
    SYMBOL("cuMemsetD32", 3020, cuMemsetD32_v2),
    SYMBOL("cuMemsetD32Async", 3020, cuMemsetD32Async),
    SYMBOL("cuStreamCreate", 2000, cuStreamCreate),
    SYMBOL("cuStreamDestroy", 4000, cuStreamDestroy_v2),
    SYMBOL("cuStreamSynchronize", 2000, cuStreamSynchronize),
    SYMBOL("cuStreamQuery", 2000, cuStreamQuery),
    SYMBOL("cuStreamWaitEvent", 3020, cuStreamWaitEvent),
    SYMBOL("cuStreamGetFlags", 5050, cuStreamGetFlags),
    SYMBOL("cuStreamBeginCapture", 10010, cuStreamBeginCapture_v2),
    SYMBOL("cuStreamEndCapture", 10000, cuStreamEndCapture),
    SYMBOL("cuStreamIsCapturing", 10000, cuStreamIsCapturing),
    SYMBOL("cuStreamGetCaptureInfo", 12030, cuStreamGetCaptureInfo_v3),
    SYMBOL("cuThreadExchangeStreamCaptureMode", 10010, cuThreadExchangeStreamCaptureMode),
    SYMBOL("cuLaunchHostFunc", 10000, cuLaunchHostFunc),
    SYMBOL("cuEventCreate", 2000, cuEventCreate),
    SYMBOL("cuEventRecord", 2000, cuEventRecord),
    SYMBOL("cuEventQuery", 2000, cuEventQuery),
    SYMBOL("cuEventSynchronize", 2000, cuEventSynchronize),
    SYMBOL("cuEventElapsedTime", 12080, cuEventElapsedTime_v2),
    SYMBOL("cuEventDestroy", 4000, cuEventDestroy_v2),
    SYMBOL("cuGraphInstantiate", 12000, cuGraphInstantiateWithFlags),
    SYMBOL("cuGraphInstantiateWithFlags", 11040, cuGraphInstantiateWithFlags),
    SYMBOL("cuGraphLaunch", 10000, cuGraphLaunch),
    SYMBOL("cuGraphUpload", 11010, cuGraphUpload),
    SYMBOL("cuGraphGetNodes", 10000, cuGraphGetNodes),
    SYMBOL("cuGraphDestroy", 10000, cuGraphDestroy),
    SYMBOL("cuGraphExecDestroy", 10000, cuGraphExecDestroy),
    SYMBOL("cuGetErrorName", 6000, cuGetErrorName),
    SYMBOL("cuGetErrorString", 6000, cuGetErrorString),
    SYMBOL("cuGetProcAddress", 12000, cuGetProcAddress_v2),
};

}  // namespace

// --- Kernels, for the stand-ins of libraries that have some ------------------------------------

// What a kernel reads or writes.
struct SimRange {
  CUdeviceptr address;
  std::size_t bytes;
  int writes;
};

// Launch `kernel(token)`, which returns 0 or fails, on the stream; the legacy stream is not allowed.
API CUresult simLaunch(CUstream hStream, const char* name, int (*kernel)(std::size_t), std::size_t token,
                       const SimRange* ranges, std::size_t count) {
  return call("simLaunch", 0, [&] {
    Task task{name, {}, nullptr};
    for (std::size_t index = 0; index < count; ++index)
      task.ranges.push_back({ranges[index].address, ranges[index].bytes, ranges[index].writes != 0});
    task.run = [=] {
      if (kernel(token) != 0) violate(CUDA_ERROR_LAUNCH_FAILED, "the kernel failed");
    };
    device.submit(device.stream(hStream), std::move(task));
  });
}
