#include "prompts.hpp"

#include <algorithm>

#include "graph_names.hpp"

namespace sana_rt::runtime {

std::vector<Region> encoder_regions(const Graphs& graphs) {
  const auto& encoder = graphs.signature(kTextEncoder);
  return {region("text", encoder, "input_ids").single(),
          region("text", encoder, "attention_mask").single().named("input_mask"),
          region("text", encoder, "hidden_states").single().named("encoded")};
}

std::vector<Region> projection_regions(const Graphs& graphs) {
  const auto& projection = graphs.signature(kPrompt);
  std::vector<Region> found;
  for (const auto* name : {"hidden_states", "attention_mask", "text_k", "text_v", "text_bias"}) {
    found.push_back(region("text", projection, name));
  }
  return found;
}

PromptEmbeds encode_prompt(Graphs& graphs, const Buffers& buffers, const TokenizedPrompt& prompt) {
  const auto length = static_cast<std::int64_t>(prompt.input_ids.size());
  const auto sized = buffers.sized("length", length);
  auto& memory = graphs.memory();
  memory.upload(sized.at("input_ids"), prompt.input_ids);
  memory.upload(sized.at("input_mask"),
                std::vector<std::int64_t>(static_cast<std::size_t>(length), 1));
  graphs.run({graphs.bind(
      kTextEncoder,
      {{"input_ids", sized.at("input_ids")}, {"attention_mask", sized.at("input_mask")}},
      {{"hidden_states", sized.at("encoded")}})});
  const auto states = memory.download_floats(sized.at("encoded"));
  const auto channels = sized.at("encoded").shape[2];
  PromptEmbeds embeds;
  embeds.hidden_states.resize(prompt.keep.size() * static_cast<std::size_t>(channels));
  auto to = embeds.hidden_states.begin();
  for (const auto position : prompt.keep) {  // those of the padding are zeros
    const bool valid = position < length;
    if (valid) std::copy_n(states.begin() + position * channels, channels, to);
    embeds.attention_mask.push_back(valid ? 1 : 0);
    to += channels;
  }
  return embeds;
}

void project_prompts(Graphs& graphs, const Buffers& buffers,
                     const std::vector<PromptEmbeds>& embeds) {
  for (std::size_t sample = 0; sample < embeds.size(); ++sample) {
    const auto row = static_cast<std::int64_t>(sample);
    graphs.memory().upload(buffers["hidden_states"].row(row), embeds[sample].hidden_states);
    graphs.memory().upload(buffers["attention_mask"].row(row), embeds[sample].attention_mask);
  }
  graphs.run({graphs.bind(kPrompt, pick(buffers.all(), {"hidden_states", "attention_mask"}),
                          pick(buffers.all(), {"text_k", "text_v", "text_bias"}))});
}

}  // namespace sana_rt::runtime
