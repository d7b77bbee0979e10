// The simulated device: its memory, the work that waits on it, and the graphs recorded from it.
//
// Nothing runs when it is enqueued. Work waits as operations in one table; a synchronization, or
// a schedule that runs ahead, picks operations whose predecessors are done. Everything is guarded
// by one mutex, which every entry point of driver.cpp and control.cpp takes.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "constants.h"  // CUDA's enumerations, written from cuda-python's by library.py

using CUdeviceptr = unsigned long long;
using CUdevice = int;
using CUcontext = struct Context*;
using CUstream = struct StreamHandle*;
using CUevent = struct EventHandle*;
using CUgraph = struct GraphHandle*;
using CUgraphExec = struct GraphExecHandle*;
using CUgraphNode = struct GraphNodeHandle*;
using CUhostFn = void (*)(void*);
using cuuint64_t = std::uint64_t;
struct CUuuid {
  char bytes[16];
};
struct CUgraphEdgeData {
  unsigned char from_port, to_port, type, reserved[5];
};

// Thrown by what a call does; the call returns `result`.
struct Failure {
  CUresult result;
  std::string reason;
  bool violation = false;  // CUDA does not define what follows, or correct code never meets it
};

[[noreturn]] void violate(CUresult result, const std::string& reason);
[[noreturn]] void fail(CUresult result, const std::string& reason);
std::string hex(CUdeviceptr address);

// --- Memory -----------------------------------------------------------------------------------

enum class Place { device, pinned };

// A use of part of a block by an operation that is not done.
struct Access {
  std::uint64_t operation, launch;
  int lane;
  std::uint64_t index;  // in its lane
  std::size_t begin, end;
  bool writes;
  std::string name;
};

struct Block {
  Place place;
  CUdeviceptr address;  // on the device, nothing that the host can dereference
  std::size_t bytes;
  unsigned char* storage;
  std::string label;
  std::uint64_t ordinal;
  bool live = true;
  bool stale = false;  // of a device before the last reset
  std::uint64_t written = 0;  // how often the device wrote into it
  std::vector<Access> pending;
};

// Bytes that an operation reads or writes; a range outside of all blocks is pageable host memory.
struct Range {
  CUdeviceptr address;
  std::size_t bytes;
  bool writes;
};

class Memory {
 public:
  std::size_t total = std::size_t{32} << 30;
  std::size_t live_bytes[2] = {}, peak_bytes[2] = {}, live_blocks[2] = {};
  std::uint64_t allocations = 0;  // since the last mark

  CUdeviceptr allocate(Place place, std::size_t bytes, const std::string& label);
  void release(Block& block);
  // The live block that starts at `address`; anything else is a violation.
  Block& started_at(Place place, CUdeviceptr address);
  // The live block around a range, or null for pageable memory; violation if it leaves a block.
  Block* around(const Range& range);
  // Where the bytes of a range are.
  unsigned char* bytes(const Range& range);
  std::vector<const Block*> live() const;
  void check_borders() const;
  void forget();

 private:
  Block* before(CUdeviceptr address);
  void check_stale(CUdeviceptr address, const Block* block) const;
  CUdeviceptr reserve(std::size_t bytes);
  std::map<CUdeviceptr, Block> blocks_;
  CUdeviceptr first_ = 0, next_ = 0, end_ = 0, oldest_ = 0;
  std::uint64_t ordinals_ = 0;
};

// --- Work -------------------------------------------------------------------------------------

using Clock = std::map<int, std::uint64_t>;  // by lane, the last index that came before

void merge(Clock& into, const Clock& other);

// What is done: a copy, a clear, a kernel, the record of an event. Shared by graphs and queues.
struct Task {
  std::string name;
  std::vector<Range> ranges;
  std::function<void()> run;
  bool on_host = false;  // host code, which may write anywhere
};

// Pinned memory as it was when the operation that reads it was enqueued.
struct Snapshot {
  Range range;
  std::uint64_t hash, written, host_functions;
};

struct Operation {
  std::shared_ptr<const Task> task;
  std::size_t unmet = 0;
  std::vector<std::uint64_t> followers;
  std::vector<Snapshot> snapshots;
};

struct Launch {
  std::uint64_t id;
  int lane;
  std::uint64_t index;
  Clock clock;
};

class Work {
 public:
  std::uint64_t executed = 0;          // operations done since the start
  std::uint64_t fail_at = 0, hang_at = 0;
  CUresult fault = CUDA_SUCCESS;
  bool hung = false, running = false;
  double patience = 60;  // seconds that a call waits for hung work

  // Add an operation after others; those that are done already do not matter.
  std::uint64_t add(std::shared_ptr<const Task> task, const std::vector<std::uint64_t>& after,
                    const Launch& launch);
  bool is_pending(std::uint64_t operation) const { return operations_.count(operation) != 0; }
  bool is_idle() const { return operations_.empty(); }
  std::size_t pending() const { return operations_.size(); }
  void complete(const std::vector<std::uint64_t>& wanted);  // run until these are done
  void complete_all();
  void progress(const std::vector<std::uint64_t>& wanted);  // some, towards these
  void run_ahead();
  void seed(unsigned value);
  void release();  // the hung work goes on
  void drop();

 private:
  bool step(const std::set<std::uint64_t>& wanted);
  std::set<std::uint64_t> ancestors(const std::vector<std::uint64_t>& wanted) const;
  void execute(std::uint64_t operation);
  void watch(std::uint64_t id, Operation& operation, const Launch& launch);
  void wait_hung();
  std::map<std::uint64_t, Operation> operations_;
  std::map<std::uint64_t, std::vector<std::uint64_t>> predecessors_;
  std::set<std::uint64_t> ready_;
  std::uint64_t next_ = 1;
  std::mt19937 random_;
  bool ordered_ = true;
  double eagerness_ = 0;  // the chance that a call runs work that nobody waits for
  std::condition_variable_any released_;
};

// --- Streams, events, graphs ------------------------------------------------------------------

struct Node {
  std::shared_ptr<const Task> task;
  std::vector<std::size_t> after;  // indices of nodes before it
};

struct Graph {
  std::vector<Node> nodes;
  bool precedes(std::size_t earlier, std::size_t later) const;
};

struct Capture {
  std::uint64_t id;
  CUstreamCaptureMode mode;
  std::thread::id thread;
  CUstream origin;
  std::shared_ptr<Graph> graph = std::make_shared<Graph>();
  std::string broken;  // why it was invalidated; empty while it is not
  bool ended = false;
};

struct Stream {
  int lane;
  bool blocking;  // waits for the legacy default stream, and it for this one
  unsigned flags;
  std::vector<std::uint64_t> tail;  // operations that the next one comes after
  Clock clock;
  std::shared_ptr<Capture> capture;
  std::vector<std::size_t> nodes;  // of the capture, that the next one comes after
};

struct Event {
  unsigned flags;
  bool recorded = false;
  std::uint64_t operation = 0;
  Clock clock;
  std::shared_ptr<double> time = std::make_shared<double>(0);  // milliseconds, when it happened
  std::shared_ptr<Capture> capture;  // if it was last recorded in one
  std::vector<std::size_t> nodes;
};

struct GraphExec {
  std::shared_ptr<const Graph> graph;
  std::vector<std::uint64_t> last;  // operations of the launch before, which the next comes after
  Clock clock;
};

// Objects by handles that are never used again.
template <class Handle, class Object>
class Table {
 public:
  std::map<Handle, Object> objects;

  explicit Table(const char* what, std::uintptr_t base) : what_(what), next_(base), oldest_(base) {}
  Handle add(Object object) {
    const auto handle = reinterpret_cast<Handle>(next_ += 16);
    objects.emplace(handle, std::move(object));
    return handle;
  }
  Object& at(Handle handle) {
    const auto found = objects.find(handle);
    if (found != objects.end()) return found->second;
    const auto value = reinterpret_cast<std::uintptr_t>(handle);
    if (value > base() && value <= oldest_) fail(CUDA_ERROR_CONTEXT_IS_DESTROYED, "of an earlier device");
    const bool known = value > oldest_ && value <= next_;
    violate(CUDA_ERROR_INVALID_HANDLE, hex(value) + (known ? " is a destroyed " : " is not a ") + what_);
  }
  void forget() {
    objects.clear();
    oldest_ = next_;
  }

 private:
  std::uintptr_t base() const { return next_ & ~std::uintptr_t{0xFFFFFFFF}; }
  const char* what_;
  std::uintptr_t next_, oldest_;
};

// --- The device -------------------------------------------------------------------------------

struct Card {
  std::string name = "Simulated device (compute capability 12.0)";
  int major = 12, minor = 0, driver = 13000, count = 1;
};

// Make the n-th call from now of a name or a group of names fail.
struct Fault {
  std::string call;
  std::uint64_t remaining;
  CUresult result;
  bool sticky;
};

class Device {
 public:
  std::recursive_mutex mutex;
  Card card;
  Memory memory;
  Work work;
  Table<CUstream, Stream> streams{"stream", 0x5100000000000};
  Table<CUevent, Event> events{"event", 0x5200000000000};
  Table<CUgraph, std::shared_ptr<Graph>> graphs{"graph", 0x5300000000000};
  Table<CUgraphExec, GraphExec> execs{"executable graph", 0x5400000000000};
  Stream legacy{0, true, 0, {}, {}, nullptr, {}};
  std::vector<std::shared_ptr<Capture>> captures;  // those that have not ended
  std::vector<Fault> faults;
  CUresult sticky = CUDA_SUCCESS;
  bool initialized = false;
  unsigned retained = 0;  // of the primary context
  int lanes = 0;
  std::uint64_t launches = 0, capture_ids = 0, host_functions = 0;
  std::map<std::string, std::uint64_t> calls, bytes;
  std::vector<std::string> violations, errors;

  CUcontext primary() { return reinterpret_cast<CUcontext>(this); }
  Stream& stream(CUstream handle);
  // Do a task in a stream: enqueue it, or record it in the stream's capture.
  void submit(Stream& stream, Task task);
  // Enqueue tasks that depend on each other as one launch; returns the operations that end it.
  std::vector<std::uint64_t> launch(Stream& stream, const Graph& graph,
                                    const std::vector<std::uint64_t>& after, const Clock& clock);
  void unsafe(const char* name);  // refuse what a capture forbids this thread
  void refuse_capture(Stream& stream, const char* what);
  void invalidate(Capture& capture, const std::string& why);
  void implicit_legacy(const char* what);
  void violation(const std::string& text);
  void reset();
};

extern Device device;
extern thread_local CUcontext current_context;
extern thread_local CUstreamCaptureMode capture_mode;
extern thread_local std::unique_lock<std::recursive_mutex>* held_lock;
extern thread_local std::string current_call, allocation_label;
