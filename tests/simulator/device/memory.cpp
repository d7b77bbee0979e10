// Memory of the device and pinned memory of the host: poisoned when it is fresh, with guarded
// borders, at addresses that are never used again.
#include <sys/mman.h>

#include <cstring>
#include <sstream>

#include "device.h"

namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kReserved = std::size_t{1} << 42;  // addresses, not memory
constexpr CUdeviceptr kAlignment = 256;                  // what CUDA promises, and no more
constexpr unsigned char kPoison = 0xFF;                  // a NaN in every floating-point format
constexpr unsigned char kBorder = 0xA5;

std::size_t pages(std::size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

void* map(std::size_t bytes, int protection) {
  void* at = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) fail(CUDA_ERROR_OUT_OF_MEMORY, "the host has no memory left");
  return at;
}

// `bytes` between two pages that nobody may touch; what is left of the last page is border.
unsigned char* storage_of(std::size_t bytes) {
  auto* pages_around = static_cast<unsigned char*>(map(pages(bytes) + 2 * kPage, PROT_NONE));
  unsigned char* storage = pages_around + kPage;
  mprotect(storage, pages(bytes), PROT_READ | PROT_WRITE);
  std::memset(storage, kPoison, bytes);
  std::memset(storage + bytes, kBorder, pages(bytes) - bytes);
  return storage;
}

std::string describe(const Block& block) {
  std::ostringstream text;
  text << (block.place == Place::device ? "device" : "pinned") << " block " << block.ordinal << " ("
       << hex(block.address) << ", " << block.bytes << " bytes";
  if (!block.label.empty()) text << ", " << block.label;
  text << (block.live ? ")" : ", freed)");
  return text.str();
}

void check_border(const Block& block) {
  const std::size_t end = pages(block.bytes);
  for (std::size_t at = block.bytes; at < end; ++at)
    if (block.storage[at] != kBorder) {
      device.violation("something wrote behind the end of " + describe(block));
      std::memset(block.storage + block.bytes, kBorder, end - block.bytes);
      return;
    }
}

}  // namespace

std::string hex(CUdeviceptr address) {
  std::ostringstream text;
  text << "0x" << std::hex << address;
  return text.str();
}

CUdeviceptr Memory::reserve(std::size_t bytes) {
  if (first_ == 0) {
    first_ = reinterpret_cast<CUdeviceptr>(map(kReserved, PROT_NONE));
    next_ = oldest_ = first_ + kAlignment;  // aligned to 256 bytes, and to no more
    end_ = first_ + kReserved;
  }
  const CUdeviceptr address = next_;
  next_ += pages(bytes) + kPage;
  if (next_ > end_) fail(CUDA_ERROR_OUT_OF_MEMORY, "the simulator has no addresses left");
  return address;
}

CUdeviceptr Memory::allocate(Place place, std::size_t bytes, const std::string& label) {
  const int side = static_cast<int>(place);
  if (bytes == 0) fail(CUDA_ERROR_INVALID_VALUE, "an allocation of 0 bytes");
  if (place == Place::device && live_bytes[side] + bytes > total)
    fail(CUDA_ERROR_OUT_OF_MEMORY, std::to_string(bytes) + " bytes of " +
                                       std::to_string(total - live_bytes[side]) + " that are free");
  unsigned char* storage = storage_of(bytes);
  const CUdeviceptr address =
      place == Place::device ? reserve(bytes) : reinterpret_cast<CUdeviceptr>(storage);
  blocks_[address] = Block{place, address, bytes, storage, label, ++ordinals_};
  ++allocations;
  live_bytes[side] += bytes;
  live_blocks[side] += 1;
  peak_bytes[side] = std::max(peak_bytes[side], live_bytes[side]);
  return address;
}

void Memory::release(Block& block) {
  const int side = static_cast<int>(block.place);
  check_border(block);
  block.live = false;
  live_bytes[side] -= block.bytes;
  live_blocks[side] -= 1;
  if (block.place == Place::device) {
    munmap(block.storage - kPage, pages(block.bytes) + 2 * kPage);
  } else {  // the address must not come back
    mprotect(block.storage, pages(block.bytes), PROT_NONE);
    madvise(block.storage, pages(block.bytes), MADV_DONTNEED);
  }
}

Block* Memory::before(CUdeviceptr address) {
  auto found = blocks_.upper_bound(address);
  if (found == blocks_.begin()) return nullptr;
  return &(--found)->second;
}

void Memory::check_stale(CUdeviceptr address, const Block* block) const {
  if ((address >= first_ && address < oldest_) || (block != nullptr && block->stale))
    fail(CUDA_ERROR_CONTEXT_IS_DESTROYED, "memory of an earlier device");
}

Block& Memory::started_at(Place place, CUdeviceptr address) {
  const auto found = blocks_.find(address);
  check_stale(address, found == blocks_.end() ? nullptr : &found->second);
  if (found == blocks_.end() || found->second.place != place)
    violate(CUDA_ERROR_INVALID_VALUE, hex(address) + " is not the address of an allocation");
  if (!found->second.live)
    violate(CUDA_ERROR_INVALID_VALUE, describe(found->second) + " is freed a second time");
  return found->second;
}

Block* Memory::around(const Range& range) {
  Block* block = before(range.address);
  const bool on_device = range.address >= first_ && range.address < end_;
  const bool inside = block != nullptr && range.address < block->address + block->bytes;
  if (!inside) {
    if (!on_device) return nullptr;
    check_stale(range.address, nullptr);
    violate(CUDA_ERROR_INVALID_VALUE,
            hex(range.address) + " is in no allocation" +
                (block == nullptr ? "" : "; the one before it is " + describe(*block)));
  }
  check_stale(range.address, block);
  if (!block->live) violate(CUDA_ERROR_INVALID_VALUE, "use of " + describe(*block));
  if (range.address + range.bytes > block->address + block->bytes)
    violate(CUDA_ERROR_INVALID_VALUE, std::to_string(range.bytes) + " bytes from " +
                                          hex(range.address) + " on leave " + describe(*block));
  return block;
}

unsigned char* Memory::bytes(const Range& range) {
  const Block* block = around(range);
  if (block == nullptr) return reinterpret_cast<unsigned char*>(range.address);
  return block->storage + (range.address - block->address);
}

std::vector<const Block*> Memory::live() const {
  std::vector<const Block*> found;
  for (const auto& [address, block] : blocks_)
    if (block.live) found.push_back(&block);
  return found;
}

void Memory::check_borders() const {
  for (const Block* block : live()) check_border(*block);
}

void Memory::forget() {
  for (auto& [address, block] : blocks_)
    if (block.live) release(block);
  for (auto& [address, block] : blocks_) {
    block.stale = true;
    block.pending.clear();
  }
  oldest_ = next_;
  allocations = ordinals_ = 0;
  for (int side : {0, 1}) live_bytes[side] = peak_bytes[side] = live_blocks[side] = 0;
}
