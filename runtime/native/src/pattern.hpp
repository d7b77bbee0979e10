// What a tokenizer searches for: a string, or a regular expression of Oniguruma.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "json.hpp"

namespace sana_rt::runtime {

// Before any other use of Oniguruma; from any thread, any number of times.
void initialize_oniguruma();

class Pattern {
 public:
  // {"String": "..."} or {"Regex": "..."}.
  static Pattern parse(const Json& value, const Path& path);

  // Begin and end of every match, in bytes; of UTF-8.
  std::vector<std::pair<std::size_t, std::size_t>> matches(std::string_view text) const;

 private:
  struct Regex;

  std::string string_;
  std::shared_ptr<const Regex> regex_;
};

}  // namespace sana_rt::runtime
