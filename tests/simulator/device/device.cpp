// Streams and captures: how tasks are put into the queue, or into a graph.
#include "device.h"

#include <algorithm>

Device device;
thread_local CUcontext current_context = nullptr;
thread_local CUstreamCaptureMode capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
thread_local std::unique_lock<std::recursive_mutex>* held_lock = nullptr;
thread_local std::string current_call, allocation_label;

void violate(CUresult result, const std::string& reason) { throw Failure{result, reason, true}; }

void fail(CUresult result, const std::string& reason) { throw Failure{result, reason, false}; }

bool Graph::precedes(std::size_t earlier, std::size_t later) const {
  std::vector<std::size_t> open{later};
  std::vector<bool> seen(nodes.size());
  while (!open.empty()) {
    const std::size_t node = open.back();
    open.pop_back();
    if (node == earlier) return true;
    if (node < earlier || seen[node]) continue;
    seen[node] = true;
    open.insert(open.end(), nodes[node].after.begin(), nodes[node].after.end());
  }
  return false;
}

Stream& Device::stream(CUstream handle) {
  const auto value = reinterpret_cast<std::uintptr_t>(handle);
  if (value == 2) violate(CUDA_ERROR_NOT_SUPPORTED, "the per-thread default stream is not simulated");
  return value <= 1 ? legacy : streams.at(handle);
}

void Device::violation(const std::string& text) { violations.push_back(current_call + ": " + text); }

void Device::invalidate(Capture& capture, const std::string& why) {
  if (capture.broken.empty()) capture.broken = why;
}

// The rules of cuThreadExchangeStreamCaptureMode for calls that CUDA names potentially unsafe.
void Device::unsafe(const char* name) {
  if (capture_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return;
  const auto me = std::this_thread::get_id();
  for (const auto& capture : captures) {
    const bool mine = capture->thread == me && capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
    const bool everyones = capture->thread != me &&
                           capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL &&
                           capture_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
    if (!mine && !everyones) continue;
    invalidate(*capture, std::string(name) + " is not allowed while a stream is captured");
    fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, capture->broken);
  }
}

void Device::refuse_capture(Stream& stream, const char* what) {
  if (!stream.capture) return;
  invalidate(*stream.capture, std::string(what) + " a stream that is captured");
  fail(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, stream.capture->broken);
}

// The legacy stream waits for every blocking stream, which one that is captured cannot grant.
void Device::implicit_legacy(const char* what) {
  for (auto& [handle, stream] : streams.objects)
    if (stream.blocking && stream.capture) {
      invalidate(*stream.capture, std::string(what) + " uses the legacy default stream");
      fail(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, stream.capture->broken);
    }
}

void Device::submit(Stream& stream, Task task) {
  if (work.running) violate(CUDA_ERROR_NOT_PERMITTED, "work of the device enqueues work");
  for (const Range& range : task.ranges) memory.around(range);
  auto shared = std::make_shared<const Task>(std::move(task));
  if (stream.capture) {
    if (!stream.capture->broken.empty())
      fail(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, stream.capture->broken);
    auto& nodes = stream.capture->graph->nodes;
    nodes.push_back({shared, stream.nodes});
    stream.nodes = {nodes.size() - 1};
    return;
  }
  launch(stream, Graph{{Node{shared, {}}}}, {}, {});
}

std::vector<std::uint64_t> Device::launch(Stream& stream, const Graph& graph,
                                          const std::vector<std::uint64_t>& after,
                                          const Clock& clock) {
  std::vector<std::uint64_t> before = stream.tail;
  before.insert(before.end(), after.begin(), after.end());
  merge(stream.clock, clock);
  const auto wait_for = [&](const Stream& other) {
    before.insert(before.end(), other.tail.begin(), other.tail.end());
    merge(stream.clock, other.clock);
  };
  if (&stream == &legacy) {
    implicit_legacy(current_call.c_str());
    for (const auto& [handle, other] : streams.objects)
      if (other.blocking) wait_for(other);
  } else if (stream.blocking) {
    wait_for(legacy);
  }
  const Launch launch{++launches, stream.lane, ++stream.clock[stream.lane], stream.clock};
  std::vector<std::uint64_t> ids, ends;
  std::vector<bool> followed(graph.nodes.size());
  for (const Node& node : graph.nodes) {
    std::vector<std::uint64_t> earlier;
    for (const std::size_t index : node.after) {
      earlier.push_back(ids[index]);
      followed[index] = true;
    }
    ids.push_back(work.add(node.task, node.after.empty() ? before : earlier, launch));
  }
  for (std::size_t index = 0; index < ids.size(); ++index)
    if (!followed[index]) ends.push_back(ids[index]);
  stream.tail = ends.empty() ? before : ends;
  return ends;
}

void Device::reset() {
  work.release();
  work.drop();
  memory.forget();
  streams.forget();
  events.forget();
  graphs.forget();
  execs.forget();
  captures.clear();
  faults.clear();
  legacy = Stream{0, true, 0, {}, {}, nullptr, {}};
  card = {};
  memory.total = std::size_t{32} << 30;
  work.executed = work.fail_at = 0;
  work.seed(0);
  work.patience = 60;
  sticky = CUDA_SUCCESS;
  initialized = false;
  retained = 0;
  calls.clear();
  bytes.clear();
  violations.clear();
  errors.clear();
}
