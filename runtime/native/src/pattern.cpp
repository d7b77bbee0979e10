#include "pattern.hpp"

#include <oniguruma.h>

#include <array>
#include <mutex>
#include <optional>

#include "error.hpp"

namespace sana_rt::runtime {
namespace {

constexpr unsigned long kMostRetries = 1'000'000;  // of a search, against patterns that explode

using Match = std::pair<std::size_t, std::size_t>;

const OnigUChar* bytes(const char* text) { return reinterpret_cast<const OnigUChar*>(text); }

std::string message(int code) {
  std::array<OnigUChar, ONIG_MAX_ERROR_MESSAGE_LEN> buffer{};
  const int size = onig_error_code_to_str(buffer.data(), code);
  return {reinterpret_cast<const char*>(buffer.data()), static_cast<std::size_t>(size)};
}

struct Region {
  Region() = default;
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  ~Region() { onig_region_free(value, 1); }
  OnigRegion* value = onig_region_new();
};

// Bytes of the character that begins at `at`.
std::size_t character_size(std::string_view text, std::size_t at) {
  std::size_t size = 1;
  while (at + size < text.size() && (static_cast<unsigned char>(text[at + size]) & 0xC0U) == 0x80U) {
    ++size;
  }
  return size;
}

}  // namespace

void initialize_oniguruma() {
  static std::once_flag once;
  std::call_once(once, [] {
    std::array<OnigEncoding, 1> encodings{ONIG_ENCODING_UTF8};
    onig_initialize(encodings.data(), static_cast<int>(encodings.size()));
    onig_set_retry_limit_in_match(kMostRetries);
  });
}

struct Pattern::Regex {
  explicit Regex(const std::string& pattern) {
    initialize_oniguruma();
    OnigErrorInfo error{};
    const int code = onig_new(&compiled, bytes(pattern.data()),
                              bytes(pattern.data() + pattern.size()), ONIG_OPTION_NONE,
                              ONIG_ENCODING_UTF8, ONIG_SYNTAX_DEFAULT, &error);
    if (code != ONIG_NORMAL) {
      throw DocumentError(Rule::kValue, concat("the pattern ", in_quotes(pattern), " has an error"));
    }
  }
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;
  ~Regex() { onig_free(compiled); }

  std::optional<Match> search(std::string_view text, std::size_t from) const {
    const Region region;
    const auto* begin = bytes(text.data());
    const auto* end = begin + text.size();
    const auto code =
        onig_search(compiled, begin, end, begin + from, end, region.value, ONIG_OPTION_NONE);
    if (code == ONIG_MISMATCH) return std::nullopt;
    if (code < 0) throw DocumentError(Rule::kLimit, "a search ended: " + message(code));
    return Match{static_cast<std::size_t>(region.value->beg[0]),
                 static_cast<std::size_t>(region.value->end[0])};
  }

  regex_t* compiled = nullptr;
};

Pattern Pattern::parse(const Json& value, const Path& path) {
  Pattern pattern;
  if (const auto* regex = value.find("Regex")) {
    pattern.regex_ = std::make_shared<const Regex>(as_string(*regex, path));
  } else if (const auto* string = value.find("String")) {
    pattern.string_ = as_string(*string, path);
  } else {
    throw DocumentError(Rule::kField, path + " is neither a String nor a Regex");
  }
  return pattern;
}

std::vector<Match> Pattern::matches(std::string_view text) const {
  std::vector<Match> found;
  if (regex_ == nullptr) {
    if (string_.empty()) return found;
    for (auto at = text.find(string_); at != std::string_view::npos;
         at = text.find(string_, at + string_.size())) {
      found.emplace_back(at, at + string_.size());
    }
    return found;
  }
  for (std::size_t from = 0; from <= text.size();) {
    const auto match = regex_->search(text, from);
    if (!match) break;
    const bool again = match->first == match->second && !found.empty() &&
                       found.back().second == match->second;
    if (again) {  // an empty match right behind the last one
      from += character_size(text, from);
      continue;
    }
    found.push_back(*match);
    from = match->second;
  }
  return found;
}

}  // namespace sana_rt::runtime
