// Text in UTF-8, as Python's str treats it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace sana_rt::runtime {

// The byte at which a text stops to be UTF-8, or npos.
std::size_t invalid_utf8(std::string_view text);

// Code points of valid UTF-8.
std::u32string code_points(std::string_view text);
std::string utf8(std::u32string_view code_points);

// str.strip and str.lower.
std::string strip(std::string_view text);
std::string lower(std::string_view text);

}  // namespace sana_rt::runtime
