#include "graphs.hpp"

#include "error.hpp"
#include "graph_names.hpp"

namespace sana_rt::runtime {
namespace {

// The sizes that a graph sees: some see one sample of a batch.
Sizes own(const std::string& name, Sizes sizes) {
  if (is_single(name)) sizes["batch"] = {1, 1, 1};
  return sizes;
}

}  // namespace

Graphs::Graphs(const Bundle& bundle, std::string variant, std::unique_ptr<Backend> backend,
               bool check_finite)
    : bundle_(bundle),
      variant_name_(std::move(variant)),
      variant_(bundle.manifest.variant(variant_name_)),
      backend_(std::move(backend)),
      check_finite_(check_finite) {}

const Graph& Graphs::graph(const std::string& name) const {
  const auto found = variant_.graphs.find(name);
  if (found != variant_.graphs.end()) return found->second;
  throw Error(SANA_MANIFEST_REFERENCE_ERROR,
              concat("The variant '", variant_name_, "' has no graph '", name, "'."),
              {.remedy = "export the checkpoint again."});
}

std::uint64_t Graphs::weight_bytes(const std::string& name) const {
  const auto& files = bundle_.manifest.files;
  const auto& found = graph(name);
  auto sum = static_cast<std::uint64_t>(files.at(found.path).bytes);
  for (const auto& path : found.weights) sum += static_cast<std::uint64_t>(files.at(path).bytes);
  return sum;
}

std::uint64_t Graphs::loaded_bytes() const {
  std::uint64_t sum = 0;
  for (const auto& [name, context] : opened_) sum += weight_bytes(name);
  return sum;
}

bool Graphs::serve(const Sizes& sizes) {
  const bool stale = backend_->specializes() && sizes != sizes_;
  if (stale) opened_.clear();
  sizes_ = sizes;
  return stale;
}

Context& Graphs::open(const std::string& name, bool lasting) {
  auto& context = opened_[name];
  if (context == nullptr) {
    try {
      const auto& found = graph(name);
      context = backend_->open({name, found.signature, bundle_.path(found.path),
                                bundle_.onnx(found), own(name, sizes_)},
                               lasting);
    } catch (...) {
      opened_.erase(name);
      throw;
    }
  }
  return *context;
}

std::shared_ptr<Binding> Graphs::bind(const std::string& name, const BufferMap& inputs,
                                      const BufferMap& outputs) {
  return open(name).bind(inputs, outputs);
}

void Graphs::take_over(const void* player) {
  player_ = player;
  begin(player, "");
}

void Graphs::begin(const void* player, std::string moment) {
  if (player_ != player) {
    throw Error(SANA_USAGE_ERROR, "Another clip was started in this session.",
                {.expected = "one clip at a time.",
                 .remedy = "finish a clip first, or open a second session."});
  }
  moment_ = std::move(moment);
  memory().begin(moment_);
}

void Graphs::run(const Program& program) {
  for (const auto& command : program) {
    if (const auto* binding = std::get_if<std::shared_ptr<Binding>>(&command)) {
      (*binding)->run();
      if (check_finite_) check_outputs(**binding);
    } else if (const auto* copy = std::get_if<Copy>(&command)) {
      memory().copy(copy->destination, copy->source);
    } else {
      memory().clear(std::get<Clear>(command).buffer);
    }
  }
}

void Graphs::check_outputs(const Binding& binding) {
  for (const auto& [name, buffer] : binding.outputs()) {
    if (host_dtype(buffer.dtype) != DType::kFloat32) continue;
    const auto values = memory().download_floats(buffer);
    const auto bad = count_non_finite(values);
    if (bad == 0) continue;
    throw Error(SANA_NON_FINITE_ERROR,
                concat("The graph '", binding.graph(), "' wrote ", bad, " of ", values.size(),
                       " values of '", name, "' as NaN or infinity (", moment_, ")."),
                {.remedy = "`sana-rt verify` compares the graph with its module; noise and prompt "
                           "embeddings of your own may be too large."});
  }
}

}  // namespace sana_rt::runtime
