#include "tokenizer.hpp"

#include <algorithm>
#include <array>
#include <limits>

#include "error.hpp"
#include "pattern.hpp"
#include "unicode.hpp"

namespace sana_rt::runtime {
namespace {

constexpr JsonLimits kLimits{.depth = 64};
constexpr std::size_t kMostBytes = std::size_t{16} << 20;  // of a text, while parts rewrite it
// How GPT-2 cuts a text into words: openai/gpt-2, encoder.py.
constexpr const char* kWords =
    R"({"Regex": "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"})";

enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

[[noreturn]] void refuse(const Path& path, std::string_view what) {
  throw DocumentError(Rule::kValue, concat(path, " has ", what, ", which is not supported"));
}

std::string type_of(const Json& value, const Path& path) {
  const auto* type = value.find("type");
  if (type == nullptr) throw DocumentError(Rule::kField, path + " has no type");
  return as_string(*type, path + ".type");
}

const Json& member(const Json& value, const char* name, const Path& path) {
  const auto* found = value.find(name);
  if (found == nullptr) throw DocumentError(Rule::kField, concat(path, " has no ", name));
  return *found;
}

bool flag(const Json& value, const char* name, const Path& path) {
  return as_bool(member(value, name, path), path + "." + name);
}

Behavior as_behavior(const Json& value, const Path& path) {
  constexpr std::array kNames{"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext",
                              "Contiguous"};
  const auto name =
      one_of(value, path, {kNames[0], kNames[1], kNames[2], kNames[3], kNames[4]});
  return static_cast<Behavior>(std::find(kNames.begin(), kNames.end(), name) - kNames.begin());
}

// A stretch of a piece, and whether the pattern matched it.
struct Stretch {
  std::size_t begin, end;
  bool matched;
};

std::vector<Stretch> stretches(const Pattern& pattern, std::string_view text, bool invert) {
  std::vector<Stretch> found;
  std::size_t end = 0;
  for (const auto& [begin, stop] : pattern.matches(text)) {
    if (begin != end) found.push_back({end, begin, invert});
    found.push_back({begin, stop, !invert});
    end = stop;
  }
  if (end != text.size()) found.push_back({end, text.size(), invert});
  return found;
}

std::vector<Stretch> merged_with_previous(const std::vector<Stretch>& found) {
  std::vector<Stretch> merged;
  bool matched = false;
  for (const auto& one : found) {
    if (one.matched && !matched && !merged.empty()) {
      merged.back().end = one.end;
    } else {
      merged.push_back({one.begin, one.end, false});
    }
    matched = one.matched;
  }
  return merged;
}

std::vector<Stretch> merged_with_next(const std::vector<Stretch>& found) {
  std::vector<Stretch> merged;
  bool matched = false;
  for (auto one = found.rbegin(); one != found.rend(); ++one) {
    if (one->matched && !matched && !merged.empty()) {
      merged.back().begin = one->begin;
    } else {
      merged.push_back({one->begin, one->end, false});
    }
    matched = one->matched;
  }
  std::reverse(merged.begin(), merged.end());
  return merged;
}

std::vector<Stretch> contiguous(const std::vector<Stretch>& found) {
  std::vector<Stretch> merged;
  for (const auto& one : found) {
    if (!merged.empty() && merged.back().matched == one.matched) {
      merged.back().end = one.end;
    } else {
      merged.push_back(one);
    }
  }
  return merged;
}

std::vector<Stretch> behaved(std::vector<Stretch> found, Behavior behavior) {
  switch (behavior) {
    case Behavior::kRemoved:
      std::erase_if(found, [](const Stretch& one) { return one.matched; });
      return found;
    case Behavior::kIsolated: return found;
    case Behavior::kMergedWithPrevious: return merged_with_previous(found);
    case Behavior::kMergedWithNext: return merged_with_next(found);
    case Behavior::kContiguous: return contiguous(found);
  }
  return found;
}

std::vector<Piece> split(const Piece& piece, const Pattern& pattern, Behavior behavior,
                         bool invert) {
  std::vector<Piece> pieces;
  for (const auto& one : behaved(stretches(pattern, piece.bytes, invert), behavior)) {
    if (one.begin != one.end) pieces.push_back(piece.cut(one.begin, one.end));
  }
  return pieces;
}

// Parts that each make a text longer could fill any memory.
void check_size(const Piece& piece) {
  if (piece.bytes.size() > kMostBytes) {
    throw DocumentError(Rule::kLimit, concat("a text grows beyond ", kMostBytes, " bytes in it"));
  }
}

Piece replace(const Piece& piece, const Pattern& pattern, const std::string& content) {
  Piece result;
  for (const auto& one : stretches(pattern, piece.bytes, false)) {
    if (!one.matched) {
      const auto kept = piece.cut(one.begin, one.end);
      result.bytes += kept.bytes;
      result.origin.insert(result.origin.end(), kept.origin.begin(), kept.origin.end());
    } else if (one.begin < piece.origin.size()) {
      result.bytes += content;
      result.origin.insert(result.origin.end(), content.size(), piece.origin[one.begin]);
    }
    check_size(result);
  }
  return result;
}

// The character that stands for each byte in a byte-level vocabulary, as GPT-2 has them: itself
// if it can be printed, else one above 255.
std::array<std::string, 256> byte_characters() {
  std::array<std::string, 256> characters;
  char32_t next = 256;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
                           (byte >= 0xAE && byte <= 0xFF);
    const char32_t code = printable ? static_cast<char32_t>(byte) : next++;
    characters.at(byte) = utf8(std::u32string_view(&code, 1));
  }
  return characters;
}

Piece byte_level(const Piece& piece) {
  static const auto characters = byte_characters();
  Piece result;
  for (std::size_t at = 0; at < piece.bytes.size(); ++at) {
    const auto& character = characters.at(static_cast<unsigned char>(piece.bytes[at]));
    result.bytes += character;
    result.origin.insert(result.origin.end(), character.size(), piece.origin[at]);
  }
  check_size(result);
  return result;
}

AddedToken as_added_token(const Json& value, const Path& path) {
  AddedToken token;
  token.content = as_string(member(value, "content", path), path + ".content");
  token.single_word = flag(value, "single_word", path);
  token.lstrip = flag(value, "lstrip", path);
  token.rstrip = flag(value, "rstrip", path);
  token.normalized = flag(value, "normalized", path);
  token.special = flag(value, "special", path);
  return token;
}

// A stretch of a text that is an added token, or none.
struct Found {
  std::size_t begin, end;
  const AddedToken* token;
};

const Pattern& word_at_end() {
  static const auto pattern = Pattern::parse(parse_json(R"({"Regex": "\\w\\z"})"), "");
  return pattern;
}

const Pattern& word_at_begin() {
  static const auto pattern = Pattern::parse(parse_json(R"({"Regex": "\\A\\w"})"), "");
  return pattern;
}

const Pattern& spaces_at_end() {
  static const auto pattern = Pattern::parse(parse_json(R"({"Regex": "\\s+\\z"})"), "");
  return pattern;
}

const Pattern& spaces_at_begin() {
  static const auto pattern = Pattern::parse(parse_json(R"({"Regex": "\\A\\s+"})"), "");
  return pattern;
}

bool is_word(std::string_view text, Found found) {
  return word_at_end().matches(text.substr(0, found.begin)).empty() &&
         word_at_begin().matches(text.substr(found.end)).empty();
}

// Takes the spaces around a token in, if it says so.
Found stripped(std::string_view text, Found found, std::size_t after) {
  if (found.token->lstrip) {
    const auto spaces = spaces_at_end().matches(text.substr(0, found.begin));
    if (!spaces.empty()) found.begin = std::max(spaces.front().first, after);
  }
  if (found.token->rstrip) {
    const auto spaces = spaces_at_begin().matches(text.substr(found.end));
    if (!spaces.empty()) found.end += spaces.front().second;
  }
  return found;
}

// The longest token at a place, or null. `Tokens` are by first byte.
template <class Tokens>
const AddedToken* longest_at(const Tokens& tokens, std::string_view text, std::size_t at) {
  const AddedToken* longest = nullptr;
  const auto [begin, end] = tokens.equal_range(text[at]);
  for (auto each = begin; each != end; ++each) {
    const AddedToken& token = each->second;
    if (text.substr(at).starts_with(token.content) &&
        (longest == nullptr || token.content.size() > longest->content.size())) {
      longest = &token;
    }
  }
  return longest;
}

template <class Tokens>
std::vector<Found> find_added(const Tokens& tokens, std::string_view text) {
  std::vector<Found> found;
  std::size_t end = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto* token = longest_at(tokens, text, at);
    if (token == nullptr) {
      ++at;
      continue;
    }
    const Found match{at, at + token->content.size(), token};
    at = match.end;
    if (token->single_word && !is_word(text, match)) continue;
    const Found whole = stripped(text, match, end);
    if (end < whole.begin) found.push_back({end, whole.begin, nullptr});
    found.push_back(whole);
    end = whole.end;
  }
  if (end < text.size()) found.push_back({end, text.size(), nullptr});
  return found;
}

}  // namespace

Piece Piece::cut(std::size_t begin, std::size_t end) const {
  return {bytes.substr(begin, end - begin),
          {origin.begin() + static_cast<std::ptrdiff_t>(begin),
           origin.begin() + static_cast<std::ptrdiff_t>(end)}};
}

Tokenizer Tokenizer::parse(std::string_view document) {
  const Json root = parse_json(document, kLimits);
  const Path path = "the tokenizer";
  as_object(root, path);
  const auto part = [&](const char* name, auto&& read) {
    const auto* value = root.find(name);
    if (value != nullptr && !value->is_null()) read(*value, path + "." + name);
  };
  Tokenizer tokenizer;
  tokenizer.model_ = BytePairs::parse(member(root, "model", path), path + ".model");
  part("normalizer", [&](const Json& value, const Path& at) { tokenizer.add_normalizer(value, at); });
  part("pre_tokenizer", [&](const Json& value, const Path& at) { tokenizer.add_splitter(value, at); });
  part("post_processor", [&](const Json& value, const Path& at) { tokenizer.add_template(value, at); });
  part("added_tokens", [&](const Json& value, const Path& at) { tokenizer.add_tokens(value, at); });
  return tokenizer;
}

void Tokenizer::add_normalizer(const Json& value, const Path& path) {
  const auto type = type_of(value, path);
  if (type == "Sequence") {
    for (const Json& each : as_array(member(value, "normalizers", path), path)) {
      add_normalizer(each, path);
    }
  } else if (type == "Replace") {
    normalizers_.push_back([pattern = Pattern::parse(member(value, "pattern", path), path),
                            content = as_string(member(value, "content", path), path)](
                               const Piece& piece) { return replace(piece, pattern, content); });
  } else {
    refuse(path, "the normalizer " + in_quotes(type));
  }
}

void Tokenizer::add_splitter(const Json& value, const Path& path) {
  const auto type = type_of(value, path);
  if (type == "Sequence") {
    for (const Json& each : as_array(member(value, "pretokenizers", path), path)) {
      add_splitter(each, path);
    }
  } else if (type == "Split") {
    splitters_.push_back([pattern = Pattern::parse(member(value, "pattern", path), path),
                          behavior = as_behavior(member(value, "behavior", path), path),
                          invert = flag(value, "invert", path)](const Piece& piece) {
      return split(piece, pattern, behavior, invert);
    });
  } else if (type == "ByteLevel") {
    if (flag(value, "add_prefix_space", path)) refuse(path, "a prefix space");
    if (value.find("use_regex") == nullptr || flag(value, "use_regex", path)) {
      splitters_.push_back([pattern = Pattern::parse(parse_json(kWords), path)](const Piece& piece) {
        return split(piece, pattern, Behavior::kIsolated, false);
      });
    }
    splitters_.push_back([](const Piece& piece) { return std::vector{byte_level(piece)}; });
  } else {
    refuse(path, "the pre-tokenizer " + in_quotes(type));
  }
}

void Tokenizer::add_template(const Json& value, const Path& path) {
  const auto type = type_of(value, path);
  if (type == "ByteLevel") return;  // it moves offsets, not ids
  if (type == "Sequence") {
    for (const Json& each : as_array(member(value, "processors", path), path)) {
      add_template(each, path);
    }
    return;
  }
  if (type != "TemplateProcessing") refuse(path, "the post-processor " + in_quotes(type));
  bool behind = false;
  for (const Json& each : as_array(member(value, "single", path), path)) {
    if (each.find("Sequence") != nullptr) {
      if (behind) refuse(path, "a template with two sequences");
      behind = true;
      continue;
    }
    const auto& special = member(each, "SpecialToken", path);
    const auto name = as_string(member(special, "id", path), path);
    const auto& ids = member(member(member(value, "special_tokens", path), name.c_str(), path),
                             "ids", path);
    for (const auto id : as_list(ids, path, as_natural)) {
      if (id > std::numeric_limits<TokenId>::max()) refuse(path, "an id above 32 bits");
      (behind ? suffix_ : prefix_).push_back(static_cast<TokenId>(id));
    }
  }
  if (!behind) refuse(path, "a template without a sequence");
}

void Tokenizer::add_tokens(const Json& value, const Path& path) {
  std::map<std::string, TokenId> ids;
  TokenId next = static_cast<TokenId>(model_.size());
  for (auto& token : as_list(value, path, as_added_token)) {
    if (token.content.empty()) continue;
    const auto known = model_.id(token.content);
    const auto added = ids.find(token.content);
    token.id = known ? *known : added != ids.end() ? added->second : next;
    ids.insert_or_assign(token.content, token.id);
    if (token.id == std::numeric_limits<TokenId>::max()) refuse(path, "an id above 32 bits");
    next = std::max(next, token.id + 1);
    special_[token.id] = token.special;
    if (token.normalized) {
      Piece piece{token.content, std::vector<std::size_t>(token.content.size())};
      token.content = normalized(piece).bytes;
      if (token.content.empty()) continue;
    }
    const char first = token.content.front();
    (token.normalized ? normalized_tokens_ : raw_tokens_).emplace(first, std::move(token));
  }
  size_ = model_.size() + static_cast<std::size_t>(std::count_if(ids.begin(), ids.end(), [&](const auto& each) {
    return !model_.id(each.first);
  }));
}

bool Tokenizer::is_special(std::int64_t id) const {
  const auto found = id < 0 || id > std::numeric_limits<TokenId>::max()
                         ? special_.end()
                         : special_.find(static_cast<TokenId>(id));
  return found != special_.end() && found->second;
}

Piece Tokenizer::normalized(const Piece& piece) const {
  Piece result = piece;
  for (const auto& normalizer : normalizers_) result = normalizer(result);
  return result;
}

std::vector<Token> Tokenizer::words(const Piece& piece) const {
  std::vector<Piece> pieces{piece};
  for (const auto& splitter : splitters_) {
    std::vector<Piece> cut;
    for (const auto& each : pieces) {
      for (auto& part : splitter(each)) cut.push_back(std::move(part));
    }
    pieces = std::move(cut);
  }
  std::vector<Token> tokens;
  for (const auto& word : pieces) {
    for (const auto& token : model_.encode(word.bytes)) {
      tokens.push_back({token.id, word.origin[token.start]});
    }
  }
  return tokens;
}

std::vector<Token> Tokenizer::encode(std::string_view text) const {
  Piece whole{std::string(text), std::vector<std::size_t>(text.size())};
  for (std::size_t at = 0; at < text.size(); ++at) whole.origin[at] = at;
  std::vector<Token> tokens;
  for (const TokenId id : prefix_) tokens.push_back({id, 0});
  for (const auto& raw : find_added(raw_tokens_, text)) {
    if (raw.token != nullptr) {
      tokens.push_back({raw.token->id, raw.begin});
      continue;
    }
    const Piece piece = normalized(whole.cut(raw.begin, raw.end));
    for (const auto& part : find_added(normalized_tokens_, piece.bytes)) {
      if (part.token != nullptr) {
        tokens.push_back({part.token->id, piece.origin[part.begin]});
      } else {
        const auto found = words(piece.cut(part.begin, part.end));
        tokens.insert(tokens.end(), found.begin(), found.end());
      }
    }
  }
  for (const TokenId id : suffix_) tokens.push_back({id, text.size()});
  return tokens;
}

}  // namespace sana_rt::runtime
