#include "json.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "error.hpp"

namespace sana_rt::runtime {
namespace {

constexpr int kOutOfRange = 406;  // nlohmann's number of "number overflow"
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

// Builds the document, and stops at the first event that breaks a rule.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Builder(const JsonLimits& limits) : limits_(limits) {}

  Json take() { return std::move(root_); }

  bool null() override { return add({nullptr}); }
  bool boolean(bool value) override { return add({value}); }
  bool string(string_t& value) override { return add({std::move(value)}); }
  bool binary(binary_t&) override { return false; }

  bool number_integer(number_integer_t value) override {
    const auto magnitude = value < 0 ? ~static_cast<std::uint64_t>(value) + 1
                                     : static_cast<std::uint64_t>(value);
    check_integer(magnitude <= limits_.integer, std::to_string(value));
    return add({std::int64_t{value}});
  }

  bool number_unsigned(number_unsigned_t value) override {
    check_integer(value <= limits_.integer, std::to_string(value));
    if (value > INT64_MAX) return add({std::uint64_t{value}});
    return add({static_cast<std::int64_t>(value)});
  }

  bool number_float(number_float_t value, const string_t& digits) override {
    const bool integer = digits.find_first_of(".eE") == string_t::npos;
    check_integer(!integer, digits);  // one that 64 bits do not hold
    return add({value});
  }

  bool start_object(std::size_t) override { return open({Json::Object{}}); }
  bool start_array(std::size_t) override { return open({Json::Array{}}); }

  bool key(string_t& name) override {
    std::get<Json::Object>(open_.back()->value).push_back({std::move(name), {}});
    return true;
  }

  bool end_object() override {
    check_keys(std::get<Json::Object>(open_.back()->value));
    open_.pop_back();
    return true;
  }

  bool end_array() override {
    open_.pop_back();
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    if (error.id == kOutOfRange) {
      throw DocumentError(Rule::kLimit, "it has a number beyond float64");
    }
    throw DocumentError(Rule::kSyntax, concat("it is not JSON in UTF-8 at byte ", position));
  }

 private:
  bool add(Json value) {
    place(std::move(value));
    return true;
  }

  bool open(Json value) {
    Json& placed = place(std::move(value));
    open_.push_back(&placed);  // stays where it is: nothing is added beside it while it is open
    if (open_.size() > static_cast<std::size_t>(limits_.depth)) {
      throw DocumentError(Rule::kLimit, concat("it nests deeper than ", limits_.depth, " levels"));
    }
    return true;
  }

  Json& place(Json value) {
    if (open_.empty()) return root_ = std::move(value);
    if (auto* array = std::get_if<Json::Array>(&open_.back()->value)) {
      return array->emplace_back(std::move(value));
    }
    return std::get<Json::Object>(open_.back()->value).back().value = std::move(value);
  }

  static void check_keys(const Json::Object& object) {
    std::vector<std::string_view> keys;
    keys.reserve(object.size());
    for (const auto& [key, value] : object) keys.push_back(key);
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end()) {
      throw DocumentError(Rule::kDuplicate,
                          concat("an object has the key ", in_quotes(*twice), " twice"));
    }
  }

  void check_integer(bool fits, const std::string& digits) const {
    if (!fits) {
      throw DocumentError(Rule::kLimit,
                          concat("it has the integer ", in_quotes(digits), ", above ", limits_.integer));
    }
  }

  const JsonLimits& limits_;
  Json root_;
  std::vector<Json*> open_;
};

[[noreturn]] void refuse(Rule rule, const Path& path, std::string_view expected) {
  throw DocumentError(rule, concat(path, " is not ", expected));
}

void check_type(bool fits, const Path& path, std::string_view expected) {
  if (!fits) refuse(Rule::kSyntax, path, expected);
}

}  // namespace

const Json* Json::find(std::string_view name) const {
  const auto* members = object();
  if (members == nullptr) return nullptr;
  for (const auto& [key, member] : *members) {
    if (key == name) return &member;
  }
  return nullptr;
}

Json parse_json(std::string_view data, const JsonLimits& limits) {
  if (data.starts_with(kByteOrderMark)) {
    throw DocumentError(Rule::kSyntax, "it begins with a byte order mark");
  }
  Builder builder(limits);
  nlohmann::json::sax_parse(data, &builder);
  return builder.take();
}

std::string as_string(const Json& value, const Path& path) {
  check_type(value.string() != nullptr, path, "a string");
  return *value.string();
}

bool as_bool(const Json& value, const Path& path) {
  const auto* flag = std::get_if<bool>(&value.value);
  check_type(flag != nullptr, path, "true or false");
  return *flag;
}

double as_number(const Json& value, const Path& path) {
  if (const auto* number = std::get_if<double>(&value.value)) return *number;
  return static_cast<double>(as_integer(value, path));
}

std::int64_t as_integer(const Json& value, const Path& path) {
  if (std::holds_alternative<std::uint64_t>(value.value)) {
    refuse(Rule::kValue, path, "at most 2^63 - 1");
  }
  const auto* number = std::get_if<std::int64_t>(&value.value);
  check_type(number != nullptr, path, "a number of this kind");
  return *number;
}

std::uint64_t as_unsigned(const Json& value, const Path& path) {
  if (const auto* number = std::get_if<std::uint64_t>(&value.value)) return *number;
  return static_cast<std::uint64_t>(as_natural(value, path));
}

const Json::Object& as_object(const Json& value, const Path& path) {
  check_type(value.object() != nullptr, path, "an object");
  return *value.object();
}

const Json::Array& as_array(const Json& value, const Path& path) {
  check_type(value.array() != nullptr, path, "an array");
  return *value.array();
}

std::int64_t as_natural(const Json& value, const Path& path) {
  const auto number = as_integer(value, path);
  if (number < 0) refuse(Rule::kValue, path, "0 or more");
  return number;
}

std::int64_t as_count(const Json& value, const Path& path) {
  const auto number = as_integer(value, path);
  if (number < 1) refuse(Rule::kValue, path, "1 or more");
  return number;
}

double as_positive(const Json& value, const Path& path) {
  const auto number = as_number(value, path);
  if (!(number > 0)) refuse(Rule::kValue, path, "more than 0");
  return number;
}

double as_non_negative(const Json& value, const Path& path) {
  const auto number = as_number(value, path);
  if (!(number >= 0)) refuse(Rule::kValue, path, "0 or more");
  return number;
}

std::string one_of(const Json& value, const Path& path, std::initializer_list<const char*> names) {
  auto name = as_string(value, path);
  if (std::find(names.begin(), names.end(), name) == names.end()) {
    refuse(Rule::kValue, path, "one of " + listed(names));
  }
  return name;
}

void Fields::finish() const {
  for (const auto& [key, value] : *object_.object()) {
    if (std::find(taken_.begin(), taken_.end(), key) == taken_.end()) {
      throw DocumentError(Rule::kField, concat(path_, " has the unknown field ", in_quotes(key)));
    }
  }
}

const Json* Fields::take(const char* name) {
  taken_.emplace_back(name);
  return object_.find(name);
}

void Fields::missing(const char* name) const {
  throw DocumentError(Rule::kField, concat(path_, " has no field ", in_quotes(name)));
}

}  // namespace sana_rt::runtime
