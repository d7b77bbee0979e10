// Files of states: what is written is read again, what is damaged is refused.
#include <doctest/doctest.h>
#include <unistd.h>

#include "data.hpp"
#include "error.hpp"
#include "state.hpp"

namespace fs = std::filesystem;
using namespace sana_rt::runtime;

namespace {

State made() {
  State state;
  state.header.identity = {"small \"圆\"", "fp32", std::string(64, 'a')};
  state.header.request.prompt = "一个圆\n";
  state.header.request.num_inference_steps = 4;
  state.header.request.guidance_scale = 1;
  state.header.request.solver = Solver::kRenoise;
  state.header.request.flow_shift = 7;
  state.header.request.fps = 8;
  state.header.request.seed = UINT64_MAX;
  state.header.request.timesteps = {1000.0, 0.5};
  state.header.prompts = {{7, "later"}};
  state.header.position = {3, 4, 5};
  HostTensor tensor{DType::kFloat32, {2, 3}, std::vector<std::byte>(24, std::byte{1})};
  state.tensors.emplace("latents", tensor);
  return state;
}

class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / ("sana_rt_" + std::to_string(::getpid()))) {
    fs::create_directories(path_);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { fs::remove_all(path_); }
  fs::path operator/(const char* name) const { return path_ / name; }

 private:
  fs::path path_;
};

}  // namespace

TEST_CASE("a state that is saved is read again") {
  const Folder folder;
  const auto state = made();
  state.save(folder / "a.state");
  const auto read = State::load(folder / "a.state");
  CHECK(read.header.identity == state.header.identity);
  CHECK(read.header.request.prompt == state.header.request.prompt);
  CHECK(read.header.request.seed == UINT64_MAX);
  CHECK(read.header.request.timesteps == state.header.request.timesteps);
  CHECK(read.header.position.decoded == 5);
  REQUIRE(read.header.prompts.size() == 1);
  CHECK(read.header.prompts[0].prompt == "later");
  CHECK(read.tensors.at("latents").data == state.tensors.at("latents").data);
}

TEST_CASE("a state with one damaged byte, or cut short, is refused or equal") {
  const Folder folder;
  made().save(folder / "a.state");
  const auto whole = content(folder / "a.state");
  int refused = 0;
  for (std::size_t at = 0; at < whole.size(); ++at) {
    auto damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x5a);
    try {
      const auto read = State::parse(damaged);
      CHECK(read.tensors.at("latents").data == made().tensors.at("latents").data);
    } catch (const Error& error) {
      CHECK(error.status() == SANA_STATE_ERROR);
      ++refused;
    }
    CHECK_THROWS_AS(State::parse(whole.substr(0, at)), Error);
  }
  CHECK(refused > static_cast<int>(whole.size() / 2));
}

TEST_CASE("a state with NaN is not written, and the file of before stays") {
  const Folder folder;
  auto state = made();
  state.save(folder / "a.state");
  const auto before = content(folder / "a.state");
  std::fill_n(state.tensors.at("latents").data.begin(), 4, std::byte{0xff});
  CHECK_THROWS_AS(state.save(folder / "a.state"), Error);
  CHECK(content(folder / "a.state") == before);
}

TEST_CASE("a state where nothing can be written is a storage error") {
  try {
    made().save("/dev/null/no/a.state");
    FAIL("it was written");
  } catch (const Error& error) {
    CHECK(error.status() == SANA_STORAGE_ERROR);
  }
}
