// What a test asks of the device: its settings, its faults, and an account of what happened.
#include <sstream>

#include "device.h"

#define CONTROL extern "C" __attribute__((visibility("default")))

namespace {

std::lock_guard<std::recursive_mutex> locked() { return std::lock_guard(device.mutex); }

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char letter : text) {
    if (letter == '"' || letter == '\\') result += '\\';
    result += letter == '\n' ? ' ' : letter;
  }
  return result + '"';
}

std::string list(const std::vector<std::string>& texts) {
  std::string result = "[";
  for (const std::string& text : texts) result += (result.size() > 1 ? "," : "") + quoted(text);
  return result + "]";
}

std::string table(const std::map<std::string, std::uint64_t>& counts) {
  std::string result = "{";
  for (const auto& [name, count] : counts)
    result += (result.size() > 1 ? "," : "") + quoted(name) + ":" + std::to_string(count);
  return result + "}";
}

std::vector<std::string> live_blocks() {
  std::vector<std::string> found;
  for (const Block* block : device.memory.live()) {
    std::ostringstream text;
    text << (block->place == Place::device ? "device" : "pinned") << " block " << block->ordinal
         << ", " << block->bytes << " bytes" << (block->label.empty() ? "" : ", ") << block->label;
    found.push_back(text.str());
  }
  return found;
}

}  // namespace

// Forget everything, as if the process had just started; old handles are refused without a stir.
CONTROL void simReset() {
  const auto lock = locked();
  device.reset();
}

// The order of work: 0 is lazy and in order of enqueueing, others are drawn at random.
CONTROL void simSeed(unsigned seed) {
  const auto lock = locked();
  device.work.seed(seed);
}

CONTROL void simCard(const char* name, int major, int minor, int driver, std::size_t memory, int count) {
  const auto lock = locked();
  device.card = Card{name, major, minor, driver, count};
  device.memory.total = memory;
}

// Let the n-th call from now on of a name, a group of names or any ("*") fail.
CONTROL void simFail(const char* name, std::uint64_t nth, int result, int sticky) {
  const auto lock = locked();
  device.faults.push_back(Fault{name, nth, static_cast<CUresult>(result), sticky != 0});
}

// Let the n-th operation from now on fail when it runs, and everything after it.
CONTROL void simFailWork(std::uint64_t nth, int result) {
  const auto lock = locked();
  device.work.fail_at = device.work.executed + nth;
  device.work.fault = static_cast<CUresult>(result);
}

// Let every call fail from now on.
CONTROL void simFailAlways(int result) {
  const auto lock = locked();
  device.work.drop();
  device.sticky = static_cast<CUresult>(result);
}

// Let the n-th operation from now on never end; calls that wait for it give up after a while.
CONTROL void simHang(std::uint64_t nth, double patience) {
  const auto lock = locked();
  device.work.hang_at = device.work.executed + nth;
  device.work.patience = patience;
}

CONTROL void simRelease() {
  const auto lock = locked();
  device.work.release();
}

// What the allocations of this thread are for, until it says otherwise.
CONTROL void simLabel(const char* label) { allocation_label = label; }

CONTROL void simViolation(const char* text) {
  const auto lock = locked();
  device.violations.push_back(text);
}

CONTROL void simForgive() {
  const auto lock = locked();
  device.violations.clear();
}

// Where the bytes of live memory are, for a kernel; null, and a violation, if they are not there.
CONTROL void* simBytes(CUdeviceptr address, std::size_t bytes) {
  const auto lock = locked();
  try {
    if (device.memory.around({address, bytes, false}) != nullptr)
      return device.memory.bytes({address, bytes, false});
    device.violation(hex(address) + " is not memory of the device");
  } catch (const Failure& failure) {
    device.violation(failure.reason);
  }
  return nullptr;
}

// Whether the stream is one that kernels may use: not the default stream.
CONTROL int simIsStream(CUstream stream) {
  const auto lock = locked();
  return device.streams.objects.count(stream) != 0;
}

CONTROL int simIsCapturing(CUstream stream) {
  const auto lock = locked();
  const auto found = device.streams.objects.find(stream);
  return found != device.streams.objects.end() && found->second.capture != nullptr;
}

// Whether this thread is capturing any stream.
CONTROL int simCaptures() {
  const auto lock = locked();
  for (const auto& capture : device.captures)
    if (capture->thread == std::this_thread::get_id()) return 1;
  return 0;
}

// Whether work that is not done uses the allocation that starts at an address.
CONTROL int simIsUsed(CUdeviceptr address) {
  const auto lock = locked();
  for (const Block* block : device.memory.live())
    if (block->address == address) return !block->pending.empty();
  return 0;
}

CONTROL int simHasContext() { return current_context != nullptr; }

// Count calls, bytes, allocations and peaks from here on.
CONTROL void simMark() {
  const auto lock = locked();
  device.calls.clear();
  device.bytes.clear();
  device.memory.allocations = 0;
  for (const int side : {0, 1}) device.memory.peak_bytes[side] = device.memory.live_bytes[side];
}

// Everything that is counted, as JSON; valid until this thread asks again.
CONTROL const char* simReport() {
  const auto lock = locked();
  thread_local std::string report;
  device.memory.check_borders();
  std::ostringstream json;
  json << "{\"calls\":" << table(device.calls) << ",\"bytes\":" << table(device.bytes)
       << ",\"violations\":" << list(device.violations) << ",\"errors\":" << list(device.errors)
       << ",\"blocks\":" << list(live_blocks())
       << ",\"device_bytes\":" << device.memory.live_bytes[0]
       << ",\"pinned_bytes\":" << device.memory.live_bytes[1]
       << ",\"peak_device_bytes\":" << device.memory.peak_bytes[0]
       << ",\"peak_pinned_bytes\":" << device.memory.peak_bytes[1]
       << ",\"allocations\":" << device.memory.allocations
       << ",\"streams\":" << device.streams.objects.size()
       << ",\"events\":" << device.events.objects.size()
       << ",\"graphs\":" << device.graphs.objects.size()
       << ",\"executable_graphs\":" << device.execs.objects.size()
       << ",\"contexts\":" << device.retained << ",\"captures\":" << device.captures.size()
       << ",\"pending\":" << device.work.pending() << ",\"executed\":" << device.work.executed
       << ",\"failed\":" << device.sticky << "}";
  report = json.str();
  return report.c_str();
}
