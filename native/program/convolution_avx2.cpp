// int8 convolutions for AVX2: pairs of products, which 16 bits hold where codes are small.
#include "program.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define TARGET __attribute__((target("avx2")))

#include <immintrin.h>

#include <algorithm>
#include <cstring>

namespace waterfill {
namespace {

constexpr int kPlaces = 4, kLanes = 8;  // places whose sums registers hold, and sums of a register
constexpr int kLargest = 64;            // 2 * 255 * 64 fits into 16 bits

// Four channels of a pixel, for all outputs.
TARGET inline __m256i quad_of(const uint8_t* from) {
    int32_t four;
    std::memcpy(&four, from, sizeof four);
    return _mm256_set1_epi32(four);
}

TARGET inline void add_fours(__m256i& sum, __m256i inputs, __m256i codes) {
    const __m256i pairs = _mm256_maddubs_epi16(inputs, codes);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// What sums of eight outputs become; y: floats, or integers that fit into bytes.
TARGET inline void store(const Convolution& of, int64_t first, __m256i sums, uint8_t* to) {
    const int64_t count = std::min<int64_t>(kLanes, of.outs - first);
    if (count <= 0) return;
    const __m256i shifts = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(of.shifts.data() + first));
    __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(sums, shifts)), _mm256_loadu_ps(&of.scales[first]));
    y = _mm256_add_ps(y, _mm256_loadu_ps(&of.bias[first]));
    if (of.relu) y = _mm256_max_ps(y, _mm256_setzero_ps());
    if (of.to.floats) {
        float some[kLanes];
        _mm256_storeu_ps(some, y);
        std::memcpy(reinterpret_cast<float*>(to) + first, some, count * sizeof(float));
        return;
    }
    const __m256 clipped = _mm256_min_ps(_mm256_max_ps(y, _mm256_set1_ps(-kClipped)), _mm256_set1_ps(kClipped));
    const __m256i q = _mm256_add_epi32(_mm256_cvtps_epi32(clipped), _mm256_set1_epi32(of.zero));
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
    alignas(16) uint8_t bytes[16];
    // Words above 2^15 would be negative in the next step.
    _mm_store_si128(reinterpret_cast<__m128i*>(bytes),
                    _mm_packus_epi16(_mm_min_epu16(words, _mm_set1_epi16(255)), _mm_setzero_si128()));
    std::memcpy(to + first, bytes, count);
}

// Outputs of a block at Places places in a row.
template <int Places>
TARGET void tile(const Convolution& of, int64_t block, const uint8_t* from, uint8_t* to) {
    const int64_t step = of.stride[1] * of.from.stride;
    const int8_t* codes = of.codes.data() + block * of.block_bytes();
    __m256i sums[Places][2];
#pragma GCC unroll 8
    for (int i = 0; i < Places * 2; ++i) (&sums[0][0])[i] = _mm256_setzero_si256();
    for (int64_t ky = 0; ky < of.height; ++ky)
        for (int64_t kx = 0; kx < of.width; ++kx) {
            const uint8_t* at = from + ky * of.dilation[0] * of.from.row() + kx * of.dilation[1] * of.from.stride;
            for (int64_t quad = 0; quad < of.quads; ++quad, at += kQuad, codes += kQuadBytes) {
                const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
                const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + kQuadBytes / 2));
#pragma GCC unroll 4
                for (int p = 0; p < Places; ++p) {
                    const __m256i given = quad_of(at + p * step);
                    add_fours(sums[p][0], given, low);
                    add_fours(sums[p][1], given, high);
                }
            }
        }
    const int64_t next = (of.to.floats ? sizeof(float) : 1) * of.to.stride;
    for (int p = 0; p < Places; ++p)
        for (int half = 0; half < 2; ++half) store(of, block * kOuts + half * kLanes, sums[p][half], to + p * next);
}

using Tile = void (*)(const Convolution& of, int64_t block, const uint8_t* from, uint8_t* to);
constexpr Tile kTiles[kPlaces] = {tile<1>, tile<2>, tile<3>, tile<4>};

void run(const Convolution& of, const uint8_t* from, uint8_t* to) {
    if (of.largest > kLargest) return kConvolutionPortable.run(of, from, to);
    for (int64_t block = 0; block < of.blocks(); ++block)
        in_runs(of, from, to, kPlaces, [&](int64_t places, const uint8_t* at, uint8_t* made) {
            kTiles[places - 1](of, block, at, made);
        });
}

}  // namespace

const ConvolutionSet kConvolutionAvx2 = {"avx2", [] { return __builtin_cpu_supports("avx2") != 0; }, run};

}  // namespace waterfill
#else
namespace waterfill {
const ConvolutionSet kConvolutionAvx2 = {"avx2", [] { return false; }, nullptr};
}
#endif
