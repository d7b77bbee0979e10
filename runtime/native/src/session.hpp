// A bundle opened on a backend: jobs in, frames out.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "pipeline.hpp"

namespace sana_rt::runtime {

struct SessionOptions {
  std::string variant;
  std::string backend;
  int threads = 0;
  bool keep_text_encoder = false;
  bool check_finite = false;
  double timeout = 0;
  std::string plugin, kernel_cache;
  Log log;
};

// What a caller asks for.
struct Demand {
  RequestOptions options;
  std::optional<double> seconds;
  Inputs inputs;
  bool stream = false;
  std::vector<TimedPrompt> prompts;
  bool recommit = false;
  std::shared_ptr<const State> resume;
};

// Plays a bundle, one clip at a time. Memory is allocated for the first clip, and again when the
// size changes.
class Session {
 public:
  Session(std::shared_ptr<const Bundle> bundle, SessionOptions options);

  const std::string& variant() const { return graphs_.variant_name(); }
  const std::string& backend() const { return graphs_.backend(); }

  // The memory that a clip needs, before any of it is allocated.
  MemoryPlan plan(Demand demand);
  // Allocates, loads and encodes what a clip needs; its frames are made as they are taken.
  std::unique_ptr<Pipeline> start(Demand demand, const Report& report);
  Identity identity() const;

 private:
  Job job(Demand demand) const;
  MemoryPlan plan(const Job& job);
  std::vector<Region> regions(const Job& job) const;
  std::vector<std::string> names(const Job& job) const;
  std::shared_ptr<const Buffers> allocate(const Job& job);
  const PromptTokenizer& tokenizer();

  std::shared_ptr<const Bundle> bundle_;
  SessionOptions options_;
  Graphs graphs_;
  std::shared_ptr<const Buffers> buffers_;
  std::optional<PromptTokenizer> tokenizer_;
};

}  // namespace sana_rt::runtime
