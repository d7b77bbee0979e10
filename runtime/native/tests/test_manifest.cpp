// The corpus in tests/data/manifests: the same verdict and the same error as Python's reader.
#include <doctest/doctest.h>

#include "bundle.hpp"
#include "data.hpp"
#include "error.hpp"
#include "manifest.hpp"

namespace fs = std::filesystem;
using sana_rt::runtime::decode_manifest;
using sana_rt::runtime::Error;

namespace {

const auto kCorpus = root() / "tests/data/manifests";

// The name of the error that a manifest is refused with, or "OK".
std::string verdict(const std::string& data) {
  try {
    decode_manifest(data);
    return "OK";
  } catch (const Error& error) {
    CHECK(std::string(error.what()).size() < 2000);
    return sana_status_name(error.status());
  }
}

}  // namespace

TEST_CASE("every manifest of the corpus has its verdict and its error") {
  int accepted = 0;
  int refused = 0;
  for (const auto& one : read_json(kCorpus / "index.json")) {
    INFO(one["file"].get<std::string>());
    const bool accept = one["verdict"] == "accept";
    const auto expected = accept ? "OK" : one["error"].get<std::string>();
    CHECK(verdict(content(kCorpus / one["file"].get<std::string>())) == expected);
    ++(accept ? accepted : refused);
  }
  CHECK(accepted >= 20);
  CHECK(refused >= 100);
}

TEST_CASE("variants keep the manifest's order") {
  const auto read = decode_manifest(content(kCorpus / "valid/two_variants.json"));
  const auto text = content(kCorpus / "valid/two_variants.json");
  REQUIRE(read.variants.size() == 2);
  const auto begin = text.find("\"variants\"");
  const auto place = [&](const std::string& name) { return text.find('"' + name + "\":", begin); };
  CHECK(place(read.variants[0].first) < place(read.variants[1].first));
}

TEST_CASE("a folder without a manifest is no bundle") {
  const auto missing = [](const fs::path& folder) {
    try {
      sana_rt::runtime::Bundle::open(folder);
      return SANA_OK;
    } catch (const Error& error) {
      return error.status();
    }
  };
  CHECK(missing(root() / "docs") == SANA_MANIFEST_MISSING_ERROR);
  CHECK(missing("no/such/folder") == SANA_MANIFEST_MISSING_ERROR);
}
