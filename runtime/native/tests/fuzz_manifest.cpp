// Any bytes as a manifest: read, or refused with a named error.
#include "error.hpp"
#include "manifest.hpp"

extern "C" int LLVMFuzzerTestOneInput(const char* data, std::size_t size) {
  try {
    sana_rt::runtime::decode_manifest({data, size});
  } catch (const sana_rt::runtime::Error&) {
    return 0;
  }
  return 0;
}
