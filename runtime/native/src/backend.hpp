// A way to run graphs on one device, over ONNX Runtime.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "buffers.hpp"
#include "manifest.hpp"
#include "memory_plan.hpp"

namespace sana_rt::runtime {

// A graph with a buffer on every input and output; it can run any number of times.
class Binding {
 public:
  virtual ~Binding() = default;
  virtual void run() = 0;

  const std::string& graph() const { return graph_; }
  const BufferMap& outputs() const { return outputs_; }

 protected:
  Binding(std::string graph, BufferMap outputs)
      : graph_(std::move(graph)), outputs_(std::move(outputs)) {}

 private:
  std::string graph_;
  BufferMap outputs_;
};

// An opened graph. It must outlive its bindings.
class Context {
 public:
  virtual ~Context() = default;

  // Checks the buffers against the signature and fixes them; or a BindingError.
  virtual std::unique_ptr<Binding> bind(const BufferMap& inputs, const BufferMap& outputs) = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual const std::string& name() const = 0;
  virtual Memory& memory() = 0;
  // One that is not `lasting` runs a few times: it is quick to load and leaves nothing behind.
  virtual std::unique_ptr<Context> open(const std::string& graph, const Signature& signature,
                                        const std::filesystem::path& path, bool lasting) = 0;
};

// A backend that is not open yet.
struct Candidate {
  const char* name;
  // Why it does not play a variant, or nothing.
  std::function<std::optional<std::string>(const Variant&)> refusal;
  // Dtypes of variants, the preferred one first.
  std::vector<DType> dtypes;
  // Why it cannot be opened on this machine, or nothing.
  std::function<std::optional<std::string>()> missing;
  // With a number of CPU threads.
  std::function<std::unique_ptr<Backend>(int)> open;
};

// In the order in which they are tried.
const std::vector<Candidate>& candidates();

// The first backend that plays the model, opened, and the name of the variant that it plays.
// Empty names leave the choice to this function. A BackendError lists every refusal.
std::pair<std::unique_ptr<Backend>, std::string> select_backend(const std::string& backend,
                                                                const Manifest& manifest,
                                                                const std::string& variant,
                                                                int threads);

}  // namespace sana_rt::runtime
