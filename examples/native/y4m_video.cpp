// Uncompressed video, which every player reads: YUV4MPEG2 with 4:4:4 planes.
#include <array>
#include <cmath>
#include <fstream>
#include <stdexcept>
#include <vector>

#include "video.hpp"

namespace {

// BT.709, limited range.
std::array<std::uint8_t, 3> ycbcr(const std::uint8_t* rgb) {
  const double r = rgb[0] / 255.0;
  const double g = rgb[1] / 255.0;
  const double b = rgb[2] / 255.0;
  const double y = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  const auto byte = [](double value) { return static_cast<std::uint8_t>(std::lround(value)); };
  return {byte(16 + 219 * y), byte(128 + 224 * (b - y) / 1.8556), byte(128 + 224 * (r - y) / 1.5748)};
}

class Y4mVideo : public Video {
 public:
  Y4mVideo(const std::string& name, int height, int width, int fps)
      : file_(name + ".y4m", std::ios::binary) {
    if (!file_) throw std::runtime_error("cannot write " + name + ".y4m");
    file_ << "YUV4MPEG2 W" << width << " H" << height << " F" << fps << ":1 Ip C444\n";
  }

  void add(std::span<const std::uint8_t> rgb) override {
    const auto pixels = rgb.size() / 3;
    std::vector<char> planes(rgb.size());
    for (std::size_t pixel = 0; pixel < pixels; ++pixel) {
      const auto values = ycbcr(rgb.data() + 3 * pixel);
      for (std::size_t plane = 0; plane < 3; ++plane) {
        planes[plane * pixels + pixel] = static_cast<char>(values[plane]);
      }
    }
    file_ << "FRAME\n";
    file_.write(planes.data(), static_cast<std::streamsize>(planes.size()));
  }

 private:
  std::ofstream file_;
};

}  // namespace

std::unique_ptr<Video> open_video(const std::string& name, int height, int width, int fps) {
  return std::make_unique<Y4mVideo>(name, height, width, fps);
}
