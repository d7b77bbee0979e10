#include "session.hpp"

#include <sched.h>

#include <algorithm>

#include "error.hpp"
#include "graph_names.hpp"

namespace sana_rt::runtime {
namespace {

constexpr int kMaxThreads = 1024;

// The processors that this process may use.
int usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

int checked_threads(int threads) {
  if (threads < 0 || threads > kMaxThreads) {
    throw Error(SANA_USAGE_ERROR, concat("The number of CPU threads is ", threads, "."),
                {.expected = concat("1 to ", kMaxThreads, ", or 0 for all.")});
  }
  return threads == 0 ? usable_cpus() : threads;
}

double checked_timeout(double timeout) {
  constexpr double kDefault = 600;  // no step takes nearly as long
  if (!(timeout >= 0)) {
    throw Error(SANA_USAGE_ERROR, concat("The timeout is ", timeout, "."),
                {.expected = "seconds, a number above 0, or 0 for the default."});
  }
  return timeout == 0 ? kDefault : timeout;
}

Graphs open_graphs(const Bundle& bundle, const SessionOptions& options) {
  const BackendOptions how{checked_threads(options.threads), checked_timeout(options.timeout),
                           options.plugin, options.kernel_cache};
  auto [backend, variant] =
      select_backend(options.backend, bundle.manifest, options.variant, how);
  return {bundle, std::move(variant), std::move(backend), options.check_finite};
}

// The prompt to begin with may be timed at 0 s.
void take_first_prompt(Demand& demand) {
  const auto is_first = [](const TimedPrompt& prompt) { return prompt.seconds == 0; };
  const auto first = std::find_if(demand.prompts.begin(), demand.prompts.end(), is_first);
  if (first == demand.prompts.end()) return;
  if (demand.options.prompt || std::find_if(first + 1, demand.prompts.end(), is_first) !=
                                   demand.prompts.end()) {
    throw Error(SANA_USAGE_ERROR, "Two prompts begin at 0 s.",
                {.expected = "either the prompt or one scheduled at 0 s."});
  }
  demand.options.prompt = first->prompt;
  demand.prompts.erase(first);
}

void check_prompted(const Demand& demand) {
  if (demand.options.prompt && demand.inputs.prompt_embeds) {
    throw Error(SANA_USAGE_ERROR, "A prompt and prompt embeddings are both given.",
                {.expected = "one of the two: the embeddings take the place of the prompt."});
  }
  if (demand.options.prompt || demand.inputs.prompt_embeds || demand.resume) return;
  throw Error(SANA_USAGE_ERROR, "There is no prompt.",
              {.expected = "a prompt, or prompt embeddings."});
}

void check_stream(const Demand& demand, const ModelSpec& model) {
  if (!demand.stream) {
    if (demand.prompts.empty() && !demand.resume && !demand.recommit) return;
    throw Error(SANA_USAGE_ERROR, "Prompts over time, or a state, are given for a clip.",
                {.expected = "stream to be set."});
  }
  if (!model.transformer.causal) {
    throw Error(SANA_REQUEST_ERROR,
                concat(in_quotes(model.name), " generates a clip in one piece: every frame attends "
                       "to all others."),
                {.expected = "a block-causal model (LongSANA) to stream.",
                 .remedy = "leave stream unset, which holds all of the clip in memory."});
  }
  if (!demand.prompts.empty() && demand.inputs.prompt_embeds) {
    throw Error(SANA_REQUEST_ERROR, "Both prompt embeddings and a prompt schedule are given.",
                {.expected = "one of the two."});
  }
  if (demand.resume && !demand.inputs.image.empty()) {
    throw Error(SANA_REQUEST_ERROR, "Both a first frame and a stream to resume are given.",
                {.expected = "one of the two."});
  }
}

void check_left(const Job& job) {
  const auto position = job.position();
  const auto end = job.latent_frames();
  if (end >= position.next() && end > position.decoded) return;
  const auto seconds = [&](std::int64_t frame) {
    return start_seconds(frame, job.request.fps, *job.model);
  };
  throw Error(SANA_REQUEST_ERROR,
              concat("The stream already has ", seconds(position.next()), " s, and ", seconds(end),
                     " s in total are asked for."),
              {.expected = "a longer clip: the length counts from the beginning of the stream."});
}

// What the named dimensions of a job will be; of the text, when it is longest.
Sizes sizes(const Job& job, const Dims& largest) {
  Sizes ranges;
  for (const auto& [name, size] : largest) ranges[name] = {size, size, size};
  ranges["frames"] = {job.shortest(), job.longest(), job.longest()};
  return ranges;
}

}  // namespace

Session::Session(std::shared_ptr<const Bundle> bundle, SessionOptions options)
    : bundle_(std::move(bundle)),
      options_(std::move(options)),
      graphs_(open_graphs(*bundle_, options_)) {}

Identity Session::identity() const {
  return {bundle_->manifest.model.name, variant(), bundle_->graphs_sha256(variant())};
}

MemoryPlan Session::plan(Demand demand) { return plan(job(std::move(demand))); }

std::unique_ptr<Pipeline> Session::start(Demand demand, const Report& report) {
  const auto made = job(std::move(demand));
  made.inputs.check(made.request, *made.model);
  auto pipeline = std::make_unique<Pipeline>(graphs_, allocate(made), made, report);
  graphs_.take_over(pipeline.get());
  if (!made.prompts().empty()) {
    // The same way whether it is kept or not: packed weights round differently.
    graphs_.open(kTextEncoder, false);
    pipeline->encode(tokenizer(), options_.log);
  }
  if (!options_.keep_text_encoder) graphs_.close(kTextEncoder);
  auto loaded = names(made);
  std::erase(loaded, kTextEncoder);
  pipeline->load(loaded);
  return pipeline;
}

Job Session::job(Demand demand) const {
  const auto& model = bundle_->manifest.model;
  take_first_prompt(demand);
  check_prompted(demand);
  const auto* before = demand.resume ? &demand.resume->header.request : nullptr;
  Job job{&model,
          asked(model, demand.options, before, demand.seconds, !demand.inputs.image.empty()),
          std::move(demand.inputs)};
  job.resume = demand.resume;
  job.recommit = demand.recommit;
  // The inputs are moved: what is checked of them is in the job.
  demand.inputs = job.inputs;
  check_stream(demand, model);
  if (job.resume) {
    const auto& position = job.resume->header.position;
    job.resume->check(identity(), job.request,
                      state_kinds(graphs_, model, job.request, position));
    check_left(job);
    if (job.resume->header.request.prompt == job.request.prompt) {
      job.later = job.resume->header.prompts;
    }
  }
  if (!demand.prompts.empty()) {
    job.later = placed(job.position().next(), std::move(demand.prompts), job.chunks(),
                       job.request.fps, model);
  }
  return job;
}

MemoryPlan Session::plan(const Job& job) {
  MemoryPlan plan;
  plan.device = backend();
  for (const auto& name : names(job)) plan.weights.emplace(name, graphs_.weight_bytes(name));
  plan.regions = regions(job);
  plan.dims = request_dims(job.request, *job.model);
  plan.dims["frames"] = job.longest();
  if (!job.prompts().empty()) plan.dims["length"] = tokenizer().max_length(true);
  plan.keep_text_encoder = options_.keep_text_encoder;
  return plan;
}

std::vector<Region> Session::regions(const Job& job) const {
  const auto& transformer = job.model->transformer;
  std::vector<Region> found;
  const auto add = [&](std::vector<Region> more) {
    found.insert(found.end(), more.begin(), more.end());
  };
  if (!job.prompts().empty()) add(encoder_regions(graphs_));
  add(projection_regions(graphs_));
  add(Denoiser::regions(graphs_, transformer.causal ? transformer.num_layers : 1));
  if (job.condition_frames() > 0) add(ImageEncoder::regions(graphs_));
  add(Decoder::regions(graphs_));
  return found;
}

// The graphs that a job runs.
std::vector<std::string> Session::names(const Job& job) const {
  if (!graphs_.variant().decoder) {
    throw Error(SANA_REQUEST_ERROR, concat("The bundle has no autoencoder (",
                                           in_quotes(job.model->vae.kind), " is not exported)."),
                {.expected = "a bundle that makes frames."});
  }
  check_chunks(graphs_, job.chunks());
  const bool conditioned = job.condition_frames() > 0;
  if (conditioned && !graphs_.has(kEncoder)) {
    throw Error(SANA_REQUEST_ERROR, "The bundle cannot encode an image: it has no graph "
                                    "'vae_encoder'.",
                {.remedy = "leave the image out, or export a checkpoint with its autoencoder."});
  }
  std::vector<std::string> found;
  if (!job.prompts().empty()) found.emplace_back(kTextEncoder);
  for (const auto* name : {kPrompt, kRope, kTimestep, kPatchEmbed}) found.emplace_back(name);
  for (std::int64_t index = 0; index < job.model->transformer.num_layers; ++index) {
    found.push_back(block_name(index));
  }
  for (const auto* name : {kFinalLayer, kSolver}) found.emplace_back(name);
  if (conditioned) found.emplace_back(kEncoder);
  for (const auto* name : {kDecoderFirst, kDecoder}) found.emplace_back(name);
  return found;
}

// The buffers of the clip before, if they are what the job needs.
std::shared_ptr<const Buffers> Session::allocate(const Job& job) {
  auto needed = plan(job);
  const bool stale = graphs_.serve(sizes(job, needed.dims));
  if (stale || buffers_ == nullptr || buffers_->plan() != needed) {
    buffers_.reset();  // the old ones make room first
    needed.check(graphs_.memory().free_bytes(), graphs_.loaded_bytes());
    buffers_ = std::make_shared<const Buffers>(std::move(needed), graphs_.memory());
  }
  return buffers_;
}

const PromptTokenizer& Session::tokenizer() {
  if (tokenizer_) return *tokenizer_;
  const auto& path = bundle_->manifest.tokenizer;
  if (!path || !graphs_.has(kTextEncoder)) {
    throw Error(SANA_REQUEST_ERROR, "The bundle has no text encoder and tokenizer.",
                {.expected = "prompt embeddings made elsewhere."});
  }
  return tokenizer_.emplace(bundle_->content(*path), bundle_->path(*path),
                            bundle_->manifest.model.text);
}

}  // namespace sana_rt::runtime
