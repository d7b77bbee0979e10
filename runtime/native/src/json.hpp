// JSON from strangers: strict text, bounded depth and numbers, objects read field by field.
#pragma once

#include <cstdint>
#include <exception>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace sana_rt::runtime {

// A value; objects keep the order of their members.
struct Json {
  struct Member;
  using Array = std::vector<Json>;
  using Object = std::vector<Member>;

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(value); }
  const std::string* string() const { return std::get_if<std::string>(&value); }
  const Array* array() const { return std::get_if<Array>(&value); }
  const Object* object() const { return std::get_if<Object>(&value); }
  // The member called `name`, or null where there is none.
  const Json* find(std::string_view name) const;

  // Integers are unsigned where 63 bits do not hold them.
  std::variant<std::nullptr_t, bool, std::int64_t, std::uint64_t, double, std::string, Array,
               Object>
      value;
};

struct Json::Member {
  std::string key;
  Json value;
};

// The rule that a document breaks; callers name the document in their own error.
enum class Rule { kSyntax, kDuplicate, kLimit, kField, kValue };

class DocumentError : public std::exception {
 public:
  DocumentError(Rule rule, std::string reason) : rule_(rule), reason_(std::move(reason)) {}
  Rule rule() const noexcept { return rule_; }
  const char* what() const noexcept override { return reason_.c_str(); }

 private:
  Rule rule_;
  std::string reason_;
};

struct JsonLimits {
  int depth = 16;                                      // of nested objects and arrays
  std::uint64_t integer = (std::uint64_t{1} << 53) - 1;  // the absolute value of any
};

// A document in UTF-8 without a byte order mark and without two equal keys in an object.
Json parse_json(std::string_view data, const JsonLimits& limits = {});

// Where in a document a value is, for messages.
using Path = std::string;

// Values of a type. A wrong type breaks kSyntax.
std::string as_string(const Json& value, const Path& path);
bool as_bool(const Json& value, const Path& path);
double as_number(const Json& value, const Path& path);
std::int64_t as_integer(const Json& value, const Path& path);
const Json::Object& as_object(const Json& value, const Path& path);
const Json::Array& as_array(const Json& value, const Path& path);

// Values in a range; others break kValue.
std::int64_t as_natural(const Json& value, const Path& path);  // 0 or more
std::uint64_t as_unsigned(const Json& value, const Path& path);
std::int64_t as_count(const Json& value, const Path& path);    // 1 or more
double as_positive(const Json& value, const Path& path);
double as_non_negative(const Json& value, const Path& path);
std::string one_of(const Json& value, const Path& path, std::initializer_list<const char*> names);

template <class Read>
auto as_list(const Json& value, const Path& path, const Read& read) {
  std::vector<decltype(read(value, path))> list;
  for (const Json& element : as_array(value, path)) {
    list.push_back(read(element, path + "[" + std::to_string(list.size()) + "]"));
  }
  return list;
}

template <class Read>
auto as_map(const Json& value, const Path& path, const Read& read) {
  std::map<std::string, decltype(read(value, path))> map;
  for (const auto& [key, element] : as_object(value, path)) {
    map.emplace(key, read(element, path + "." + key));
  }
  return map;
}

// The fields of an object, each read once by name. Missing and unknown ones break kField.
class Fields {
 public:
  Fields(const Json& value, Path path) : object_(value), path_(std::move(path)) {
    as_object(value, path_);
  }

  template <class Read>
  auto required(const char* name, const Read& read) {
    const Json* found = take(name);
    if (found == nullptr) missing(name);
    return read(*found, path_ + "." + name);
  }

  template <class T, class Read>
  T defaulted(const char* name, T fallback, const Read& read) {
    const Json* found = take(name);
    return found == nullptr ? std::move(fallback) : T(read(*found, path_ + "." + name));
  }

  // A field that may be null, or be left out.
  template <class Read>
  auto nullable(const char* name, const Read& read)
      -> std::optional<decltype(read(std::declval<const Json&>(), std::declval<const Path&>()))> {
    const Json* found = take(name);
    if (found == nullptr || found->is_null()) return std::nullopt;
    return read(*found, path_ + "." + name);
  }

  // Refuses the fields that nothing has read.
  void finish() const;

 private:
  const Json* take(const char* name);
  [[noreturn]] void missing(const char* name) const;

  const Json& object_;
  Path path_;
  std::vector<std::string> taken_;
};

}  // namespace sana_rt::runtime
