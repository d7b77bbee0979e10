#include "pipeline.hpp"

#include <algorithm>
#include <cstring>

#include "error.hpp"
#include "graph_names.hpp"

namespace sana_rt::runtime {
namespace {

std::string span(Range frames) {
  if (frames.size() == 1) return concat("latent frame ", frames.start);
  return concat("latent frames ", frames.start, " to ", frames.stop - 1);
}

void check_finite(const HostTensor& latents, Range frames) {
  if (is_finite(latents)) return;
  throw Error(SANA_NON_FINITE_ERROR, concat("Latents are NaN or infinite (", span(frames), ")."),
              {.expected = "finite latents.",
               .remedy = "find the graph that wrote the first of them with check_finite."});
}

std::span<const float> floats(const HostTensor& tensor) {
  return {reinterpret_cast<const float*>(tensor.data.data()), tensor.data.size() / sizeof(float)};
}

// One tensor [batch, ...] of those of each sample.
template <class T>
void append(HostTensor& tensor, const std::vector<T>& values) {
  const auto* begin = reinterpret_cast<const std::byte*>(values.data());
  tensor.data.insert(tensor.data.end(), begin, begin + values.size() * sizeof(T));
}

void add_embeds(Arrays& tensors, const std::vector<PromptEmbeds>& embeds) {
  const auto batch = static_cast<std::int64_t>(embeds.size());
  const auto length = static_cast<std::int64_t>(embeds[0].attention_mask.size());
  const auto channels = static_cast<std::int64_t>(embeds[0].hidden_states.size()) / length;
  HostTensor hidden_states{DType::kFloat32, {batch, length, channels}, {}};
  HostTensor mask{DType::kInt64, {batch, length}, {}};
  for (const auto& one : embeds) {
    append(hidden_states, one.hidden_states);
    append(mask, one.attention_mask);
  }
  tensors.insert_or_assign("hidden_states", std::move(hidden_states));
  tensors.insert_or_assign("attention_mask", std::move(mask));
}

}  // namespace

std::map<std::string, Kind> state_kinds(const Graphs& graphs, const ModelSpec& model,
                                        const Request& request, const Position& position) {
  auto regions = CarriedState::snapshot(graphs.signature(block_name(0)),
                                        model.transformer.num_layers);
  for (const auto& one : projection_regions(graphs)) {
    if (one.name == "hidden_states" || one.name == "attention_mask") regions.push_back(one);
  }
  if (position.decoded > 0) {
    const auto caches = Decoder::cache_regions(graphs);
    regions.insert(regions.end(), caches.begin(), caches.end());
  }
  if (position.pending > 0) {
    regions.push_back(region("latents", graphs.signature(kSolver), "latents").single());
  }
  auto dims = request_dims(request, model);
  dims["frames"] = position.pending;
  std::map<std::string, Kind> kinds;
  for (const auto& one : regions) {
    kinds.emplace(one.name, Kind{host_dtype(one.dtype), resolve(one.shape, dims)});
  }
  return kinds;
}

Pipeline::Pipeline(Graphs& graphs, std::shared_ptr<const Buffers> buffers, Job job, Report report)
    : graphs_(graphs),
      buffers_(std::move(buffers)),
      job_(std::move(job)),
      report_(std::move(report)),
      chunks_(job_.chunks()),
      steps_(schedule(job_.request, *job_.model)),
      embeds_(job_.known()),
      state_(graphs.memory(), buffers_->all()) {
  if (!job_.resume) return;
  const auto known = embeds_.find(job_.resume->header.request.prompt);
  const bool same = known != embeds_.end() && !job_.inputs.prompt_embeds;
  resumed_ = same ? known->second : job_.resume->embeds();
}

void Pipeline::encode(const PromptTokenizer& tokenizer, const Log& log) {
  begin("encoding the prompts");
  const auto& request = job_.request;
  const auto prompts = job_.prompts();
  const auto count = static_cast<std::int64_t>(prompts.size()) + request.batch() - 1;
  report_(SANA_STAGE_ENCODE, 0, count);
  const auto encoded = [&](const std::string& text, bool instruction) {
    const auto tokens = tokenizer.encode(text, instruction);
    if (tokens.truncated_tokens > 0) {
      log(SANA_LOG_WARNING, concat("The prompt is too long by ", tokens.truncated_tokens,
                                   " tokens. Left out: ", tokens.truncated_text));
    }
    return encode_prompt(graphs_, *buffers_, tokens);
  };
  std::vector<PromptEmbeds> negative;
  if (request.guided()) {
    const auto text = prompt_text(request.negative_prompt, std::nullopt, request.lowercase);
    negative.push_back(encoded(text, false));
  }
  for (const auto& prompt : prompts) {
    auto embeds = negative;
    embeds.push_back(encoded(prompt_text(prompt, request.motion_score, request.lowercase), true));
    embeds_[prompt] = std::make_shared<const std::vector<PromptEmbeds>>(std::move(embeds));
  }
  report_(SANA_STAGE_ENCODE, count, count);
}

void Pipeline::load(const std::vector<std::string>& names) {
  const auto total = static_cast<std::int64_t>(names.size());
  std::int64_t done = 0;
  for (const auto& name : names) {
    report_(SANA_STAGE_LOAD, done++, total);
    graphs_.open(name);
  }
  report_(SANA_STAGE_LOAD, total, total);
}

std::optional<Pictures> Pipeline::next() {
  if (decoded_unreported_) {
    decoded_unreported_ = false;
    report_(SANA_STAGE_DECODE, decoded_, job_.latent_frames());
  }
  if (!taken_up_) take_up();
  while (!chunk_ || decoded_ >= chunk_->frames.stop) {
    if (next_chunk_ == chunks_.size()) return std::nullopt;
    make_chunk(chunks_[next_chunk_++]);
  }
  return decode();
}

// Goes to where the clip begins.
void Pipeline::take_up() {
  begin("taking up the state");
  if (job_.resume) {
    restore(*job_.resume);
  } else {
    state_.reset();
  }
  if (pending_) chunk_ = Chunk{*pending_, denoiser(*pending_).latents()};
  taken_up_ = true;
}

void Pipeline::restore(const State& state) {
  const auto& position = state.header.position;
  state_.upload(state.tensors);
  decoder().restore(position.decoded, state.tensors);
  committed_ = position.committed;
  decoded_ = position.decoded;
  project(state.header.request.prompt, resumed_);
  if (position.pending > 0) {
    pending_ = Range{position.committed, position.next()};
    denoiser(*pending_).start(*pending_, floats(state.tensors.at("latents")));
  }
  whole_ = true;
}

void Pipeline::make_chunk(Range frames) {
  advance(job_.prompt(frames.start));
  chunk_ = Chunk{frames, denoise(frames)};
  pending_ = frames;
}

// Commits the pending chunk, under its own prompt or the next one, and turns to the next.
void Pipeline::advance(const std::string& prompt) {
  const auto& embeds = embeds_.at(prompt);
  whole_ = false;
  if (job_.recommit) project(prompt, embeds);
  const auto before = pending_;
  if (before) {
    begin("committing " + span(*before));
    denoiser(*before).commit();
    committed_ = before->stop;
    pending_.reset();
  }
  project(prompt, embeds);
  whole_ = true;
  if (before) count_pass();  // last, because it calls the caller, who may cancel
}

// Makes the prompt's keys and values, unless they are there.
void Pipeline::project(const std::string& prompt, const Embeds& embeds) {
  if (projected_ == embeds) return;
  begin("projecting the prompts");
  project_prompts(graphs_, *buffers_, *embeds);
  projected_prompt_ = prompt;
  projected_ = embeds;
}

HostTensor Pipeline::denoise(Range frames) {
  const auto given = frames.start == 0 ? job_.condition_frames() : 0;
  auto& denoiser = this->denoiser(frames);
  denoiser.start(frames, start_of(frames, given));
  std::int64_t number = 0;
  for (const auto& step : steps_) {
    ++number;
    begin(concat("step ", number, " of ", steps_.size(), ", timestep ", step.timestep, ", ",
                 span(frames)));
    const auto fresh = step.n == 0 ? std::vector<float>{} : job_.noise(frames, number);
    denoiser.step(step, job_.request.guidance_scale, fresh, given);
    count_pass();
  }
  auto latents = denoiser.latents();
  check_finite(latents, frames);
  return latents;
}

// What a chunk is denoised from, with the frames that are given in their place.
std::vector<float> Pipeline::start_of(Range frames, std::int64_t condition_frames) {
  auto latents = job_.start(frames);
  if (condition_frames == 0) return latents;
  begin("encoding the image");
  const auto image = ImageEncoder(graphs_, *buffers_).encode(job_.inputs.image);
  const auto shape = latents_shape(job_.request, *job_.model);
  const auto plane = static_cast<std::size_t>(shape[3] * shape[4]);
  const auto channel = static_cast<std::size_t>(frames.size()) * plane;
  for (std::size_t index = 0; index < static_cast<std::size_t>(shape[1]); ++index) {
    std::memcpy(latents.data() + index * channel, image.data() + index * plane,
                plane * sizeof(float));
  }
  return latents;
}

Pictures Pipeline::decode() {
  const auto& frames = chunk_->frames;
  const auto start = std::max(decoded_, frames.start);
  const Range call{start, Decoder::window(graphs_).stop(start)};
  begin("decoding " + span(call));
  const auto latents =
      cut_frames(chunk_->latents, {call.start - frames.start, call.stop - frames.start});
  auto rgb = decoder().decode(latents, call.start);
  decoded_ = call.stop;
  decoded_unreported_ = true;
  return {std::move(rgb), start == 0 ? 0 : video_frames(*job_.model, start)};
}

State Pipeline::state(const Identity& identity) {
  begin("saving the state");
  if (!whole_ || projected_ == nullptr) {
    throw Error(SANA_STATE_ERROR,
                "The state is incomplete: nothing was generated yet, or a commit was interrupted.",
                {.expected = "a stream that has given out frames."});
  }
  State state;
  state.header.identity = identity;
  state.header.request = job_.request;
  state.header.request.prompt = projected_prompt_;
  state.header.position = {committed_, pending_ ? pending_->size() : 0, decoded_};
  for (const auto& shot : job_.later) {
    if (shot.frame >= state.header.position.next()) state.header.prompts.push_back(shot);
  }
  state.tensors = state_.download();
  state.tensors.merge(decoder().caches(decoded_));
  add_embeds(state.tensors, *projected_);
  if (pending_) state.tensors.insert_or_assign("latents", denoiser(*pending_).latents());
  return state;
}

Denoiser& Pipeline::denoiser(Range frames) {
  const auto found = denoisers_.find(frames.size());
  if (found != denoisers_.end()) return found->second;
  return denoisers_
      .emplace(std::piecewise_construct, std::forward_as_tuple(frames.size()),
               std::forward_as_tuple(graphs_, buffers_->sized("frames", frames.size()), state_))
      .first->second;
}

Decoder& Pipeline::decoder() {
  if (!decoder_) decoder_.emplace(graphs_, *buffers_);
  return *decoder_;
}

// Says what comes now; refused if another clip was started meanwhile.
void Pipeline::begin(std::string moment) { graphs_.begin(this, std::move(moment)); }

void Pipeline::count_pass() { report_(SANA_STAGE_DENOISE, ++passes_, job_.passes()); }

}  // namespace sana_rt::runtime
