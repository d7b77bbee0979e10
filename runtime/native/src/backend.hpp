// A way to run graphs on one device, over ONNX Runtime.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "buffers.hpp"
#include "manifest.hpp"

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

// An opened graph, of which its bindings keep what they need.
class Context {
 public:
  virtual ~Context() = default;

  // Checks the buffers against the signature and fixes them; or a BindingError.
  virtual std::unique_ptr<Binding> bind(const BufferMap& inputs, const BufferMap& outputs) = 0;
};

// The sizes of named dimensions that graphs run with.
using Sizes = std::map<std::string, DimRange>;

// A graph that a backend opens: the content of its file, which was checked, and where that lies,
// with its weights beside it.
struct Artifact {
  std::string name;
  Signature signature;
  std::filesystem::path path;
  std::string content;
  Sizes sizes;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual const std::string& name() const = 0;
  virtual Memory& memory() = 0;
  // Whether what it opens runs with the sizes of its artifact only.
  virtual bool specializes() const { return false; }
  // One that is not `lasting` runs a few times: it is quick to load and leaves nothing behind.
  virtual std::unique_ptr<Context> open(const Artifact& artifact, bool lasting) = 0;
};

// How a backend runs: CPU threads; of a GPU the seconds that it may take to answer, where the
// plug-in is and where it keeps what it compiles. Empty paths leave the choice to the backend.
struct BackendOptions {
  int threads = 1;
  double timeout = 600;
  std::filesystem::path plugin = {}, kernel_cache = {};
};

// A backend that is not open yet.
struct Candidate {
  const char* name;
  bool on_gpu;
  // Dtypes of variants, the preferred one first, and whether it has TensorRT's operators.
  std::span<const DType> dtypes;
  bool tensorrt;
  // An Error where it cannot work.
  std::unique_ptr<Backend> (*open)(const BackendOptions&);
  // The same Error without opening it.
  void (*check)();

  // Why it does not play a variant, or nothing.
  std::optional<std::string> refusal(const Variant& variant) const;
  // Why it cannot work on this machine, or nothing.
  std::optional<std::string> missing() const;
};

// In the order in which they are tried.
std::span<const Candidate> candidates() noexcept;

// The first backend that plays the model, opened, and the name of the variant that it plays.
// Empty names leave the choice to this function. A BackendError lists every refusal.
std::pair<std::unique_ptr<Backend>, std::string> select_backend(const std::string& backend,
                                                                const Manifest& manifest,
                                                                const std::string& variant,
                                                                const BackendOptions& options);

}  // namespace sana_rt::runtime
