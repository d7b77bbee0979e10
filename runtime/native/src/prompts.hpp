// Prompts to the keys and values of every block's cross attention.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "graphs.hpp"
#include "text.hpp"

namespace sana_rt::runtime {

// What the transformer sees of one prompt: hidden states [S, Ct] and mask [S].
struct PromptEmbeds {
  std::vector<float> hidden_states;
  std::vector<std::int64_t> attention_mask;
};

// Of one clip: the negative prompt's, if guided, then the prompt's. Compared by identity.
using Embeds = std::shared_ptr<const std::vector<PromptEmbeds>>;

// Tokens of one prompt, and the text encoder's hidden states.
std::vector<Region> encoder_regions(const Graphs& graphs);

// What the transformer sees of the prompts, and its keys and values for every block.
std::vector<Region> projection_regions(const Graphs& graphs);

// Runs the text encoder on a prompt.
PromptEmbeds encode_prompt(Graphs& graphs, const Buffers& buffers, const TokenizedPrompt& prompt);

// Fills text_k, text_v and text_bias, until the prompt changes.
void project_prompts(Graphs& graphs, const Buffers& buffers,
                     const std::vector<PromptEmbeds>& embeds);

}  // namespace sana_rt::runtime
