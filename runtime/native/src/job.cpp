#include "job.hpp"

#include <algorithm>
#include <cstring>
#include <tuple>

#include "autoencoder.hpp"
#include "error.hpp"
#include "noise.hpp"

namespace sana_rt::runtime {
namespace {

void check_size(const char* what, std::size_t found, std::int64_t wanted) {
  if (found != static_cast<std::size_t>(wanted)) {
    throw Error(SANA_REQUEST_ERROR, concat("The ", what, " has ", found, " values."),
                {.expected = concat(wanted, " values.")});
  }
}

void check_finite(const char* what, const std::vector<float>& values) {
  const auto bad = count_non_finite(values);
  if (bad > 0) {
    throw Error(SANA_REQUEST_ERROR,
                concat("The ", what, " has ", bad, " values that are NaN or infinite."));
  }
}

void check_mask(const std::vector<std::int64_t>& mask) {
  const auto is = [](std::int64_t wanted) {
    return [wanted](std::int64_t value) { return value == wanted; };
  };
  const auto ones = std::count_if(mask.begin(), mask.end(), is(1));
  const auto zeros = std::count_if(mask.begin(), mask.end(), is(0));
  if (ones == 0 || ones + zeros != static_cast<std::ptrdiff_t>(mask.size())) {
    throw Error(SANA_REQUEST_ERROR,
                "A prompt attention mask has values other than 0 and 1, or only zeros.",
                {.expected = "1 for each token to attend to, else 0, and at least one 1."});
  }
}

void check_embeds(const std::vector<PromptEmbeds>& embeds, const Request& request,
                  const ModelSpec& model) {
  if (static_cast<std::int64_t>(embeds.size()) != request.batch()) {
    throw Error(SANA_REQUEST_ERROR, concat("There are embeddings of ", embeds.size(), " prompts."),
                {.expected = concat(request.batch(), " with guidance_scale ",
                                    request.guidance_scale, ".")});
  }
  const auto length = model.text.max_tokens;
  for (const auto& one : embeds) {
    check_size("prompt embeds", one.hidden_states.size(),
               length * model.transformer.caption_channels);
    check_finite("prompt embeds", one.hidden_states);
    check_size("prompt attention mask", one.attention_mask.size(), length);
    check_mask(one.attention_mask);
  }
}

// What else than the prompt decides about the embeddings.
auto text_of(const Request& request) {
  return std::tuple(request.batch(), request.guided() ? request.negative_prompt : std::string{},
                    request.motion_score, request.lowercase);
}

}  // namespace

void Inputs::check(const Request& request, const ModelSpec& model) const {
  if (!noise.empty()) {
    check_size("noise", noise.size(), num_elements(latents_shape(request, model)));
    check_finite("noise", noise);
  }
  if (!image.empty()) check_size("image", image.size(), request.height * request.width * 3);
  if (prompt_embeds) check_embeds(*prompt_embeds, request, model);
}

std::vector<Range> Job::chunks() const {
  return chunk_ranges(*model, latent_frames(), position().next());
}

std::int64_t Job::longest() const {
  std::int64_t longest = std::max<std::int64_t>(1, position().pending);
  for (const auto& chunk : chunks()) longest = std::max(longest, chunk.size());
  return longest;
}

std::int64_t Job::shortest() const {
  auto shortest = longest();
  if (position().pending > 0) shortest = std::min(shortest, position().pending);
  for (const auto& chunk : chunks()) shortest = std::min(shortest, chunk.size());
  return shortest;
}

std::int64_t Job::passes() const {
  const auto count = static_cast<std::int64_t>(chunks().size());
  const auto steps = static_cast<std::int64_t>(schedule(request, *model).size());
  const auto commits = count == 0 ? 0 : count - (position().pending == 0 ? 1 : 0);
  return steps * count + commits;
}

std::map<std::string, Embeds> Job::known() const {
  if (inputs.prompt_embeds) return {{request.prompt, inputs.prompt_embeds}};
  if (!resume || text_of(resume->header.request) != text_of(request)) return {};
  return {{resume->header.request.prompt, resume->embeds()}};
}

std::vector<std::string> Job::prompts() const {
  if (inputs.prompt_embeds) return {};
  const auto known = this->known();
  std::vector<std::string> wanted;
  const auto add = [&](const std::string& prompt) {
    if (!known.contains(prompt) &&
        std::find(wanted.begin(), wanted.end(), prompt) == wanted.end()) {
      wanted.push_back(prompt);
    }
  };
  add(request.prompt);
  for (const auto& [frame, prompt] : later) add(prompt);
  return wanted;
}

const std::string& Job::prompt(std::int64_t frame) const {
  const std::string* current = &request.prompt;
  for (const auto& each : later) {
    if (each.frame <= frame) current = &each.prompt;
  }
  return *current;
}

std::vector<float> Job::start(Range frames) const {
  if (inputs.noise.empty()) return noise(frames, 0);
  HostTensor given{DType::kFloat32, latents_shape(request, *model), {}};
  const auto* begin = reinterpret_cast<const std::byte*>(inputs.noise.data());
  given.data.assign(begin, begin + inputs.noise.size() * sizeof(float));
  return cut_frames(given, frames);
}

std::vector<float> Job::noise(Range frames, std::int64_t step) const {
  const auto shape = latents_shape(request, *model);
  return gaussian(request.seed, frames, {shape[1], shape[3], shape[4]},
                  static_cast<std::uint32_t>(step));
}

}  // namespace sana_rt::runtime
