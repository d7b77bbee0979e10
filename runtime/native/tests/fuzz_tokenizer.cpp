// Any bytes as a tokenizer.json, which then encodes a text.
#include <string_view>

#include "tokenizer.hpp"

extern "C" int LLVMFuzzerTestOneInput(const char* data, std::size_t size) {
  using sana_rt::runtime::DocumentError;
  using sana_rt::runtime::Tokenizer;
  try {
    Tokenizer::parse({data, size}).encode("a  Red\tcircle, 圆形移动 <bos>\n1½ e\u0301 🙂");
  } catch (const DocumentError&) {
    return 0;
  }
  return 0;
}
