// Products with small codes for AVX2.
#include "codes.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define TARGET __attribute__((target("avx2")))

#include <immintrin.h>

namespace waterfill {
namespace {

// Pairs of products, which 16 bits hold for so many blocks.
template <int Bits>
struct Sums {
    // Pairs of at most 15 * 128 * 2, 7 * 128 * 2, 31 * 128 * 2 and 63 * 128 * 2: 8, 8, 4 and 2 of them.
    static constexpr int64_t kHeld = Bits == 4 ? 4 : Bits < 4 ? 2 : 1;
    static constexpr bool kWide = false;
    __m256i few;

    TARGET inline Sums() : few(_mm256_setzero_si256()) {}
    TARGET inline void add(__m256i codes, __m256i inputs) {
        few = _mm256_add_epi16(few, _mm256_maddubs_epi16(codes, inputs));
    }
    TARGET inline __m256i whole() const { return _mm256_madd_epi16(few, _mm256_set1_epi16(1)); }  // 32 bits each
};

}  // namespace
}  // namespace waterfill

#include "product_x86.h"

namespace waterfill {
namespace {

TARGET inline __m256i load_whole(const int16_t* from) { return load(from); }
TARGET inline __m256i load_whole(const int8_t* from) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// Products of 8-bit codes do not fit into 16 bits: codes and inputs are 16-bit integers, products 32-bit ones. Adds
// `unit` times the sums; given: of the first item, [B, padded].
template <int R, int B, class Number>
TARGET void add_whole(const CodeMatrix& matrix, const Number* given, int64_t padded, int64_t row, int64_t first,
                      int64_t last, int64_t unit, int64_t* totals) {
    constexpr int64_t kHeld = 32;  // blocks: 64 pairs of at most 255 * 32,767 * 2 fit into 32 bits
    const int64_t row_bytes = matrix.row_bytes();
    for (int64_t begin = first; begin < last; begin += kHeld) {
        const int64_t end = begin + kHeld < last ? begin + kHeld : last;
        __m256i sums[R][B];
        for (int r = 0; r < R; ++r)
            for (int b = 0; b < B; ++b) sums[r][b] = _mm256_setzero_si256();
        for (int64_t at = 32 * begin; at < 32 * end; at += 16) {
            if (B == 1 && at % 32 == 0) fetch<8, R>(matrix.codes + row * row_bytes, row_bytes, at / 32);
            for (int r = 0; r < R; ++r) {
                const uint8_t* codes = matrix.codes + (row + r) * row_bytes + at;
                const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
                for (int b = 0; b < B; ++b) {
                    const __m256i inputs = load_whole(given + b * padded + at);
                    sums[r][b] = _mm256_add_epi32(sums[r][b], _mm256_madd_epi16(wide, inputs));
                }
            }
        }
        for (int r = 0; r < R; ++r)
            for (int b = 0; b < B; ++b) totals[r * B + b] += unit * sum_of(sums[r][b]);
    }
}

template <int R, int B>
TARGET void dot_whole(const CodeMatrix& matrix, const Inputs& inputs, int64_t row, int64_t item, int64_t first,
                      int64_t last, int64_t* totals) {
    const int64_t begin = item * inputs.padded;
    const int8_t* third = inputs.bytes[2];
    add_whole<R, B>(matrix, inputs.upper + begin, inputs.padded, row, first, last, third ? 256 : 1, totals);
    if (third) add_whole<R, B>(matrix, third + begin, inputs.padded, row, first, last, 1, totals);
}

void tiles(int bits, int bytes, Tile (&found)[4]) {
    if (bits == 8) {  // of which two products do not fit into 16 bits
        found[0] = {2, 2, dot_whole<2, 2>};
        found[1] = {4, 1, dot_whole<4, 1>};
        found[2] = {1, 2, dot_whole<1, 2>};
        found[3] = {1, 1, dot_whole<1, 1>};
    } else {
        tiles_of(bits, bytes, found);
    }
}

FourRows rows_of(int bits, int bytes) {
    return bits == 8 ? nullptr : four_rows_of(bits, bytes);
}

}  // namespace

const ProductSet kProductAvx2 = {"avx2", [] { return __builtin_cpu_supports("avx2") != 0; }, rows_of, nullptr, tiles};

}  // namespace waterfill
#else
namespace waterfill {
const ProductSet kProductAvx2 = {"avx2", [] { return false; }, nullptr, nullptr, nullptr};
}
#endif
