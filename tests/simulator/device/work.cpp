// Work that waits, and the order in which it is done: any that CUDA allows.
#include <algorithm>
#include <chrono>
#include <cstring>

#include "device.h"

namespace {

std::uint64_t hash_of(const unsigned char* bytes, std::size_t count) {  // FNV-1a
  std::uint64_t hash = 1469598103934665603ull;
  for (std::size_t at = 0; at < count; ++at) hash = (hash ^ bytes[at]) * 1099511628211ull;
  return hash;
}

bool overlap(const Access& access, std::size_t begin, std::size_t end) {
  return access.begin < end && begin < access.end;
}

bool comes_before(const Access& access, const Launch& launch) {
  if (access.launch == launch.id) return true;  // the edges of a graph were checked with it
  const auto known = launch.clock.find(access.lane);
  return known != launch.clock.end() && known->second >= access.index;
}

}  // namespace

void merge(Clock& into, const Clock& other) {
  for (const auto& [lane, index] : other) into[lane] = std::max(into[lane], index);
}

std::uint64_t Work::add(std::shared_ptr<const Task> task, const std::vector<std::uint64_t>& after,
                        const Launch& launch) {
  const std::uint64_t id = next_++;
  Operation operation{std::move(task), 0, {}, {}};
  watch(id, operation, launch);
  auto& before = predecessors_[id];
  for (const std::uint64_t earlier : after) {
    const auto found = operations_.find(earlier);
    if (found == operations_.end()) continue;
    found->second.followers.push_back(id);
    before.push_back(earlier);
    ++operation.unmet;
  }
  if (operation.unmet == 0) ready_.insert(id);
  operations_.emplace(id, std::move(operation));
  return id;
}

// Note what an operation will touch, and compare it with what touches the same bytes already.
void Work::watch(std::uint64_t id, Operation& operation, const Launch& launch) {
  for (const Range& range : operation.task->ranges) {
    Block* block = device.memory.around(range);
    if (block == nullptr) continue;
    const std::size_t begin = range.address - block->address, end = begin + range.bytes;
    bool untouched = true;
    for (const Access& access : block->pending) {
      if (!overlap(access, begin, end) || access.operation == id) continue;
      untouched = false;
      if ((access.writes || range.writes) && !comes_before(access, launch))
        device.violation(operation.task->name + " and " + access.name + " touch " +
                         hex(range.address) + ", and nothing orders them");
    }
    if (block->place == Place::pinned) {
      if (range.writes && untouched) {  // until it is written it holds nothing
        std::memset(block->storage + begin, 0xFF, range.bytes);
      } else if (!range.writes) {
        const std::uint64_t hash = hash_of(block->storage + begin, range.bytes);
        operation.snapshots.push_back({range, hash, block->written, device.host_functions});
      }
    }
    block->pending.push_back({id, launch.id, launch.lane, launch.index, begin, end, range.writes,
                              operation.task->name});
  }
}

void Work::execute(std::uint64_t id) {
  ready_.erase(id);
  ++executed;
  if (fail_at != 0 && executed >= fail_at) {
    fail_at = 0;
    device.sticky = fault;
    return drop();
  }
  const Operation operation = operations_.at(id);
  try {
    for (const Snapshot& seen : operation.snapshots) {
      const Block* block = device.memory.around(seen.range);
      const bool untouched =
          block->written == seen.written && device.host_functions == seen.host_functions;
      const unsigned char* bytes = device.memory.bytes(seen.range);
      if (untouched && hash_of(bytes, seen.range.bytes) != seen.hash)
        device.violation("the host wrote to pinned memory at " + hex(seen.range.address) +
                         " before the device had read it (" + operation.task->name + ")");
    }
    for (const Range& range : operation.task->ranges) device.memory.around(range);
    running = true;
    operation.task->run();
    running = false;
  } catch (const Failure& failure) {
    running = false;
    device.violation(operation.task->name + ", when it ran: " + failure.reason);
    device.sticky = CUDA_ERROR_ILLEGAL_ADDRESS;
    return drop();
  }
  if (operation.task->on_host) ++device.host_functions;
  operations_.erase(id);
  predecessors_.erase(id);
  for (const std::uint64_t follower : operation.followers)
    if (--operations_.at(follower).unmet == 0) ready_.insert(follower);
  for (const Range& range : operation.task->ranges) {
    Block* block = device.memory.around(range);
    if (block == nullptr) continue;
    block->written += range.writes;
    std::erase_if(block->pending, [&](const Access& access) { return access.operation == id; });
  }
}

std::set<std::uint64_t> Work::ancestors(const std::vector<std::uint64_t>& wanted) const {
  std::set<std::uint64_t> found;
  std::vector<std::uint64_t> open(wanted);
  while (!open.empty()) {
    const std::uint64_t id = open.back();
    open.pop_back();
    if (!is_pending(id) || !found.insert(id).second) continue;
    const auto& before = predecessors_.at(id);
    open.insert(open.end(), before.begin(), before.end());
  }
  return found;
}

// Do one operation: in the order of enqueueing one that is wanted, otherwise any that is ready.
bool Work::step(const std::set<std::uint64_t>& wanted) {
  if (hang_at != 0 && executed + 1 >= hang_at) hung = true;
  if (hung || ready_.empty()) return false;
  auto chosen = ready_.begin();
  if (ordered_) {
    while (chosen != ready_.end() && wanted.count(*chosen) == 0) ++chosen;
    if (chosen == ready_.end()) return false;
  } else {
    std::advance(chosen, static_cast<long>(random_() % ready_.size()));
  }
  execute(*chosen);
  return true;
}

void Work::complete(const std::vector<std::uint64_t>& wanted) {
  if (running) violate(CUDA_ERROR_NOT_PERMITTED, "work of the device waits for the device");
  const auto needed = ancestors(wanted);
  while (device.sticky == CUDA_SUCCESS &&
         std::any_of(wanted.begin(), wanted.end(), [&](auto id) { return is_pending(id); }))
    if (!step(needed)) wait_hung();
  if (device.sticky != CUDA_SUCCESS) fail(device.sticky, "the device has failed");
}

void Work::complete_all() {
  std::vector<std::uint64_t> all;
  for (const auto& [id, operation] : operations_) all.push_back(id);
  complete(all);
}

void Work::progress(const std::vector<std::uint64_t>& wanted) {
  if (running) return;
  const auto needed = ancestors(wanted);
  std::uint64_t left = ordered_ ? needed.size() : random_() % (2 * needed.size() + 1) + 1;
  while (left-- > 0 && step(needed)) {
  }
}

void Work::run_ahead() {
  if (ordered_ || running) return;
  while (std::uniform_real_distribution<>()(random_) < eagerness_ && step({})) {
  }
}

void Work::wait_hung() {
  const std::string call = current_call;
  const auto limit = std::chrono::duration<double>(patience);
  if (!released_.wait_for(*held_lock, limit, [&] { return !hung; }))
    violate(CUDA_ERROR_LAUNCH_TIMEOUT, call + " waits for work that never ends");
  current_call = call;
}

void Work::seed(unsigned value) {
  random_.seed(value);
  ordered_ = value == 0;
  const double choices[] = {0, 0.2, 0.7, 0.99};
  eagerness_ = choices[value % 4];
}

void Work::release() {
  hung = false;
  hang_at = 0;
  released_.notify_all();
}

void Work::drop() {
  for (const auto& [id, operation] : operations_)
    for (const Range& range : operation.task->ranges)
      try {
        if (Block* block = device.memory.around(range)) block->pending.clear();
      } catch (const Failure&) {  // it was freed, which is told when the operation runs
      }
  operations_.clear();
  predecessors_.clear();
  ready_.clear();
}
