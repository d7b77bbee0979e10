// tokenizer.json of the Hugging Face tokenizers library: text to the ids that it gives.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "byte_pairs.hpp"

namespace sana_rt::runtime {

// A part of a text on its way to tokens. `origin` has, for each byte, where in the text it is from.
struct Piece {
  std::string bytes;
  std::vector<std::size_t> origin;

  Piece cut(std::size_t begin, std::size_t end) const;
};

// A token that is found in the text before the model sees it.
struct AddedToken {
  std::string content;
  TokenId id = 0;
  bool single_word = false, lstrip = false, rstrip = false, normalized = false, special = false;
};

// Reads what Gemma's tokenizers and byte-level ones consist of; refuses everything else.
class Tokenizer {
 public:
  // A DocumentError for a document that is damaged, or has parts that this class does not know.
  static Tokenizer parse(std::string_view document);

  // With the special tokens that the document puts around a text; of valid UTF-8.
  std::vector<Token> encode(std::string_view text) const;

  std::size_t size() const { return size_; }
  bool is_special(std::int64_t id) const;

 private:
  using Normalizer = std::function<Piece(const Piece&)>;
  using Splitter = std::function<std::vector<Piece>(const Piece&)>;
  using AddedTokens = std::multimap<char, AddedToken>;  // by their first byte, as it is searched

  void add_normalizer(const Json& value, const Path& path);
  void add_splitter(const Json& value, const Path& path);
  void add_template(const Json& value, const Path& path);
  void add_tokens(const Json& value, const Path& path);
  Piece normalized(const Piece& piece) const;
  std::vector<Token> words(const Piece& piece) const;

  BytePairs model_;
  std::vector<Normalizer> normalizers_;
  std::vector<Splitter> splitters_;
  AddedTokens raw_tokens_;
  AddedTokens normalized_tokens_;
  std::map<TokenId, bool> special_;
  std::vector<TokenId> prefix_;
  std::vector<TokenId> suffix_;
  std::size_t size_ = 0;
};

}  // namespace sana_rt::runtime
