// Prompts to tokens: the vectors of Python, and documents that are refused.
#include <doctest/doctest.h>

#include "data.hpp"
#include "error.hpp"
#include "text.hpp"
#include "tokenizer.hpp"
#include "unicode.hpp"

using namespace sana_rt::runtime;

namespace {

const auto kTokenizer = root() / "examples/shapes/checkpoints/tokenizer/tokenizer.json";

const nlohmann::json& vectors() {
  static const auto all = read_json(root() / "tests/data/native/vectors.json");
  return all;
}

std::vector<TokenId> ids(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<TokenId> all;
  for (const auto& token : tokenizer.encode(text)) all.push_back(token.id);
  return all;
}

}  // namespace

TEST_CASE("tokens are those of the tokenizers library") {
  const auto tokenizer = Tokenizer::parse(content(kTokenizer));
  for (const auto& one : vectors()["tokens"]) {
    INFO(one["text"].dump());
    CHECK(ids(tokenizer, one["text"]) == one["ids"].get<std::vector<TokenId>>());
  }
}

TEST_CASE("prompts become the text that Python makes of them") {
  for (const auto& one : vectors()["texts"]) {
    std::optional<std::int64_t> score;
    if (!one["motion_score"].is_null()) score = one["motion_score"].get<std::int64_t>();
    CHECK(prompt_text(one["prompt"], score, one["lowercase"]) == one["text"].get<std::string>());
  }
}

TEST_CASE("text that is not UTF-8 is found") {
  CHECK(invalid_utf8("a 圆 😀") == std::string::npos);
  CHECK(invalid_utf8("ab\xff") == 2);
  CHECK(invalid_utf8("\xed\xa0\x80") == 0);  // half of a surrogate pair
  CHECK(invalid_utf8("a\xe5\x9c") == 1);
}

TEST_CASE("parts that make a text grow without end are refused") {
  auto document = read_json(kTokenizer);
  const nlohmann::json part = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aaaa"}};
  document["normalizer"] = {{"type", "Sequence"}, {"normalizers", std::vector(30, part)}};
  CHECK_THROWS_AS(Tokenizer::parse(document.dump()).encode("a"), DocumentError);
  document["normalizer"] = part;
  CHECK(Tokenizer::parse(document.dump()).encode("a").size() > 1);
}

TEST_CASE("a search that does not end is an error of the tokenizer") {
  auto document = read_json(kTokenizer);
  document["pre_tokenizer"] = {{"type", "Split"}, {"behavior", "Isolated"}, {"invert", false},
                               {"pattern", {{"Regex", "(a|aa|(a*)*)*$|b"}}}};
  TextSpec spec{};
  spec.bos_token_id = 2;
  spec.vocab_size = 512;
  spec.max_tokens = 8;
  const PromptTokenizer tokenizer(document.dump(), "tokenizer.json", spec);
  CHECK(tokenizer.encode("a", false).truncated_tokens == 0);
  try {
    tokenizer.encode(std::string(3000, 'a') + 'c', false);
    FAIL("it was encoded");
  } catch (const Error& error) {
    CHECK(error.status() == SANA_TOKENIZER_ERROR);
  }
}

TEST_CASE("a tokenizer with a part that is not known is refused") {
  auto document = read_json(kTokenizer);
  document["normalizer"] = {{"type", "NFKC"}};
  CHECK_THROWS_AS(Tokenizer::parse(document.dump()), DocumentError);
  document["normalizer"] = nullptr;
  CHECK_NOTHROW(Tokenizer::parse(document.dump()));
  document["model"]["type"] = "WordPiece";
  CHECK_THROWS_AS(Tokenizer::parse(document.dump()), DocumentError);
}
