#include "unicode.hpp"

#include <oniguruma.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>

#include "error.hpp"
#include "pattern.hpp"

namespace sana_rt::runtime {
namespace {

constexpr char32_t kCapitalSigma = U'\u03A3';
constexpr char32_t kSmallSigma = U'\u03C3';
constexpr char32_t kFinalSigma = U'\u03C2';
constexpr char32_t kCapitalIWithDot = U'\u0130';

// What str.isspace says.
bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

std::u32string_view strip(std::u32string_view text) {
  const auto begin = std::find_if_not(text.begin(), text.end(), is_space);
  text.remove_prefix(static_cast<std::size_t>(begin - text.begin()));
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

// A property of code points that Oniguruma's tables know by name.
class Property {
 public:
  explicit Property(std::string_view name) {
    initialize_oniguruma();
    const auto* begin = reinterpret_cast<const OnigUChar*>(name.data());
    type_ = ONIG_ENCODING_UTF8->property_name_to_ctype(
        ONIG_ENCODING_UTF8, const_cast<OnigUChar*>(begin),
        const_cast<OnigUChar*>(begin + name.size()));
    if (type_ < 0) throw Error(SANA_INTERNAL_ERROR, concat("Oniguruma has no property ", name));
  }

  bool of(char32_t c) const {
    return ONIG_ENCODING_UTF8->is_code_ctype(c, static_cast<OnigCtype>(type_)) != 0;
  }

 private:
  int type_;
};

// Whether the first of the code points that case does not ignore has a case.
template <class Iterator>
bool meets_cased(Iterator begin, Iterator end) {
  static const Property cased("Cased");
  static const Property ignorable("Case_Ignorable");
  const auto found = std::find_if_not(begin, end, [](char32_t c) { return ignorable.of(c); });
  return found != end && cased.of(*found);
}

char32_t lower_sigma(std::u32string_view text, std::size_t at) {
  const auto before = text.substr(0, at);
  const auto behind = text.substr(at + 1);
  const bool last = meets_cased(before.rbegin(), before.rend()) &&
                    !meets_cased(behind.begin(), behind.end());
  return last ? kFinalSigma : kSmallSigma;
}

std::u32string lower(std::u32string_view text) {
  std::u32string result;
  for (std::size_t at = 0; at < text.size(); ++at) {
    const char32_t c = text[at];
    if (c == kCapitalSigma) {
      result += lower_sigma(text, at);
    } else if (c == kCapitalIWithDot) {
      result += U"i\u0307";  // the one letter that becomes two
    } else {
      result += static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
    }
  }
  return result;
}

const utf8proc_uint8_t* bytes(std::string_view text) {
  return reinterpret_cast<const utf8proc_uint8_t*>(text.data());
}

}  // namespace

std::size_t invalid_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    utf8proc_int32_t code = 0;
    const auto size = utf8proc_iterate(
        bytes(text.substr(at)), static_cast<utf8proc_ssize_t>(text.size() - at), &code);
    if (size <= 0) return at;
    at += static_cast<std::size_t>(size);
  }
  return std::string_view::npos;
}

std::u32string code_points(std::string_view text) {
  std::u32string result;
  for (std::size_t at = 0; at < text.size();) {
    utf8proc_int32_t code = 0;
    const auto size = utf8proc_iterate(
        bytes(text.substr(at)), static_cast<utf8proc_ssize_t>(text.size() - at), &code);
    result += static_cast<char32_t>(code);
    at += static_cast<std::size_t>(std::max<utf8proc_ssize_t>(size, 1));
  }
  return result;
}

std::string utf8(std::u32string_view code_points) {
  std::string result;
  for (const char32_t code : code_points) {
    std::array<utf8proc_uint8_t, 4> encoded{};
    const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code), encoded.data());
    result.append(reinterpret_cast<const char*>(encoded.data()), static_cast<std::size_t>(size));
  }
  return result;
}

std::string strip(std::string_view text) { return utf8(strip(code_points(text))); }

std::string lower(std::string_view text) { return utf8(lower(code_points(text))); }

}  // namespace sana_rt::runtime
