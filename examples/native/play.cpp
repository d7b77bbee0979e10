// Plays a bundle from a prompt to a video; a block-causal one is streamed, and another prompt takes
// over in the middle. Ctrl-C ends it after the step at hand; what was made until then is kept.
//
//   play BUNDLE PROMPT [SECONDS [NEXT_PROMPT]]
#include <csignal>
#include <cstdlib>
#include <iostream>

#include "sana_rt.hpp"
#include "video.hpp"

namespace {

volatile std::sig_atomic_t interrupted = 0;

sana_rt::SessionOptions options() {
  sana_rt::SessionOptions options;
  options.progress = [](const sana_progress& progress) {
    if (progress.stage == SANA_STAGE_DENOISE) {
      std::cerr << "\rpass " << progress.done << " of " << progress.total << std::flush;
    }
    return interrupted == 0;
  };
  options.log = [](sana_log_level, std::string_view message) { std::cerr << message << '\n'; };
  return options;
}

sana_rt::ClipParams wanted(int count, char** arguments, bool causal) {
  sana_rt::ClipParams params;
  params.prompt = arguments[2];
  if (count > 3) params.seconds = std::atof(arguments[3]);
  params.stream = causal;
  if (count > 4) params.prompts = {{params.seconds.value() / 2, arguments[4]}};
  return params;
}

void play(int count, char** arguments) {
  const sana_rt::Model model(arguments[1]);
  const auto info = model.info();
  sana_rt::Session session(model, options());
  auto clip = session.start(wanted(count, arguments, info.causal));
  const auto video = open_video("out", info.height, info.width, info.fps);
  for (const auto& frames : clip) {
    for (std::size_t index = 0; index < frames.size(); ++index) video->add(frames[index]);
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) {
    std::cerr << "play BUNDLE PROMPT [SECONDS [NEXT_PROMPT]]\n";
    return 2;
  }
  std::signal(SIGINT, [](int) { interrupted = 1; });
  try {
    play(count, arguments);
  } catch (const sana_rt::Error& error) {
    std::cerr << '\n' << error.name() << ": " << error.what() << '\n';
    return error.status() == SANA_CANCELED_ERROR ? 130 : 1;
  }
  std::cerr << '\n';
}
