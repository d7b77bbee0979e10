// Any bytes as an array of numpy (.npy): read, or refused as damaged.
#include "array_files.hpp"

extern "C" int LLVMFuzzerTestOneInput(const char* data, std::size_t size) {
  try {
    sana_rt::runtime::parse_array({data, size});
  } catch (const sana_rt::runtime::DamagedArrayError&) {
    return 0;
  }
  return 0;
}
