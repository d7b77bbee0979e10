#include "byte_pairs.hpp"

#include <array>
#include <queue>
#include <tuple>

#include "error.hpp"

namespace sana_rt::runtime {
namespace {

constexpr std::int64_t kMostTokens = std::int64_t{1} << 31;

std::uint64_t pair_key(TokenId left, TokenId right) {
  return (std::uint64_t{left} << 32U) | right;
}

std::size_t character_end(std::string_view text, std::size_t at) {
  do ++at;
  while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0U) == 0x80U);
  return at;
}

// The two tokens of a merge: a list, or a string with a space between them.
std::pair<std::string, std::string> as_pair(const Json& value, const Path& path) {
  if (const auto* text = value.string()) {
    const auto space = text->find(' ');
    if (space == std::string::npos || text->find(' ', space + 1) != std::string::npos) {
      throw DocumentError(Rule::kValue, path + " is not two tokens");
    }
    return {text->substr(0, space), text->substr(space + 1)};
  }
  const auto parts = as_list(value, path, as_string);
  if (parts.size() != 2) throw DocumentError(Rule::kValue, path + " is not two tokens");
  return {parts[0], parts[1]};
}

void check_absent(const Json& model, const char* name, const Path& path) {
  const auto* value = model.find(name);
  if (value == nullptr || value->is_null()) return;
  const auto* text = value->string();
  const auto* number = std::get_if<double>(&value->value);
  if ((text == nullptr || !text->empty()) && (number == nullptr || *number != 0)) {
    throw DocumentError(Rule::kValue, path + "." + name + " is not supported");
  }
}

bool flag(const Json& model, const char* name, const Path& path) {
  const auto* value = model.find(name);
  return value != nullptr && !value->is_null() && as_bool(*value, path + "." + name);
}

struct Symbol {
  TokenId id;
  std::size_t start;
  std::ptrdiff_t before, behind;  // in the list of those that are left; -1 at its ends
  bool left = true;
};

// The pair that begins at a symbol. The lowest rank is merged first, from the left.
struct Candidate {
  std::uint32_t rank;
  std::size_t at;
  TokenId merged;

  bool operator<(const Candidate& other) const {  // of a queue whose top is the greatest
    return std::tie(rank, at) > std::tie(other.rank, other.at);
  }
};

}  // namespace

BytePairs BytePairs::parse(const Json& value, const Path& path) {
  Fields fields(value, path);
  const auto* type = value.find("type");
  if (type != nullptr && as_string(*type, path + ".type") != "BPE") {
    throw DocumentError(Rule::kValue, path + " is no BPE model");
  }
  for (const auto* name : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    check_absent(value, name, path);
  }
  BytePairs model;
  for (const auto& [token, id] : fields.required("vocab", as_object)) {
    const auto number = as_natural(id, path + ".vocab");
    if (number >= kMostTokens) throw DocumentError(Rule::kLimit, path + ".vocab has an id too high");
    model.vocabulary_.emplace(token, static_cast<TokenId>(number));
  }
  if (const auto unknown = fields.nullable("unk_token", as_string)) {
    model.unknown_ = model.id(*unknown);
    if (!model.unknown_) throw DocumentError(Rule::kValue, path + ".unk_token is no token");
  }
  model.fuse_unknown_ = flag(value, "fuse_unk", path);
  model.byte_fallback_ = flag(value, "byte_fallback", path);
  model.ignore_merges_ = flag(value, "ignore_merges", path);
  const auto* merges = value.find("merges");
  if (merges == nullptr) throw DocumentError(Rule::kField, path + " has no merges");
  model.read_merges(*merges, path + ".merges");
  return model;
}

void BytePairs::read_merges(const Json& list, const Path& path) {
  std::uint32_t rank = 0;
  for (const Json& element : as_array(list, path)) {
    const auto [left, right] = as_pair(element, path);
    const auto first = id(left);
    const auto second = id(right);
    const auto merged = id(left + right);
    if (!first || !second || !merged) {
      throw DocumentError(Rule::kValue, concat(path, " has ", in_quotes(left + ' ' + right),
                                               ", of which not all are tokens"));
    }
    merges_.insert_or_assign(pair_key(*first, *second), Merge{rank++, *merged});
  }
}

std::optional<TokenId> BytePairs::id(std::string_view token) const {
  const auto found = vocabulary_.find(token);
  return found == vocabulary_.end() ? std::nullopt : std::optional(found->second);
}

std::vector<Token> BytePairs::encode(std::string_view word) const {
  if (word.empty()) return {};
  if (ignore_merges_) {
    if (const auto whole = id(word)) return {{*whole, 0}};
  }
  return merge(characters(word));
}

std::vector<Token> BytePairs::characters(std::string_view word) const {
  std::vector<Token> tokens;
  std::optional<std::size_t> unknown;  // where unknown characters that are not added yet begin
  const auto add_unknown = [&] {
    if (unknown) tokens.push_back({*unknown_, *unknown});
    unknown.reset();
  };
  for (std::size_t at = 0; at < word.size();) {
    const auto end = character_end(word, at);
    const auto character = word.substr(at, end - at);
    if (const auto known = id(character)) {
      add_unknown();
      tokens.push_back({*known, at});
    } else if (!(byte_fallback_ && add_bytes(character, at, tokens)) && unknown_) {
      if (!fuse_unknown_) add_unknown();
      if (!unknown) unknown = at;
    }
    at = end;
  }
  add_unknown();
  return tokens;
}

bool BytePairs::add_bytes(std::string_view character, std::size_t start,
                          std::vector<Token>& tokens) const {
  constexpr std::string_view kHex = "0123456789ABCDEF";
  std::vector<Token> bytes;
  for (std::size_t index = 0; index < character.size(); ++index) {
    const auto byte = static_cast<unsigned char>(character[index]);
    const std::array<char, 6> name{'<', '0', 'x', kHex[byte >> 4U], kHex[byte & 15U], '>'};
    const auto found = id({name.data(), name.size()});
    if (!found) return false;
    bytes.push_back({*found, start + index});
  }
  tokens.insert(tokens.end(), bytes.begin(), bytes.end());
  return true;
}

const BytePairs::Merge* BytePairs::merge_of(TokenId left, TokenId right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

std::vector<Token> BytePairs::merge(const std::vector<Token>& tokens) const {
  std::vector<Symbol> symbols;
  for (const auto& token : tokens) {
    const auto at = static_cast<std::ptrdiff_t>(symbols.size());
    symbols.push_back({token.id, token.start, at - 1, at + 1});
  }
  if (!symbols.empty()) symbols.back().behind = -1;
  std::priority_queue<Candidate> queue;
  const auto consider = [&](std::ptrdiff_t at) {
    if (at < 0) return;
    const Symbol& symbol = symbols[static_cast<std::size_t>(at)];
    if (symbol.behind < 0) return;
    const auto* found = merge_of(symbol.id, symbols[static_cast<std::size_t>(symbol.behind)].id);
    if (found != nullptr) queue.push({found->rank, static_cast<std::size_t>(at), found->merged});
  };
  for (std::size_t at = 0; at < symbols.size(); ++at) consider(static_cast<std::ptrdiff_t>(at));
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& symbol = symbols[top.at];
    if (!symbol.left || symbol.behind < 0) continue;
    Symbol& other = symbols[static_cast<std::size_t>(symbol.behind)];
    const auto* found = merge_of(symbol.id, other.id);
    if (found == nullptr || found->merged != top.merged) continue;  // the pair has changed since
    symbol.id = top.merged;
    symbol.behind = other.behind;
    other.left = false;
    if (symbol.behind >= 0) {
      symbols[static_cast<std::size_t>(symbol.behind)].before = static_cast<std::ptrdiff_t>(top.at);
    }
    consider(symbol.before);
    consider(static_cast<std::ptrdiff_t>(top.at));
  }
  std::vector<Token> merged;
  for (const Symbol& symbol : symbols) {
    if (symbol.left) merged.push_back({symbol.id, symbol.start});
  }
  return merged;
}

}  // namespace sana_rt::runtime
