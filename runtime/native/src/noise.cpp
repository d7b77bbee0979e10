#include "noise.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace sana_rt::runtime {
namespace {

using Words = std::array<std::uint32_t, 4>;

constexpr int kRounds = 10;
constexpr double kLn2 = 0.6931471805599453;
constexpr double kSqrtHalf = 0.7071067811865476;
constexpr double kPi = 3.141592653589793;

// Highest power first, for Horner's rule: 1/(2k+1), (-1)^k/(2k+1)!, (-1)^k/(2k)!.
constexpr std::array<double, 11> kAtanh{1.0 / 21, 1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13, 1.0 / 11,
                                        1.0 / 9,  1.0 / 7,  1.0 / 5,  1.0 / 3,  1.0};
constexpr std::array<double, 9> kSin{1.0 / 355687428096000, -1.0 / 1307674368000, 1.0 / 6227020800,
                                     -1.0 / 39916800,       1.0 / 362880,         -1.0 / 5040,
                                     1.0 / 120,             -1.0 / 6,             1.0};
constexpr std::array<double, 9> kCos{1.0 / 20922789888000, -1.0 / 87178291200, 1.0 / 479001600,
                                     -1.0 / 3628800,       1.0 / 40320,        -1.0 / 720,
                                     1.0 / 24,             -1.0 / 2,           1.0};

template <std::size_t N>
double horner(const std::array<double, N>& terms, double x) {
  double result = terms[0];
  for (std::size_t power = 1; power < N; ++power) result = result * x + terms[power];
  return result;
}

// x = m 2^e with m in [sqrt(1/2), sqrt(2)), ln m = 2 atanh s.
double log_of(double x) {
  int exponent = 0;
  double mantissa = std::frexp(x, &exponent);
  if (mantissa < kSqrtHalf) {
    mantissa *= 2.0;
    --exponent;
  }
  const double s = (mantissa - 1.0) / (mantissa + 1.0);
  return 2.0 * s * horner(kAtanh, s * s) + exponent * kLn2;
}

// Cosine and sine of 2 pi (q + 1/2) / 2^32: the nearest quarter is taken off exactly.
std::pair<double, double> turn(std::uint32_t q) {
  const std::uint32_t quadrant = ((q >> 29U) + 1U) >> 1U;  // 0 .. 4
  const double offset = static_cast<double>(q) - quadrant * 0x1p30 + 0.5;
  const double x = offset * (kPi * 0x1p-31);
  const double sine = x * horner(kSin, x * x);
  const double cosine = horner(kCos, x * x);
  const double sign = (quadrant & 2U) != 0 ? -1.0 : 1.0;
  return (quadrant & 1U) != 0 ? std::pair{sign * -sine, sign * cosine}
                              : std::pair{sign * cosine, sign * sine};
}

// Box-Muller.
std::array<float, 2> normal_pair(std::uint32_t p, std::uint32_t q) {
  const double uniform = (static_cast<double>(p) + 0.5) * 0x1p-32;
  const double radius = std::sqrt(-2.0 * log_of(uniform));
  const auto [cosine, sine] = turn(q);
  return {static_cast<float>(radius * cosine), static_cast<float>(radius * sine)};
}

}  // namespace

Words philox(Words counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < kRounds; ++round) {
    const auto product0 = std::uint64_t{0xD2511F53} * counter[0];
    const auto product1 = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32U) ^ counter[1] ^ key[0],
               static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32U) ^ counter[3] ^ key[1],
               static_cast<std::uint32_t>(product0)};
    key = {key[0] + 0x9E3779B9U, key[1] + 0xBB67AE85U};
  }
  return counter;
}

std::vector<float> gaussian(std::uint64_t seed, Range frames, const FrameShape& shape,
                            std::uint32_t step) {
  constexpr std::uint32_t kStream = 0;  // of the sample; a clip is one
  const std::array<std::uint32_t, 2> key{static_cast<std::uint32_t>(seed),
                                         static_cast<std::uint32_t>(seed >> 32U)};
  const auto plane = shape.height * shape.width;
  std::vector<float> latents(static_cast<std::size_t>(frames.size() * shape.size()));
  for (auto frame = frames.start; frame < frames.stop; ++frame) {
    for (std::int64_t element = 0; element < shape.size(); element += 4) {
      const auto words = philox({static_cast<std::uint32_t>(element / 4),
                                 static_cast<std::uint32_t>(frame), step, kStream},
                                key);
      const auto first = normal_pair(words[0], words[1]);
      const auto second = normal_pair(words[2], words[3]);
      const std::array<float, 4> values{first[0], first[1], second[0], second[1]};
      const auto count = std::min<std::int64_t>(4, shape.size() - element);
      for (std::int64_t i = 0; i < count; ++i) {
        const auto channel = (element + i) / plane;
        const auto pixel = (element + i) % plane;
        const auto at = (channel * frames.size() + frame - frames.start) * plane + pixel;
        latents[static_cast<std::size_t>(at)] = values.at(static_cast<std::size_t>(i));
      }
    }
  }
  return latents;
}

}  // namespace sana_rt::runtime
