// Any bytes as a state: read, or refused as a StateError.
#include <cstdlib>
#include <string_view>

#include "error.hpp"
#include "state.hpp"

extern "C" int LLVMFuzzerTestOneInput(const char* data, std::size_t size) {
  try {
    sana_rt::runtime::State::parse({data, size});
  } catch (const sana_rt::runtime::Error& error) {
    if (error.status() != SANA_STATE_ERROR) std::abort();
  }
  return 0;
}
