#include "state.hpp"

#include <cstring>
#include <nlohmann/json.hpp>

#include "error.hpp"

namespace sana_rt::runtime {
namespace {

constexpr const char* kFormat = "sana-rt-stream";
constexpr std::int64_t kFormatVersion = 2;
constexpr const char* kHeader = "header";
constexpr JsonLimits kLimits{.depth = 16, .integer = UINT64_MAX};  // seeds have 64 bits

using Written = nlohmann::ordered_json;

Written written(const Request& request) {
  Written json{{"prompt", request.prompt},
               {"negative_prompt", request.negative_prompt},
               {"height", request.height},
               {"width", request.width},
               {"num_frames", request.num_frames},
               {"num_inference_steps", request.num_inference_steps},
               {"guidance_scale", request.guidance_scale},
               {"solver", solver_name(request.solver)},
               {"flow_shift", request.flow_shift},
               {"fps", request.fps},
               {"motion_score", nullptr},
               {"seed", request.seed},
               {"lowercase", request.lowercase},
               {"timesteps", nullptr}};
  if (request.motion_score) json["motion_score"] = *request.motion_score;
  if (request.timesteps) json["timesteps"] = *request.timesteps;
  return json;
}

std::string written(const Header& header) {
  Written prompts = Written::array();
  for (const auto& [frame, prompt] : header.prompts) {
    prompts.push_back({{"frame", frame}, {"prompt", prompt}});
  }
  const auto& [model, variant, graphs] = header.identity;
  const auto& [committed, pending, decoded] = header.position;
  return Written{
      {"format", kFormat},
      {"format_version", kFormatVersion},
      {"identity", {{"model", model}, {"variant", variant}, {"graphs", graphs}}},
      {"request", written(header.request)},
      {"prompts", prompts},
      {"position", {{"committed", committed}, {"pending", pending}, {"decoded", decoded}}}}
      .dump();
}

Identity as_identity(const Json& value, const Path& path) {
  Fields fields(value, path);
  Identity identity{fields.required("model", as_string), fields.required("variant", as_string),
                    fields.required("graphs", as_string)};
  fields.finish();
  return identity;
}

Position as_position(const Json& value, const Path& path) {
  Fields fields(value, path);
  const Position position{fields.required("committed", as_natural),
                          fields.required("pending", as_natural),
                          fields.required("decoded", as_natural)};
  fields.finish();
  constexpr std::int64_t kMost = std::int64_t{1} << 53;
  const bool small = position.committed < kMost && position.pending < kMost;
  if (!small || position.decoded < position.committed || position.decoded > position.next()) {
    throw DocumentError(Rule::kValue, path + " cannot be");
  }
  return position;
}

Header as_header(const Json& value, const Path& path) {
  Fields fields(value, path);
  Header header;
  fields.required("format", [](const Json& name, const Path& where) {
    return one_of(name, where, {kFormat});
  });
  if (fields.required("format_version", as_integer) != kFormatVersion) {
    throw DocumentError(Rule::kValue, path + " is of another format version");
  }
  header.identity = fields.required("identity", as_identity);
  header.request = fields.required("request", as_request);
  header.prompts = fields.required("prompts", [](const Json& list, const Path& where) {
    return as_list(list, where, as_scheduled_prompt);
  });
  header.position = fields.required("position", as_position);
  fields.finish();
  return header;
}

State as_state(Arrays arrays) {
  const auto found = arrays.find(kHeader);
  if (found == arrays.end() || found->second.dtype != DType::kUInt8) {
    throw DamagedArrayError("it has no header");
  }
  const auto& bytes = found->second.data;
  State state;
  state.header = as_header(
      parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, kLimits), "the header");
  arrays.erase(found);
  for (const auto& [name, tensor] : arrays) {
    if (!is_finite(tensor)) throw DamagedArrayError(in_quotes(name) + " holds NaN or infinity");
  }
  state.tensors = std::move(arrays);
  return state;
}

template <class Read>
State read_state(const std::string& name, const Read& read) {
  std::string reason;
  try {
    return as_state(read());
  } catch (const DamagedArrayError& error) {
    reason = error.what();
  } catch (const DocumentError& error) {
    reason = error.what();
  }
  throw Error(SANA_STATE_ERROR, concat(name, " is not a readable stream state: ", reason, "."),
              {.expected = concat("a file of format version ", kFormatVersion, ".")});
}

std::string size_of(const Request& request) {
  return concat(request.height, " by ", request.width, " pixels, ", request.fps,
                " frames a second, batch ", request.batch());
}

[[noreturn]] void refuse(const std::string& what, const std::string& saved,
                         const std::string& wanted) {
  throw Error(SANA_STATE_ERROR, concat("The state was saved with another ", what, ": ", saved, "."),
              {.expected = concat(wanted, "."),
               .remedy = "resume with the bundle, variant and size that it was saved with."});
}

std::string shown(const Identity& identity) {
  return concat(in_quotes(identity.model), ", variant ", in_quotes(identity.variant), ", graphs ",
                identity.graphs.substr(0, 12));
}

std::string shown(const Kind& kind) { return concat(dtype_name(kind.dtype), " ", listed(kind.shape)); }

}  // namespace

void State::save(const std::filesystem::path& path) const {
  for (const auto& [name, tensor] : tensors) {
    if (is_finite(tensor)) continue;
    throw Error(SANA_STATE_ERROR, concat("The state was not saved: '", name, "' holds NaN or "
                                         "infinity."),
                {.remedy = "resume from an earlier state."});
  }
  const auto text = written(header);
  HostTensor encoded{DType::kUInt8, {static_cast<std::int64_t>(text.size())}, {}};
  const auto* begin = reinterpret_cast<const std::byte*>(text.data());
  encoded.data.assign(begin, begin + text.size());
  Arrays arrays = tensors;
  arrays.insert_or_assign(kHeader, std::move(encoded));
  write_arrays(path, arrays);
}

State State::load(const std::filesystem::path& path) {
  return read_state(path.string(), [&] { return read_arrays(path); });
}

State State::parse(std::string_view file) {
  return read_state("It", [&] { return parse_arrays(file); });
}

Embeds State::embeds() const {
  const auto& hidden_states = tensors.at("hidden_states");
  const auto& mask = tensors.at("attention_mask");
  auto embeds = std::make_shared<std::vector<PromptEmbeds>>();
  const auto batch = static_cast<std::size_t>(hidden_states.shape.at(0));
  for (std::size_t sample = 0; sample < batch; ++sample) {
    PromptEmbeds one;
    const auto states = hidden_states.data.size() / batch;
    const auto tokens = mask.data.size() / batch;
    one.hidden_states.resize(states / sizeof(float));
    one.attention_mask.resize(tokens / sizeof(std::int64_t));
    std::memcpy(one.hidden_states.data(), hidden_states.data.data() + sample * states, states);
    std::memcpy(one.attention_mask.data(), mask.data.data() + sample * tokens, tokens);
    embeds->push_back(std::move(one));
  }
  return embeds;
}

void State::check(const Identity& identity, const Request& request,
                  const std::map<std::string, Kind>& kinds) const {
  if (header.identity != identity) refuse("model", shown(header.identity), shown(identity));
  if (size_of(header.request) != size_of(request)) {
    refuse("frame size, rate or batch", size_of(header.request), size_of(request));
  }
  for (const auto& [name, tensor] : tensors) {
    if (!kinds.contains(name)) refuse("kind of " + in_quotes(name), "an array", "none");
  }
  for (const auto& [name, kind] : kinds) {
    const auto found = tensors.find(name);
    if (found == tensors.end()) refuse("kind of '" + name + "'", "none", shown(kind));
    const Kind saved{found->second.dtype, found->second.shape};
    if (saved != kind) refuse("kind of '" + name + "'", shown(saved), shown(kind));
  }
}

}  // namespace sana_rt::runtime
