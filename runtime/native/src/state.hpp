// A stream at rest: everything that its continuation needs, in memory or in Python's file format.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "array_files.hpp"
#include "bundle.hpp"
#include "prompt_schedule.hpp"
#include "prompts.hpp"
#include "request.hpp"

namespace sana_rt::runtime {

// Which graphs a state belongs to: another model's state has other numbers in it.
struct Identity {
  std::string model;
  std::string variant;
  std::string graphs;  // SHA-256

  bool operator==(const Identity&) const = default;
};

// Where a stream is, in latent frames: `committed` are in the state, the `pending` after them are
// denoised, and the frames before `decoded` have been given out.
struct Position {
  std::int64_t committed = 0, pending = 0, decoded = 0;

  // The first latent frame of the next chunk.
  std::int64_t next() const { return committed + pending; }
};

// What a state says about itself; the request has the prompt of the last chunk made.
struct Header {
  Identity identity;
  Request request;
  std::vector<ScheduledPrompt> prompts;  // those that are still to come
  Position position;
};

// The dtype and shape of a tensor of a state.
struct Kind {
  DType dtype;
  Shape shape;

  bool operator==(const Kind&) const = default;
};

// Continuing does not change it, so it can be continued several times.
struct State {
  Header header;
  Arrays tensors;

  // A StateError if it holds NaN or infinity; what is under the name before stays.
  void save(const std::filesystem::path& path) const;
  // A StateError if the file is damaged.
  static State load(const std::filesystem::path& path);
  static State parse(std::string_view file);

  // Of the prompt of the last chunk made.
  Embeds embeds() const;
  // A StateError unless `request` can continue it on the graphs that need tensors of `kinds`.
  void check(const Identity& identity, const Request& request,
             const std::map<std::string, Kind>& kinds) const;
};

}  // namespace sana_rt::runtime
