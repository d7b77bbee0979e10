#include "text.hpp"

#include <algorithm>

#include "error.hpp"
#include "unicode.hpp"

namespace sana_rt::runtime {
namespace {

constexpr std::size_t kMaxBytes = std::size_t{64} << 20;
constexpr const char* kRemedy = "use the tokenizer of the same checkpoint as the text encoder.";

constexpr const char* kCopyAgain = "copy the bundle again, or export the checkpoint again.";

Tokenizer parse(const std::string& content, const std::filesystem::path& path) {
  try {
    if (content.size() > kMaxBytes) throw DocumentError(Rule::kLimit, "it has more than 64 MiB");
    return Tokenizer::parse(content);
  } catch (const DocumentError& error) {
    throw Error(SANA_TOKENIZER_ERROR,
                concat(path.string(), " cannot be read as a tokenizer: ", error.what(), "."),
                {.expected = "a tokenizer.json of the Hugging Face tokenizers library.",
                 .remedy = kCopyAgain});
  }
}

}  // namespace

PromptTokenizer::PromptTokenizer(const std::string& content, const std::filesystem::path& path,
                                 TextSpec spec)
    : path_(path), spec_(std::move(spec)), tokenizer_(parse(content, path)) {
  check();
}

void PromptTokenizer::check() const {
  const auto added = tokens("");
  if (added.size() != 1 || added[0].id != spec_.bos_token_id) {
    throw Error(SANA_TOKENIZER_ERROR,
                concat(path_.string(), " encodes the empty text as ", added.size(), " tokens."),
                {.expected = concat("only BOS, ", spec_.bos_token_id, "."), .remedy = kRemedy});
  }
  if (!tokenizer_.is_special(spec_.pad_token_id)) {
    throw Error(SANA_TOKENIZER_ERROR,
                concat(path_.string(), " has no special token ", spec_.pad_token_id, "."),
                {.expected = "a special token for padding.", .remedy = kRemedy});
  }
  if (tokenizer_.size() > static_cast<std::size_t>(spec_.vocab_size)) {
    throw Error(SANA_TOKENIZER_ERROR, concat(path_.string(), " has ", tokenizer_.size(), " tokens."),
                {.expected = concat("at most ", spec_.vocab_size,
                                    ", the rows of the text encoder's embedding."),
                 .remedy = kRemedy});
  }
}

std::vector<Token> PromptTokenizer::tokens(const std::string& text) const {
  try {
    return tokenizer_.encode(text);
  } catch (const DocumentError& error) {
    throw Error(SANA_TOKENIZER_ERROR,
                concat(path_.string(), " cannot encode ", in_quotes(text), ": ", error.what(), "."),
                {.expected = "a tokenizer that encodes any text.", .remedy = kCopyAgain});
  }
}

std::int64_t PromptTokenizer::max_length(bool instruction) const {
  if (!instruction || spec_.instruction.empty()) return spec_.max_tokens;
  // The instruction ends in a space that usually joins the prompt's first token; that token and
  // BOS are the two.
  const auto count = tokens(spec_.instruction).size();
  return static_cast<std::int64_t>(count) + spec_.max_tokens - 2;
}

TokenizedPrompt PromptTokenizer::encode(std::string text, bool instruction) const {
  if (instruction) text = spec_.instruction + text;
  const auto all = tokens(text);
  const auto limit = max_length(instruction);
  const auto kept = std::min(all.size(), static_cast<std::size_t>(limit));
  TokenizedPrompt prompt;
  for (std::size_t i = 0; i < kept; ++i) prompt.input_ids.push_back(all[i].id);
  prompt.keep.push_back(0);
  for (auto at = limit - spec_.max_tokens + 1; at < limit; ++at) prompt.keep.push_back(at);
  prompt.truncated_tokens = all.size() - kept;
  if (prompt.truncated_tokens > 0) {
    auto start = all[kept].start;  // of a token, which may begin inside a character
    while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0U) == 0x80U) --start;
    prompt.truncated_text = text.substr(start);
  }
  return prompt;
}

std::string prompt_text(const std::string& prompt, std::optional<std::int64_t> motion_score,
                        bool lowercase) {
  auto text = strip(prompt);
  if (motion_score) {
    const auto motion =
        *motion_score > 0 ? concat("motion score: ", *motion_score, ".") : std::string("low motion");
    text = text.empty() ? motion : text + ' ' + motion;
  }
  return lowercase ? lower(text) : text;
}

}  // namespace sana_rt::runtime
