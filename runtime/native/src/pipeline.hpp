// The one loop: prompts, then chunk after chunk of latents, and the frames of each.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "autoencoder.hpp"
#include "denoiser.hpp"
#include "job.hpp"
#include "sana_rt.h"

namespace sana_rt::runtime {

using Report = std::function<void(sana_stage stage, std::int64_t done, std::int64_t total)>;
using Log = std::function<void(sana_log_level level, const std::string& message)>;

// The dtype and shape of each tensor of a state at a position.
std::map<std::string, Kind> state_kinds(const Graphs& graphs, const ModelSpec& model,
                                        const Request& request, const Position& position);

// Frames u8 [1, n, height, width, 3], and the index of the first of them in the clip.
struct Pictures {
  HostTensor rgb;
  std::int64_t first_frame;
};

// Plays one job on allocated buffers; the bidirectional model is one chunk and zero state.
//
// A finished chunk stays pending: the pass that commits it to the state runs before the next chunk,
// when the prompt of that is known. So a stream can stop after any frame, and what continues it is
// the state before the last chunk, that chunk, and the decoder's caches.
class Pipeline {
 public:
  Pipeline(Graphs& graphs, std::shared_ptr<const Buffers> buffers, Job job, Report report);

  // Runs the text encoder on the job's prompts.
  void encode(const PromptTokenizer& tokenizer, const Log& log);
  // Opens graphs ahead of their use, so that none fails in the middle of the clip.
  void load(const std::vector<std::string>& names);
  // The next frames, or nothing after the last.
  std::optional<Pictures> next();
  // A host copy of what continues the stream after the frames that were taken from it.
  State state(const Identity& identity);

 private:
  struct Chunk {
    Range frames;
    HostTensor latents;
  };

  void take_up();
  void restore(const State& state);
  void make_chunk(Range frames);
  void advance(const std::string& prompt);
  void project(const std::string& prompt, const Embeds& embeds);
  HostTensor denoise(Range frames);
  std::vector<float> start_of(Range frames, std::int64_t condition_frames);
  Pictures decode();
  Denoiser& denoiser(Range frames);
  Decoder& decoder();
  void begin(std::string moment);
  void count_pass();

  Graphs& graphs_;
  std::shared_ptr<const Buffers> buffers_;
  Job job_;
  Report report_;
  std::vector<Range> chunks_;
  std::vector<Step> steps_;
  std::map<std::string, Embeds> embeds_;
  Embeds resumed_;  // what the state to continue was made with
  CarriedState state_;
  std::map<std::int64_t, Denoiser> denoisers_;  // by length, of which a clip has at most two
  std::optional<Decoder> decoder_;
  std::optional<Chunk> chunk_;  // of which frames are to be decoded
  std::size_t next_chunk_ = 0;
  bool taken_up_ = false;
  bool decoded_unreported_ = false;
  std::optional<Range> pending_;
  std::int64_t committed_ = 0;
  std::int64_t decoded_ = 0;
  std::int64_t passes_ = 0;
  std::string projected_prompt_;
  Embeds projected_;
  bool whole_ = false;  // whether the state is that of a position, not on the way to another
};

}  // namespace sana_rt::runtime
