#include "backend.hpp"

#include <algorithm>

#include "cuda_device.hpp"
#include "error.hpp"
#include "onnxruntime.hpp"
#include "onnxruntime_rtx.hpp"

namespace sana_rt::runtime {
namespace {

constexpr DType kOfGpus[] = {DType::kBFloat16, DType::kFloat32};
constexpr DType kOfCpus[] = {DType::kFloat32};
constexpr Candidate kCandidates[] = {
    {"onnxruntime-cuda", true, kOfGpus, false, open_cuda, check_cuda},
    {"onnxruntime-rtx", true, kOfGpus, true, open_rtx, check_rtx},
    {"onnxruntime", false, kOfCpus, false, open_cpu, check_onnxruntime},
};

constexpr const char* kOnlyIfAsked = "it is quantized, which is played only if asked for";

std::string in_a_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

std::size_t rank(const Candidate& candidate, const Variant& variant) {
  const auto& dtypes = candidate.dtypes;
  const auto found = std::find(dtypes.begin(), dtypes.end(), variant.dtype);
  const auto preference = static_cast<std::size_t>(found - dtypes.begin());
  return preference + (variant.source.merged ? dtypes.size() : 0);
}

// The variant to play: the wanted one, or the preferred one that is not quantized, of the
// checkpoint's own weights before those with LoRAs.
std::optional<std::string> played(const Candidate& candidate, const Manifest& manifest,
                                  const std::string& wanted) {
  std::optional<std::string> best;
  std::size_t best_rank = 2 * candidate.dtypes.size();
  for (const auto& [name, variant] : manifest.variants) {
    const bool meant = wanted.empty() ? !variant.quantization : name == wanted;
    if (!meant || candidate.refusal(variant) || rank(candidate, variant) >= best_rank) continue;
    best = name;
    best_rank = rank(candidate, variant);
  }
  return best;
}

// Why none of the variants that may be played is.
std::string reasons(const Candidate& candidate, const Manifest& manifest,
                    const std::string& wanted) {
  if (!wanted.empty()) return candidate.refusal(manifest.variant(wanted)).value_or("") + ".";
  std::string all;
  for (const auto& [name, variant] : manifest.variants) {
    all += concat(all.empty() ? "" : "; ", in_quotes(name), ": ",
                  candidate.refusal(variant).value_or(kOnlyIfAsked));
  }
  return all + ".";
}

// The emulation of a variant that is for TensorRT, if the bundle has it.
std::string remedy(const Manifest& manifest, const std::string& wanted) {
  if (!wanted.empty()) {
    const auto& variant = manifest.variant(wanted);
    for (const auto& [name, other] : manifest.variants) {
      if (is_emulation(other, variant)) {
        return concat("play ", in_quotes(name), ": it rounds as ", in_quotes(wanted),
                      " does, in float32.");
      }
    }
  }
  return "sana_device_describe says what each backend lacks.";
}

const Candidate& named(const std::string& name) {
  std::vector<std::string> names;
  for (const auto& candidate : candidates()) {
    if (candidate.name == name) return candidate;
    names.emplace_back(candidate.name);
  }
  throw Error(SANA_USAGE_ERROR, concat("There is no backend ", in_quotes(name), "."),
              {.expected = concat("one of ", listed(names), ".")});
}

}  // namespace

std::optional<std::string> Candidate::refusal(const Variant& variant) const {
  if (variant.quantization && variant.quantization->device && !tensorrt) {
    return "it is quantized in operators that only TensorRT has";
  }
  if (rank(*this, variant) < dtypes.size()) return std::nullopt;
  std::string names;
  for (const auto dtype : dtypes) names += concat(names.empty() ? "" : " and ", dtype_name(dtype));
  return concat("it is in ", dtype_name(variant.dtype), ", and ONNX Runtime plays ", names,
                " only here");
}

std::optional<std::string> Candidate::missing() const {
  try {
    check();
    return std::nullopt;
  } catch (const Error& error) {
    return error.what();
  }
}

std::span<const Candidate> candidates() noexcept { return kCandidates; }

std::pair<std::unique_ptr<Backend>, std::string> select_backend(const std::string& backend,
                                                                const Manifest& manifest,
                                                                const std::string& variant,
                                                                const BackendOptions& options) {
  if (!variant.empty()) manifest.variant(variant);
  if (!backend.empty()) named(backend);
  std::string refusals;
  for (const auto& candidate : candidates()) {
    if (!backend.empty() && backend != candidate.name) continue;
    try {
      const auto name = played(candidate, manifest, variant);
      if (name) return {candidate.open(options), *name};
      refusals += concat("\n  ", candidate.name, ": ", reasons(candidate, manifest, variant));
    } catch (const Error& error) {
      refusals += concat("\n  ", candidate.name, ": ", in_a_line(error.what()));
    }
  }
  const auto what = variant.empty() ? "this bundle" : concat("the variant ", in_quotes(variant));
  throw Error(SANA_BACKEND_ERROR, concat("No backend can play ", what, " here:", refusals),
              {.remedy = remedy(manifest, variant)});
}

}  // namespace sana_rt::runtime
