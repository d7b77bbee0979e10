#include "backend.hpp"

#include <algorithm>

#include "error.hpp"
#include "onnxruntime.hpp"

namespace sana_rt::runtime {
namespace {

std::optional<std::string> refusal(const Variant& variant, const std::vector<DType>& dtypes) {
  if (variant.quantization && variant.quantization->device) {
    return "it is quantized in operators that only TensorRT has";
  }
  if (std::find(dtypes.begin(), dtypes.end(), variant.dtype) != dtypes.end()) return std::nullopt;
  std::vector<std::string> names;
  for (const auto dtype : dtypes) names.emplace_back(dtype_name(dtype));
  return concat("it is in ", dtype_name(variant.dtype), ", and this backend plays ", listed(names));
}

Candidate candidate(const char* name, std::vector<DType> dtypes,
                    std::function<std::optional<std::string>()> missing,
                    std::function<std::unique_ptr<Backend>(int)> open) {
  return {name, [dtypes](const Variant& variant) { return refusal(variant, dtypes); }, dtypes,
          std::move(missing), std::move(open)};
}

// The variant to play: the wanted one, or the preferred one that is not quantized, of the
// checkpoint's own weights before those with LoRAs. Reasons go to `refusals`.
std::optional<std::string> played(const Candidate& candidate, const Manifest& manifest,
                                  const std::string& wanted, std::string& refusals) {
  std::optional<std::string> best;
  std::size_t best_rank = 2 * candidate.dtypes.size();
  for (const auto& [name, variant] : manifest.variants) {
    if (!wanted.empty() && name != wanted) continue;
    const auto reason = candidate.refusal(variant);
    if (reason || (wanted.empty() && variant.quantization)) {
      refusals += concat(in_quotes(name), ": ", reason.value_or("it is quantized, which is played only "
                                                             "if asked for"), "; ");
      continue;
    }
    const auto preference = static_cast<std::size_t>(
        std::find(candidate.dtypes.begin(), candidate.dtypes.end(), variant.dtype) -
        candidate.dtypes.begin());
    const auto rank = preference + (variant.has_loras ? candidate.dtypes.size() : 0);
    if (rank < best_rank) {
      best = name;
      best_rank = rank;
    }
  }
  return best;
}

}  // namespace

const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all{
      candidate("onnxruntime", {DType::kFloat32}, ort_missing, open_cpu),
  };
  return all;
}

std::pair<std::unique_ptr<Backend>, std::string> select_backend(const std::string& backend,
                                                                const Manifest& manifest,
                                                                const std::string& variant,
                                                                int threads) {
  if (!variant.empty()) manifest.variant(variant);
  std::vector<std::string> names;
  std::string refusals;
  for (const auto& candidate : candidates()) {
    names.emplace_back(candidate.name);
    if (!backend.empty() && backend != candidate.name) continue;
    std::string reasons;
    const auto name = played(candidate, manifest, variant, reasons);
    const auto missing = name ? candidate.missing() : std::nullopt;
    if (name && !missing) return {candidate.open(threads), *name};
    refusals += concat("\n  ", candidate.name, ": ", missing.value_or(reasons));
  }
  if (refusals.empty()) {
    throw Error(SANA_USAGE_ERROR, concat("There is no backend ", in_quotes(backend), "."),
                {.expected = concat("one of ", listed(names), ".")});
  }
  throw Error(SANA_BACKEND_ERROR, concat("No backend can play this bundle here:", refusals),
              {.remedy = "play another variant, or export one in float32."});
}

}  // namespace sana_rt::runtime
