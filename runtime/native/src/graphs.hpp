// The graphs of a variant: opened once, run in one place.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "backend.hpp"
#include "bundle.hpp"
#include "memory_plan.hpp"

namespace sana_rt::runtime {

struct Copy {
  Buffer destination, source;
};

struct Clear {
  Buffer buffer;
};

using Command = std::variant<std::shared_ptr<Binding>, Copy, Clear>;

// A fixed sequence of commands on fixed buffers.
using Program = std::vector<Command>;

// Opens graphs on a backend and runs them for one player at a time.
class Graphs {
 public:
  Graphs(const Bundle& bundle, std::string variant, std::unique_ptr<Backend> backend,
         bool check_finite);

  const std::string& variant_name() const { return variant_name_; }
  const Variant& variant() const { return variant_; }
  const std::string& backend() const { return backend_->name(); }
  Memory& memory() { return backend_->memory(); }

  bool has(const std::string& name) const { return variant_.graphs.contains(name); }
  // Error MANIFEST_REFERENCE where the variant has no such graph.
  const Graph& graph(const std::string& name) const;
  const Signature& signature(const std::string& name) const { return graph(name).signature; }
  // Bytes of a graph's files.
  std::uint64_t weight_bytes(const std::string& name) const;
  // Of the graphs that are loaded.
  std::uint64_t loaded_bytes() const;

  // Runs with these sizes of dimensions from here on. Returns whether no binding may be used any
  // more, because the graphs were made for others.
  bool serve(const Sizes& sizes);

  // Loads a graph, unless it is; an Error BUNDLE_FILE where its file is not as listed.
  Context& open(const std::string& name, bool lasting = true);
  // Gives a graph's memory back, once no binding of it is left.
  void close(const std::string& name) { opened_.erase(name); }
  std::shared_ptr<Binding> bind(const std::string& name, const BufferMap& inputs,
                                const BufferMap& outputs);

  // From now on `player` runs graphs.
  void take_over(const void* player);
  // Says in words what `player` does next; a UsageError if another took over.
  void begin(const void* player, std::string moment);
  void run(const Program& program);

 private:
  void check_outputs(const Binding& binding);

  const Bundle& bundle_;
  std::string variant_name_;
  const Variant& variant_;
  std::unique_ptr<Backend> backend_;
  bool check_finite_;
  Sizes sizes_;
  const void* player_ = nullptr;
  std::string moment_;
  std::map<std::string, std::unique_ptr<Context>> opened_;
};

}  // namespace sana_rt::runtime
