// Byte-pair encoding: characters to tokens, and tokens that are merged by rank.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "json.hpp"

namespace sana_rt::runtime {

using TokenId = std::uint32_t;

// A token, and the byte of the text at which it begins.
struct Token {
  TokenId id;
  std::size_t start;
};

// The model "BPE" of the Hugging Face tokenizers library.
class BytePairs {
 public:
  // A DocumentError for a model that is damaged, or has options that this class does not know.
  static BytePairs parse(const Json& value, const Path& path);

  // Tokens of one word of a text.
  std::vector<Token> encode(std::string_view word) const;

  std::optional<TokenId> id(std::string_view token) const;
  std::size_t size() const { return vocabulary_.size(); }

 private:
  struct Merge {
    std::uint32_t rank;
    TokenId merged;
  };
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const {
      return std::hash<std::string_view>{}(text);
    }
  };

  std::vector<Token> characters(std::string_view word) const;
  bool add_bytes(std::string_view character, std::size_t start, std::vector<Token>& tokens) const;
  std::vector<Token> merge(const std::vector<Token>& tokens) const;
  const Merge* merge_of(TokenId left, TokenId right) const;
  void read_merges(const Json& list, const Path& path);

  std::unordered_map<std::string, TokenId, Hash, std::equal_to<>> vocabulary_;
  std::unordered_map<std::uint64_t, Merge> merges_;
  std::optional<TokenId> unknown_;
  bool fuse_unknown_ = false;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;
};

}  // namespace sana_rt::runtime
