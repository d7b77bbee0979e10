// Any bytes as a tokenizer.json, which then encodes a text: what is behind the first NUL, if there is
// one, as no JSON has it.
#include <string_view>

#include "tokenizer.hpp"
#include "unicode.hpp"

extern "C" int LLVMFuzzerTestOneInput(const char* data, std::size_t size) {
  using namespace sana_rt::runtime;
  const std::string_view input(data, size);
  const auto end = input.find('\0');
  std::string_view text = "a  Red\tcircle, 圆形移动 <bos>\n1½ e\u0301 🙂";
  // The interface refuses a prompt that is not UTF-8.
  if (end != std::string_view::npos && invalid_utf8(input.substr(end + 1)) == std::string_view::npos) {
    text = input.substr(end + 1);
  }
  try {
    Tokenizer::parse(input.substr(0, end)).encode(text);
  } catch (const DocumentError&) {
    return 0;
  }
  return 0;
}
