// tests/data/native/vectors.json: numbers that Python computed.
#include <doctest/doctest.h>

#include <bit>

#include "data.hpp"
#include "geometry.hpp"
#include "noise.hpp"
#include "solver.hpp"

using namespace sana_rt::runtime;

namespace {

const nlohmann::json& vectors() {
  static const auto all = read_json(root() / "tests/data/native/vectors.json");
  return all;
}

std::vector<std::uint32_t> bits(const std::vector<float>& values) {
  std::vector<std::uint32_t> all;
  for (const float value : values) all.push_back(std::bit_cast<std::uint32_t>(value));
  return all;
}

std::vector<Step> steps_of(const nlohmann::json& one) {
  const double shift = one["flow_shift"];
  if (one["solver"] == "renoise") return renoise(one["of"].get<std::vector<double>>(), shift);
  return (one["solver"] == "dpmpp_2m" ? dpmpp_2m : flow_euler)(one["of"], shift);
}

ModelSpec causal_model(std::int64_t chunk_frames) {
  ModelSpec model;
  model.transformer.causal = true;
  model.vae.temporal_stride = 4;
  model.streaming.emplace().chunk_frames = chunk_frames;
  return model;
}

}  // namespace

TEST_CASE("Philox gives its authors' answers") {
  CHECK(philox({0, 0, 0, 0}, {0, 0}) ==
        std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  const auto ones = 0xffffffffU;
  CHECK(philox({ones, ones, ones, ones}, {ones, ones}) ==
        std::array<std::uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
}

TEST_CASE("noise is that of Python, bit by bit") {
  for (const auto& one : vectors()["noise"]) {
    const Range frames{one["frames"][0], one["frames"][1]};
    const FrameShape shape{one["shape"][0], one["shape"][1], one["shape"][2]};
    const auto made = gaussian(one["seed"].get<std::uint64_t>(), frames, shape, one["step"]);
    CHECK(bits(made) == one["bits"].get<std::vector<std::uint32_t>>());
  }
}

TEST_CASE("timesteps and coefficients are those of Python, bit by bit") {
  for (const auto& one : vectors()["schedules"]) {
    INFO(one["solver"].get<std::string>());
    const auto steps = steps_of(one);
    REQUIRE(steps.size() == one["timesteps"].size());
    for (std::size_t i = 0; i < steps.size(); ++i) {
      CHECK(steps[i].timestep == one["timesteps"][i].get<double>());
      CHECK(bits(coefficients(steps[i], 4.5, 2, 1)) ==
            one["coefficients"][i].get<std::vector<std::uint32_t>>());
    }
  }
}

TEST_CASE("chunks and their rotary positions are those of Python") {
  for (const auto& one : vectors()["chunks"]) {
    const auto found = chunk_ranges(causal_model(one["size"]), one["latent_frames"], one["start"]);
    std::vector<std::array<std::int64_t, 2>> ranges;
    std::vector<std::vector<std::int64_t>> places;
    for (const auto& range : found) {
      ranges.push_back({range.start, range.stop});
      places.push_back(positions(range.start, range.size()));
    }
    CHECK(ranges == one["chunks"].get<decltype(ranges)>());
    CHECK(places == one["positions"].get<decltype(places)>());
  }
}

TEST_CASE("seconds become the frames that Python makes of them") {
  for (const auto& one : vectors()["lengths"]) {
    CHECK(frames_of_seconds(one["seconds"], one["fps"], causal_model(10)) ==
          one["frames"].get<std::int64_t>());
  }
}
