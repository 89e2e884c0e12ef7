// int8 convolutions for AVX-512 VNNI: four channels of 16 outputs in one instruction, several places at a time.
#include "program.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define TARGET __attribute__((target("avx2,avx512f,avx512bw,avx512vl,avx512vnni")))

#include <immintrin.h>

#include <array>
#include <cstring>
#include <utility>

namespace waterfill {
namespace {

// Places, and blocks of outputs, whose sums registers hold: so many of one block, or half as many of two.
constexpr int kPlaces = 16, kTogether = 2;

// sum += inputs * codes, by fours. As an instruction in words: GCC 12 copies every sum twice for the intrinsic.
TARGET inline void add_fours(__m512i& sum, __m512i inputs, __m512i codes) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(inputs), "v"(codes));
}

// Four channels of a pixel, for all outputs.
TARGET inline __m512i quad_of(const uint8_t* from) {
    int32_t four;
    std::memcpy(&four, from, sizeof four);
    return _mm512_set1_epi32(four);
}

// What sums of a block become, where they belong.
TARGET inline void store(const Convolution& of, int64_t first, __m512i sums, uint8_t* to) {
    const int64_t left = of.outs - first;
    const __mmask16 there = left >= kOuts ? 0xffff : static_cast<__mmask16>((1 << left) - 1);
    const __m512i whole = _mm512_sub_epi32(sums, _mm512_loadu_si512(of.shifts.data() + first));
    __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), _mm512_loadu_ps(of.scales.data() + first));
    y = _mm512_add_ps(y, _mm512_loadu_ps(of.bias.data() + first));
    if (of.relu) y = _mm512_max_ps(y, _mm512_setzero_ps());
    if (of.to.floats) {
        _mm512_mask_storeu_ps(reinterpret_cast<float*>(to) + first, there, y);
        return;
    }
    const __m512 clipped = _mm512_min_ps(_mm512_max_ps(y, _mm512_set1_ps(-kClipped)), _mm512_set1_ps(kClipped));
    const __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32(clipped), _mm512_set1_epi32(of.zero));
    _mm512_mask_cvtusepi32_storeu_epi8(to + first, there, _mm512_max_epi32(q, _mm512_setzero_si512()));
}

// Outputs of Blocks blocks from `block` on at Places places in a row.
template <int Places, int Blocks>
TARGET void tile(const Convolution& of, int64_t block, const uint8_t* from, uint8_t* to) {
    const int64_t step = of.stride[1] * of.from.stride, each = of.block_bytes();
    const int8_t* codes = of.codes.data() + block * each;
    __m512i sums[Places][Blocks];
#pragma GCC unroll 16
    for (int i = 0; i < Places * Blocks; ++i) (&sums[0][0])[i] = _mm512_setzero_si512();
    for (int64_t ky = 0; ky < of.height; ++ky)
        for (int64_t kx = 0; kx < of.width; ++kx) {
            const uint8_t* at = from + ky * of.dilation[0] * of.from.row() + kx * of.dilation[1] * of.from.stride;
            for (int64_t quad = 0; quad < of.quads; ++quad, at += kQuad, codes += kQuadBytes) {
                __m512i own[Blocks];
#pragma GCC unroll 2
                for (int b = 0; b < Blocks; ++b) own[b] = _mm512_loadu_si512(codes + b * each);
#pragma GCC unroll 16
                for (int p = 0; p < Places; ++p) {
                    const __m512i given = quad_of(at + p * step);
#pragma GCC unroll 2
                    for (int b = 0; b < Blocks; ++b) add_fours(sums[p][b], given, own[b]);
                }
            }
        }
    const int64_t next = (of.to.floats ? sizeof(float) : 1) * of.to.stride;
#pragma GCC unroll 16
    for (int p = 0; p < Places; ++p)
#pragma GCC unroll 2
        for (int b = 0; b < Blocks; ++b) store(of, (block + b) * kOuts, sums[p][b], to + p * next);
}

using Tile = void (*)(const Convolution& of, int64_t block, const uint8_t* from, uint8_t* to);

template <int Blocks, size_t... Fewer>
constexpr std::array<Tile, sizeof...(Fewer)> tiles_of(std::index_sequence<Fewer...>) {
    return {tile<static_cast<int>(Fewer) + 1, Blocks>...};
}

constexpr auto kOfOne = tiles_of<1>(std::make_index_sequence<kPlaces>());
constexpr auto kOfTwo = tiles_of<kTogether>(std::make_index_sequence<kPlaces / kTogether>());

void run(const Convolution& of, const uint8_t* from, uint8_t* to) {
    for (int64_t block = 0, together; block < of.blocks(); block += together) {
        together = of.blocks() - block >= kTogether ? kTogether : 1;
        const Tile* tiles = together == kTogether ? kOfTwo.data() : kOfOne.data();
        in_runs(of, from, to, kPlaces / together, [&](int64_t places, const uint8_t* at, uint8_t* made) {
            tiles[places - 1](of, block, at, made);
        });
    }
}

bool available() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

}  // namespace

const ConvolutionSet kConvolutionVnni = {"vnni", available, run};

}  // namespace waterfill
#else
namespace waterfill {
const ConvolutionSet kConvolutionVnni = {"vnni", [] { return false; }, nullptr};
}
#endif
