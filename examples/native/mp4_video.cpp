// mp4 through FFmpeg's libraries: whatever H.264 or MPEG-4 encoder they have.
extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libswscale/swscale.h>
}

#include <stdexcept>

#include "video.hpp"

namespace {

void check(int code, const char* what) {
  if (code < 0) throw std::runtime_error(std::string("FFmpeg cannot ") + what);
}

template <class T>
T* made(T* pointer, const char* what) {
  check(pointer == nullptr ? -1 : 0, what);
  return pointer;
}

const AVCodec* encoder() {
  const AVCodec* codec = avcodec_find_encoder_by_name("libx264");
  return made(codec != nullptr ? codec : avcodec_find_encoder(AV_CODEC_ID_MPEG4), "encode video");
}

class Mp4Video : public Video {
 public:
  Mp4Video(const std::string& name, int height, int width, int fps) {
    av_log_set_level(AV_LOG_ERROR);
    const auto path = name + ".mp4";
    check(avformat_alloc_output_context2(&container_, nullptr, "mp4", path.c_str()), "make an mp4");
    codec_ = made(avcodec_alloc_context3(encoder()), "open its encoder");
    codec_->height = height;
    codec_->width = width;
    codec_->time_base = {1, fps};
    codec_->framerate = {fps, 1};
    codec_->pix_fmt = AV_PIX_FMT_YUV420P;
    codec_->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
    check(avcodec_open2(codec_, nullptr, nullptr), "open its encoder");
    stream_ = made(avformat_new_stream(container_, nullptr), "add a stream");
    check(avcodec_parameters_from_context(stream_->codecpar, codec_), "add a stream");
    check(avio_open(&container_->pb, path.c_str(), AVIO_FLAG_WRITE), "write the file");
    check(avformat_write_header(container_, nullptr), "write the file");
    frame_ = made(av_frame_alloc(), "make a frame");
    frame_->format = codec_->pix_fmt;
    frame_->height = height;
    frame_->width = width;
    check(av_frame_get_buffer(frame_, 0), "make a frame");
    packet_ = made(av_packet_alloc(), "make a packet");
    scaler_ = made(sws_getContext(width, height, AV_PIX_FMT_RGB24, width, height, codec_->pix_fmt,
                                  SWS_BILINEAR, nullptr, nullptr, nullptr),
                   "convert colours");
  }

  ~Mp4Video() override {
    encode(nullptr);
    av_write_trailer(container_);
    avio_closep(&container_->pb);
    sws_freeContext(scaler_);
    av_packet_free(&packet_);
    av_frame_free(&frame_);
    avcodec_free_context(&codec_);
    avformat_free_context(container_);
  }

  void add(std::span<const std::uint8_t> rgb) override {
    const std::uint8_t* rows[] = {rgb.data()};
    const int strides[] = {3 * frame_->width};
    check(av_frame_make_writable(frame_), "make a frame");
    sws_scale(scaler_, rows, strides, 0, frame_->height, frame_->data, frame_->linesize);
    frame_->pts = count_++;
    check(encode(frame_), "encode a frame");
  }

 private:
  int encode(const AVFrame* frame) {
    int code = avcodec_send_frame(codec_, frame);
    while (code >= 0) {
      if (avcodec_receive_packet(codec_, packet_) < 0) return 0;  // it wants more, or has no more
      av_packet_rescale_ts(packet_, codec_->time_base, stream_->time_base);
      code = av_interleaved_write_frame(container_, packet_);
    }
    return code;
  }

  AVFormatContext* container_ = nullptr;
  AVCodecContext* codec_ = nullptr;
  AVStream* stream_ = nullptr;
  AVFrame* frame_ = nullptr;
  AVPacket* packet_ = nullptr;
  SwsContext* scaler_ = nullptr;
  std::int64_t count_ = 0;
};

}  // namespace

std::unique_ptr<Video> open_video(const std::string& name, int height, int width, int fps) {
  return std::make_unique<Mp4Video>(name, height, width, fps);
}
