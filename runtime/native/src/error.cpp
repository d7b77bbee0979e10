#include "error.hpp"

#include <algorithm>

namespace sana_rt::runtime {

Error::Error(sana_status status, std::string happened, const Advice& advice)
    : status_(status), text_(std::move(happened)) {
  if (!advice.expected.empty()) text_ += "\nExpected: " + advice.expected;
  if (!advice.remedy.empty()) text_ += "\nTo fix: " + advice.remedy;
}

std::string in_quotes(std::string_view value) {
  constexpr std::size_t kMost = 100;
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string out = "'";
  auto end = std::min(value.size(), kMost);
  // Not inside of a character.
  while (end > 0 && end < value.size() && (static_cast<unsigned char>(value[end]) & 0xC0U) == 0x80U) {
    --end;
  }
  for (const char character : value.substr(0, end)) {
    const auto byte = static_cast<unsigned char>(character);
    if (byte < 0x20 || byte == 0x7f) {
      out += {'\\', 'x', kHex[byte >> 4U], kHex[byte & 15U]};
    } else {
      out += character;
    }
  }
  return out + (end < value.size() ? "...'" : "'");
}

}  // namespace sana_rt::runtime
