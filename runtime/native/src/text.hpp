// From a prompt to the text the transformer sees: tokens in, selected hidden states out. The rule
// and its reasons are those of the Python module sana_rt.runtime.text.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "model_spec.hpp"
#include "tokenizer.hpp"

namespace sana_rt::runtime {

// One prompt as the text encoder takes it, without padding.
struct TokenizedPrompt {
  std::vector<std::int64_t> input_ids;
  std::vector<std::int64_t> keep;  // the positions of the padded sequence the transformer sees
  std::size_t truncated_tokens = 0;
  std::string truncated_text;
};

// A Gemma tokenizer with the instruction that goes before a prompt.
class PromptTokenizer {
 public:
  // The content of the tokenizer.json at `path`, which is for messages; a TokenizerError if it is
  // damaged or not the encoder's.
  PromptTokenizer(const std::string& content, const std::filesystem::path& path, TextSpec spec);

  // The most tokens that the text encoder is given.
  std::int64_t max_length(bool instruction) const;

  // A prompt (with the instruction) or a negative prompt (without). A TokenizerError where the
  // tokenizer's patterns or rules take a text nowhere.
  TokenizedPrompt encode(std::string text, bool instruction) const;

 private:
  std::vector<Token> tokens(const std::string& text) const;
  void check() const;

  std::filesystem::path path_;
  TextSpec spec_;
  Tokenizer tokenizer_;
};

// Strips a prompt and says how much shall move, in the words of the training captions.
std::string prompt_text(const std::string& prompt, std::optional<std::int64_t> motion_score,
                        bool lowercase);

}  // namespace sana_rt::runtime
