#include "manifest.hpp"

#include <algorithm>
#include <cctype>
#include <set>

#include "error.hpp"
#include "graph_names.hpp"

namespace sana_rt::runtime {
namespace {

constexpr std::string_view kFormat = "sana-rt-bundle";
constexpr std::int64_t kFormatVersion = 2;
constexpr std::size_t kMaxFiles = 65'536;
constexpr std::int64_t kMaxFileBytes = std::int64_t{1} << 40;
constexpr std::size_t kMaxPathChars = 255;
constexpr std::size_t kMaxNameChars = 64;
constexpr const char* kRemedy =
    "export the checkpoint again; a manifest is not meant to be changed by hand.";

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
bool is_word(char c) { return is_digit(c) || is_lower(c) || (c >= 'A' && c <= 'Z') || c == '_'; }

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return result;
}

// A part starts with no dot (hidden files, "..") and ends with none (Windows drops it).
bool is_path_part(std::string_view part) {
  const auto inside = [](char c) { return is_word(c) || c == '.' || c == '+' || c == '-'; };
  return !part.empty() && is_word(part.front()) && part.back() != '.' &&
         std::all_of(part.begin(), part.end(), inside);
}

void check_path(std::string_view path) {
  bool fits = path.size() <= kMaxPathChars && lower(path) != "manifest.json";
  for (std::size_t begin = 0; fits && begin <= path.size();) {
    const auto end = std::min(path.find('/', begin), path.size());
    fits = is_path_part(path.substr(begin, end - begin));
    begin = end + 1;
  }
  if (!fits) {
    throw Error(SANA_MANIFEST_PATH_ERROR, concat("The manifest lists the path ", in_quotes(path), "."),
                {.expected = concat("at most ", kMaxPathChars,
                                  " of A-Z a-z 0-9 . _ + - in parts divided by '/', no part with "
                                  "'.' at its start or end, inside the bundle.")});
  }
}

void check_name(std::string_view name, std::string_view what) {
  const auto inside = [](char c) {
    return is_lower(c) || is_digit(c) || c == '.' || c == '_' || c == '-';
  };
  if (name.empty() || name.size() > kMaxNameChars ||
      !(is_lower(name.front()) || is_digit(name.front())) ||
      !std::all_of(name.begin(), name.end(), inside)) {
    throw Error(SANA_MANIFEST_VALUE_ERROR,
                concat("The manifest names a ", what, " ", in_quotes(name), "."),
                {.expected = "1 to 64 lower-case letters, digits, '.', '_' and '-', the first a "
                             "letter or a digit."});
  }
}

std::string as_sha256(const Json& value, const Path& path) {
  auto hash = as_string(value, path);
  const auto hex = [](char c) { return is_digit(c) || (c >= 'a' && c <= 'f'); };
  if (hash.size() != 64 || !std::all_of(hash.begin(), hash.end(), hex)) {
    throw Error(SANA_MANIFEST_VALUE_ERROR, concat(path, " is the SHA-256 ", in_quotes(hash), "."),
                {.expected = "64 lower-case hex digits."});
  }
  return hash;
}

File as_file(const Json& value, const Path& path) {
  Fields fields(value, path);
  File file{fields.required("path", as_string), fields.required("bytes", as_natural),
            fields.required("sha256", as_sha256)};
  fields.finish();
  check_path(file.path);
  if (file.bytes > kMaxFileBytes) {
    throw Error(SANA_MANIFEST_LIMIT_ERROR,
                concat(in_quotes(file.path), " has ", file.bytes, " bytes."),
                {.expected = concat("at most ", kMaxFileBytes, ".")});
  }
  return file;
}

std::vector<std::string> as_strings(const Json& value, const Path& path) {
  return as_list(value, path, as_string);
}

std::vector<std::string> as_hashes(const Json& value, const Path& path) {
  return as_list(value, path, as_sha256);
}

std::vector<TensorSpec> as_tensors(const Json& value, const Path& path) {
  auto tensors = as_list(value, path, as_tensor_spec);
  std::set<std::string_view> names;
  for (const auto& tensor : tensors) {
    if (!names.insert(tensor.name).second) {
      throw Error(SANA_MANIFEST_DUPLICATE_ERROR,
                  concat(path, " lists the tensor '", tensor.name, "' twice."));
    }
  }
  return tensors;
}

Signature as_signature(Fields& fields) {
  auto inputs = fields.required("inputs", as_tensors);
  return {std::move(inputs), fields.required("outputs", as_tensors)};
}

bool as_verification(const Json& value, const Path& path) {
  Fields fields(value, path);
  fields.required("max_error", as_non_negative);
  fields.required("tolerance", as_positive);
  fields.required("reference", as_string);
  fields.required("dims", [](const Json& list, const Path& where) {
    return as_list(list, where, [](const Json& dims, const Path& inner) {
      return as_map(dims, inner, as_natural);
    });
  });
  fields.finish();
  return true;
}

Graph as_graph(const Json& value, const Path& path) {
  Fields fields(value, path);
  Graph graph;
  graph.path = fields.required("path", as_string);
  graph.weights = fields.required("weights", as_strings);
  graph.opset = fields.required("opset", as_count);
  graph.signature = as_signature(fields);
  fields.nullable("verification", as_verification);
  fields.finish();
  return graph;
}

DimRange as_dim_range(const Json& value, const Path& path) {
  Fields fields(value, path);
  const DimRange range{fields.required("min", as_natural), fields.required("opt", as_natural),
                       fields.required("max", as_natural)};
  fields.finish();
  if (!(range.min <= range.opt && range.opt <= range.max)) {
    throw Error(SANA_MANIFEST_VALUE_ERROR,
                concat(path, " is ", range.min, " to ", range.max, ", tuned for ", range.opt, "."),
                {.expected = "min <= opt <= max."});
  }
  return range;
}

Calibration as_calibration(const Json& value, const Path& path) {
  Fields fields(value, path);
  Calibration found{};
  found.algorithm = fields.required("algorithm", as_string);
  check_name(found.algorithm, "calibration algorithm");
  found.sha256 = fields.required("sha256", as_sha256);
  found.prompts_sha256 = fields.required("prompts_sha256", as_sha256);
  found.source_sha256 = fields.required("source_sha256", as_sha256);
  found.passes = fields.required("passes", as_count);
  fields.finish();
  return found;
}

Quantization as_quantization(const Json& value, const Path& path) {
  Fields fields(value, path);
  const auto recipe = fields.required("recipe", as_string);
  check_name(recipe, "recipe");
  const auto recipe_sha256 = fields.required("recipe_sha256", as_sha256);
  const auto form = fields.required("form", [](const Json& name, const Path& where) {
    return one_of(name, where, {"device", "emulation"});
  });
  auto calibration = fields.nullable("calibration", as_calibration);
  fields.finish();
  return {recipe, recipe_sha256, form == "device", std::move(calibration)};
}

bool as_built_from(const Json& value, const Path& path) {
  Fields fields(value, path);
  fields.required("graph", as_sha256);
  fields.required("weights", as_hashes);
  fields.nullable("quantization", as_quantization);
  fields.finish();
  return true;
}

void check_profile(const Plan& plan, const Path& path) {
  std::set<std::string> named;
  std::set<std::string> profiled;
  for (const auto& tensor : plan.signature.inputs) {
    for (const auto& dim : tensor.shape) {
      if (const auto* name = std::get_if<std::string>(&dim)) named.insert(*name);
    }
  }
  for (const auto& [name, range] : plan.profile) profiled.insert(name);
  if (named != profiled) {
    throw Error(SANA_MANIFEST_REFERENCE_ERROR, concat(path, " has a profile for ", listed(profiled)),
                {.expected = concat("its inputs' named dimensions: ", listed(named), ".")});
  }
}

Plan as_plan(const Json& value, const Path& path) {
  Fields fields(value, path);
  Plan plan;
  plan.path = fields.required("path", as_string);
  plan.log = fields.required("log", as_string);
  fields.required("flavour", [](const Json& name, const Path& where) {
    return one_of(name, where, {"rtx", "trt"});
  });
  fields.required("flavour_version", as_string);
  fields.required("compute_capability", as_string);
  plan.profile = fields.required("profile", [](const Json& ranges, const Path& where) {
    return as_map(ranges, where, as_dim_range);
  });
  fields.required("built_from", as_built_from);
  fields.required("options", [](const Json& options, const Path& where) {
    return as_map(options, where, as_string);
  });
  plan.signature = as_signature(fields);
  fields.required("activation_bytes", as_natural);
  fields.required("weight_bytes", as_natural);
  fields.required("user_allocation", as_bool);
  fields.finish();
  check_profile(plan, path);
  return plan;
}

DecodeWindow as_window(const Json& value, const Path& path) {
  Fields fields(value, path);
  DecodeWindow window{};
  window.latent_frames = fields.required("latent_frames", as_count);
  window.frames = fields.required("frames", as_count);
  window.first_latent_frames = fields.required("first_latent_frames", as_count);
  window.first_frames = fields.required("first_frames", as_count);
  window.lookahead = fields.required("lookahead", as_natural);
  window.caches = fields.required("caches", as_natural);
  window.lookback = fields.defaulted<std::int64_t>("lookback", 0, as_natural);
  window.blend = fields.defaulted<std::int64_t>("blend", 0, as_natural);
  fields.finish();
  return window;
}

Lora as_lora(const Json& value, const Path& path) {
  Fields fields(value, path);
  Lora lora{};
  lora.name = fields.required("name", as_string);
  lora.sha256 = fields.required("sha256", as_sha256);
  lora.scale = fields.required("scale", as_number);
  fields.finish();
  return lora;
}

Merged as_merged(const Json& value, const Path& path) {
  Fields fields(value, path);
  Merged merged;
  merged.base = fields.required("base", as_sha256);
  merged.loras = fields.required("loras", [](const Json& loras, const Path& where) {
    return as_list(loras, where, as_lora);
  });
  if (merged.loras.empty()) {
    throw Error(SANA_MANIFEST_VALUE_ERROR, concat(path, " has no LoRA."),
                {.expected = "at least one.", .remedy = kRemedy});
  }
  fields.finish();
  return merged;
}

Source as_source(const Json& value, const Path& path) {
  Fields fields(value, path);
  Source source;
  source.checkpoint = fields.required("checkpoint", as_string);
  source.layout = fields.required("layout", as_string);
  source.sha256 = fields.required("sha256", as_sha256);
  source.merged = fields.nullable("merged", as_merged);
  fields.finish();
  return source;
}

std::map<std::string, Graph> as_graphs(const Json& value, const Path& path) {
  auto graphs = as_map(value, path, as_graph);
  for (const auto& [name, graph] : graphs) check_name(name, "graph");
  return graphs;
}

std::map<std::string, Plan> as_plans(const Json& value, const Path& path) {
  return as_map(value, path, as_plan);
}

std::map<std::string, std::map<std::string, Plan>> as_targets(const Json& value, const Path& path) {
  return as_map(value, path, as_plans);
}

std::int64_t count_caches(const std::vector<TensorSpec>& tensors) {
  return std::count_if(tensors.begin(), tensors.end(), [](const TensorSpec& tensor) {
    return tensor.name.starts_with(kCachePrefix);
  });
}

// Stands for the dimension `seen` among numbers.
constexpr std::int64_t kSeenDim = -2;

// A dimension of the tensor called `name`; -1 if it has none that is a number or `seen`.
std::int64_t fixed_dim(const std::vector<TensorSpec>& tensors, std::string_view name,
                       std::size_t axis) {
  for (const auto& tensor : tensors) {
    if (tensor.name != name || axis >= tensor.shape.size()) continue;
    const auto* number = std::get_if<std::int64_t>(&tensor.shape[axis]);
    if (number != nullptr) return *number;
    return tensor.shape[axis] == Dim{kSeen} ? kSeenDim : -1;
  }
  return -1;
}

void check_decoder_graph(const Variant& variant, const Path& path, const char* name,
                         const std::vector<std::int64_t>& wanted) {
  const auto found = variant.graphs.find(name);
  if (found == variant.graphs.end()) {
    throw Error(SANA_MANIFEST_REFERENCE_ERROR,
                concat(path, " has a decoder, but no graph '", name, "'."));
  }
  const auto& [inputs, outputs] = found->second.signature;
  const std::vector<std::int64_t> there{fixed_dim(inputs, "latents", 2),
                                        fixed_dim(outputs, "frames", 1), count_caches(inputs),
                                        count_caches(outputs)};
  if (there != wanted) {
    throw Error(SANA_MANIFEST_SHAPE_ERROR,
                concat(path, ".", name, " has (latent frames, frames, caches in, caches out) = ",
                     listed(there), "."),
                {.expected = concat(listed(wanted), ", as the variant's decoder says.")});
  }
}

// The decoder's frames are those of the model's clips, its caches those of the autoencoder.
void check_window(const DecodeWindow& window, const Path& path, const VaeSpec& vae) {
  const auto check = [&](const char* name, std::int64_t found, std::int64_t wanted) {
    if (found == wanted) return;
    throw Error(SANA_MANIFEST_SHAPE_ERROR, concat("The decoder of ", path, " has ", name, " ", found, "."),
                {.expected = concat(wanted, ", which follows from model.vae."), .remedy = kRemedy});
  };
  check("first_frames", window.first_frames,
        std::min(times(window.first_latent_frames - 1, vae.temporal_stride), kMaxDim) + 1);
  check("frames", window.frames, times(window.latent_frames, vae.temporal_stride));
  if (vae.kind == "wan") check("caches", window.caches, wan_cache_count(vae));
  if (vae.kind == "ltx2") check("caches", window.caches, window.blend > 0 ? 1 : 0);
  const auto refuse = [&](const char* name, std::int64_t found, const std::string& expected) {
    throw Error(SANA_MANIFEST_SHAPE_ERROR, concat("The decoder of ", path, " has ", name, " ", found, "."),
                {.expected = expected, .remedy = kRemedy});
  };
  const auto fades = times(std::min(window.latent_frames, window.lookahead), vae.temporal_stride);
  if (window.blend > fades) refuse("blend", window.blend, concat("at most ", fades, "."));
  if (window.lookback > window.first_latent_frames) {
    refuse("lookback", window.lookback, concat("at most ", window.first_latent_frames, "."));
  }
  if (vae.kind == "ltx2" && window.lookback == 0) refuse("lookback", 0, "1 or more.");
}

void check_decoder(const Variant& variant, const Path& path, const VaeSpec& vae) {
  if (!variant.decoder) {
    if (!variant.graphs.contains(kDecoder) && !variant.graphs.contains(kDecoderFirst) &&
        !variant.graphs.contains(kDecoderWhole)) {
      return;
    }
    throw Error(SANA_MANIFEST_REFERENCE_ERROR,
                concat(path, " has graphs of a decoder, but its decoder is null."),
                {.expected = "how the decoder is called.", .remedy = kRemedy});
  }
  const auto& window = *variant.decoder;
  check_decoder_graph(variant, path, kDecoderFirst,
                      {window.first_latent_frames + window.lookahead, window.first_frames, 0,
                       window.caches});
  check_decoder_graph(variant, path, kDecoder,
                      {window.lookahead > 0 ? kSeenDim : window.lookback + window.latent_frames,
                       window.frames, window.caches, window.caches});
  check_window(window, path, vae);
}

void check_text_encoder(const Variant& variant, const Path& path, const ModelSpec& model) {
  const auto wanted = model.transformer.caption_channels;
  if (!variant.graphs.contains(kTextEncoder) || model.text.hidden_size == wanted) return;
  throw Error(SANA_MANIFEST_VALUE_ERROR, concat("model.text.hidden_size is ", model.text.hidden_size,
                                                ", and ", path, " has a text encoder."),
              {.expected = concat(wanted, ", as model.transformer.caption_channels."),
               .remedy = kRemedy});
}

// All blocks of the model, or none; nothing here grows with what num_layers says.
void check_blocks(const Variant& variant, const Path& path, std::int64_t num_layers) {
  const auto count = std::count_if(variant.graphs.begin(), variant.graphs.end(),
                                   [](const auto& graph) { return is_block(graph.first); });
  const auto refuse = [&](const std::string& what) {
    throw Error(SANA_MANIFEST_REFERENCE_ERROR, concat(path, " has ", count, " blocks", what, "."),
                {.expected = concat("the graphs of ", num_layers, " blocks, or of none."),
                 .remedy = kRemedy});
  };
  if (count != 0 && count != num_layers) refuse("");
  for (std::int64_t index = 0; index < count; ++index) {
    if (!variant.graphs.contains(block_name(index))) refuse(", but no " + block_name(index));
  }
}

// A graph that has a part in the model has the inputs and outputs that the model says.
void check_signatures(const Variant& variant, const Path& path, const ModelSpec& model) {
  for (const auto& [name, graph] : variant.graphs) {
    if (!is_known_graph(name)) continue;
    const auto wanted = signature_of(name, model, variant.dtype, variant.decoder);
    if (!wanted) {
      throw Error(SANA_MANIFEST_REFERENCE_ERROR,
                  concat(path, ".", name, " is a graph of the autoencoder, and model.vae.kind is '",
                         model.vae.kind, "'."),
                  {.expected = "no such graph: this release has none of that kind."});
    }
    if (graph.signature == *wanted) continue;
    throw Error(SANA_MANIFEST_SHAPE_ERROR,
                concat(path, ".", name, " has other inputs or outputs than the model's."),
                {.expected = "those that follow from the manifest's model.", .remedy = kRemedy});
  }
}

void check_plans(const Variant& variant, const Path& path) {
  for (const auto& [target, plans] : variant.plans) {
    check_name(target, "target");
    for (const auto& [name, plan] : plans) {
      const auto graph = variant.graphs.find(name);
      if (graph != variant.graphs.end()) {
        if (plan.signature == graph->second.signature) continue;
        throw Error(SANA_MANIFEST_SHAPE_ERROR,
                    concat(path, "'s plan of ", name, " has other inputs or outputs than its graph."),
                    {.remedy = "build the plans again (sana-rt build)."});
      }
      throw Error(SANA_MANIFEST_REFERENCE_ERROR,
                  concat(path, " has a plan of ", in_quotes(name), " for '", target, "'."),
                  {.expected = "one of its graphs."});
    }
  }
}

Variant as_variant(const Json& value, const Path& path) {
  Fields fields(value, path);
  Variant variant{};
  variant.dtype = dtype_of(fields.required("dtype", as_string), path);
  fields.required("description", as_string);
  variant.source = fields.required("source", as_source);
  variant.graphs = fields.required("graphs", as_graphs);
  variant.plans = fields.defaulted("plans", decltype(variant.plans){}, as_targets);
  variant.quantization = fields.nullable("quantization", as_quantization);
  variant.decoder = fields.nullable("decoder", as_window);
  fields.defaulted("maker", std::string{}, as_string);
  fields.finish();
  return variant;
}

void check_variant(const Variant& variant, const Path& path, const ModelSpec& model) {
  check_text_encoder(variant, path, model);
  check_blocks(variant, path, model.transformer.num_layers);
  check_decoder(variant, path, model.vae);
  check_signatures(variant, path, model);
  check_plans(variant, path);
}

std::map<std::string, File> as_files(const Json& value, const Path& path) {
  if (as_array(value, path).size() > kMaxFiles) {
    throw Error(SANA_MANIFEST_LIMIT_ERROR, concat("The manifest lists ", value.array()->size(), " files."),
                {.expected = concat("at most ", kMaxFiles, ".")});
  }
  std::map<std::string, File> files;
  std::set<std::string> seen;
  for (auto& file : as_list(value, path, as_file)) {
    if (!seen.insert(lower(file.path)).second) {
      throw Error(SANA_MANIFEST_DUPLICATE_ERROR,
                  concat("The manifest lists ", in_quotes(file.path), " twice."),
                  {.expected = "paths that differ by more than case."});
    }
    auto key = file.path;
    files.emplace(std::move(key), std::move(file));
  }
  return files;
}

std::vector<std::pair<std::string, Variant>> as_variants(const Json& value, const Path& path) {
  std::vector<std::pair<std::string, Variant>> variants;
  for (const auto& [name, variant] : as_object(value, path)) {
    check_name(name, "variant");
    variants.emplace_back(name, as_variant(variant, path + "." + name));
  }
  if (variants.empty()) throw DocumentError(Rule::kValue, path + " has no variant");
  return variants;
}

void check_listed(const Manifest& manifest, std::string_view where, const std::string& path) {
  if (!manifest.files.contains(path)) {
    throw Error(SANA_MANIFEST_REFERENCE_ERROR, concat(where, " refers to ", in_quotes(path), "."),
                {.expected = "a path that the manifest's files list."});
  }
}

void check_references(const Manifest& manifest) {
  if (manifest.tokenizer) check_listed(manifest, "tokenizer", *manifest.tokenizer);
  for (const auto& [name, variant] : manifest.variants) {
    for (const auto& [graph_name, graph] : variant.graphs) {
      check_listed(manifest, name + "/" + graph_name, graph.path);
      for (const auto& path : graph.weights) check_listed(manifest, name + "/" + graph_name, path);
    }
    for (const auto& [target, plans] : variant.plans) {
      for (const auto& [graph_name, plan] : plans) {
        check_listed(manifest, name + "/" + graph_name, plan.path);
        check_listed(manifest, name + "/" + graph_name, plan.log);
      }
    }
  }
}

void check_version(const Json& root) {
  const auto* format = root.find("format");
  if (format == nullptr || format->string() == nullptr || *format->string() != kFormat) {
    throw Error(SANA_MANIFEST_VERSION_ERROR, "The manifest is of another format.",
                {.expected = concat("the format '", kFormat, "'.")});
  }
  const auto* version = root.find("format_version");
  const auto* number = version ? std::get_if<std::int64_t>(&version->value) : nullptr;
  if (number == nullptr || *number != kFormatVersion) {
    throw Error(SANA_MANIFEST_VERSION_ERROR, "The manifest is of another format_version.",
                {.expected = concat(kFormatVersion, ", the one that this release reads."),
                 .remedy = "make the bundle again with sana-rt export, or use the release that "
                           "wrote it."});
  }
}

sana_status status_of(Rule rule) {
  switch (rule) {
    case Rule::kSyntax: return SANA_MANIFEST_SYNTAX_ERROR;
    case Rule::kDuplicate: return SANA_MANIFEST_DUPLICATE_ERROR;
    case Rule::kLimit: return SANA_MANIFEST_LIMIT_ERROR;
    case Rule::kField: return SANA_MANIFEST_FIELD_ERROR;
    case Rule::kValue: return SANA_MANIFEST_VALUE_ERROR;
  }
  return SANA_INTERNAL_ERROR;
}

Manifest as_manifest(const Json& root) {
  Fields fields(root, "the manifest");
  check_version(root);
  Manifest manifest;
  fields.required("format", as_string);
  fields.required("format_version", as_integer);
  fields.required("created_by", as_string);
  manifest.model = fields.required("model", as_model_spec);
  manifest.files = fields.required("files", as_files);
  manifest.variants = fields.required("variants", as_variants);
  manifest.tokenizer = fields.nullable("tokenizer", as_string);
  fields.finish();
  check_model(manifest.model);
  for (const auto& [name, variant] : manifest.variants) {
    check_variant(variant, name, manifest.model);
  }
  check_references(manifest);
  return manifest;
}

}  // namespace

std::int64_t DecodeWindow::call(std::int64_t latent_frame) const {
  return std::max<std::int64_t>(0, latent_frame - first_latent_frames + latent_frames) /
         latent_frames;
}

std::int64_t DecodeWindow::stop(std::int64_t start) const {
  return start + (start == 0 ? first_latent_frames : latent_frames);
}

bool is_emulation(const Variant& variant, const Variant& device) {
  auto made = device.quantization;
  if (!made || !made->device) return false;
  made->device = false;
  return variant.quantization == made && variant.source == device.source;
}

const Variant& Manifest::variant(std::string_view name) const {
  std::vector<std::string> names;
  for (const auto& [each, variant] : variants) {
    if (each == name) return variant;
    names.push_back(each);
  }
  throw Error(SANA_MANIFEST_REFERENCE_ERROR, concat("The bundle has no variant ", in_quotes(name), "."),
              {.expected = concat("one of ", listed(names), ".")});
}

Manifest decode_manifest(std::string_view data) {
  if (data.size() > kMaxManifestBytes) {
    throw Error(SANA_MANIFEST_LIMIT_ERROR, concat("The manifest has ", data.size(), " bytes."),
                {.expected = concat("at most ", kMaxManifestBytes, ".")});
  }
  try {
    return as_manifest(parse_json(data));
  } catch (const DocumentError& error) {
    throw Error(status_of(error.rule()), concat("The manifest cannot be read: ", error.what(), "."),
                {.expected = "a manifest.json of the form in docs/manifest.md.",
                 .remedy = "copy the bundle again, or make it again."});
  }
}

}  // namespace sana_rt::runtime
