// Errors that users can meet: what happened, what was expected, what to do.
#pragma once

#include <exception>
#include <sstream>
#include <string>
#include <string_view>

#include "sana_rt.h"

namespace sana_rt::runtime {

struct Advice {
  std::string expected = {};
  std::string remedy = {};
};

// Thrown on purpose; becomes a status and a text at the C interface.
class Error : public std::exception {
 public:
  Error(sana_status status, std::string happened, const Advice& advice = {});

  sana_status status() const noexcept { return status_; }
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  sana_status status_;
  std::string text_;
};

// Its arguments, one behind the other.
template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return std::move(out).str();
}

// A value from outside, in quotes, control characters escaped, shortened.
std::string in_quotes(std::string_view value);

// Elements in brackets.
template <class Range>
std::string listed(const Range& range) {
  std::ostringstream out;
  out << '[';
  const char* separator = "";
  for (const auto& element : range) {
    out << separator << element;
    separator = ", ";
  }
  out << ']';
  return std::move(out).str();
}

}  // namespace sana_rt::runtime
