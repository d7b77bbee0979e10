// A video file that grows frame by frame.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

class Video {
 public:
  virtual ~Video() = default;
  // RGB8 [height][width][3].
  virtual void add(std::span<const std::uint8_t> rgb) = 0;
};

// Opens `name` with the ending of the format that this build writes: .mp4 or .y4m.
std::unique_ptr<Video> open_video(const std::string& name, int height, int width, int fps);
