// Products with small codes in registers of 256 bits; included once for every instruction set, which defines TARGET and
// `Sums`: how bytes are multiplied and added up, and for widths that it calls wide four rows of them at a time.
//
// Codes are unsigned and inputs signed bytes, as the processors' instructions want it; every byte of an input is a
// product of its own. 8-bit codes without VNNI are multiplied as 16-bit integers.
#pragma once

#include <immintrin.h>

#include "codes.h"

namespace waterfill {
namespace {

TARGET inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

TARGET inline int64_t sum_of(__m256i lanes) {  // of 8 integers of 32 bits
    const __m256i wide = _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(lanes)),
                                          _mm256_cvtepi32_epi64(_mm256_extracti128_si256(lanes, 1)));
    const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    return _mm_cvtsi128_si64(half) + _mm_extract_epi64(half, 1);
}

// Of four registers at once; their sums fit into 32 bits.
TARGET inline __m128i sums_of(__m256i a, __m256i b, __m256i c, __m256i d) {
    const __m256i pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    return _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
}

// Sixteen-bit lanes moved to the right, or to the left where `count` is negative.
template <int Count>
TARGET inline __m256i moved(__m256i lanes) {
    if (Count < 0) return _mm256_slli_epi16(lanes, Count < 0 ? -Count : 0);
    return _mm256_srli_epi16(lanes, Count < 0 ? 0 : Count);
}

// The codes 32 * K to 32 * K + 31 of a block as unsigned bytes.
template <int Bits, int K>
TARGET inline __m256i unpacked(const uint8_t* block) {
    constexpr int kLower = lower_bits(Bits), kUpper = upper_bits(Bits);
    constexpr Place kPlace = lower_place(Bits, 32 * K);
    const __m256i mask = _mm256_set1_epi8(static_cast<char>((1 << kLower) - 1));
    __m256i codes = load(block + kPlace.byte);
    if (kLower < 8) codes = _mm256_and_si256(moved<kPlace.shift>(codes), mask);
    if (kUpper == 0) return codes;
    // What is moved across bytes lies outside of the mask. The upper lane is one field further.
    const __m128i plane = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + lower_bytes(Bits)));
    const __m256i fields = _mm256_inserti128_si256(_mm256_castsi128_si256(plane), _mm_srli_epi16(plane, kUpper), 1);
    const __m256i top = _mm256_set1_epi8(static_cast<char>(((1 << kUpper) - 1) << kLower));
    return _mm256_or_si256(codes, _mm256_and_si256(moved<upper_place(Bits, 32 * K).shift - kLower>(fields), top));
}

// The codes of a block, 32 in each register.
template <int Bits>
TARGET inline void unpack(const uint8_t* block, __m256i (&codes)[4]) {
    codes[0] = unpacked<Bits, 0>(block);
    if (block_cols(Bits) >= 64) codes[1] = unpacked<Bits, block_cols(Bits) >= 64 ? 1 : 0>(block);
    if (block_cols(Bits) == 128) codes[2] = unpacked<Bits, block_cols(Bits) == 128 ? 2 : 0>(block);
    if (block_cols(Bits) == 128) codes[3] = unpacked<Bits, block_cols(Bits) == 128 ? 3 : 0>(block);
}

// Adds up products of R rows and B items: the codes of a row are unpacked once for all items, inputs are read once for
// all rows.
template <int Bits, int Bytes, int R, int B>
TARGET inline void add_up(const CodeMatrix& matrix, const Inputs& inputs, int64_t row, int64_t item, int64_t first,
                          int64_t last, __m256i (&whole)[R][B][Bytes]) {
    constexpr int kCols = block_cols(Bits), kBytes = block_bytes(Bits), kRegisters = kCols / 32;
    const int64_t row_bytes = matrix.row_bytes();
    const uint8_t* codes = matrix.codes + row * row_bytes;
    for (int i = 0; i < R * B * Bytes; ++i) (&whole[0][0][0])[i] = _mm256_setzero_si256();
    for (int64_t begin = first; begin < last; begin += Sums<Bits>::kHeld) {
        const int64_t end = last - begin < Sums<Bits>::kHeld ? last : begin + Sums<Bits>::kHeld;
        Sums<Bits> sums[R][B][Bytes];
        for (int64_t block = begin; block < end; ++block) {
            if (B == 1) fetch<Bits, R>(codes, row_bytes, block);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const uint8_t* from = codes + r * row_bytes + block * kBytes;
                __m256i own[4];
                unpack<Bits>(from, own);
#pragma GCC unroll 4
                for (int b = 0; b < B; ++b)
#pragma GCC unroll 4
                    for (int k = 0; k < kRegisters; ++k) {
                        const int64_t at = (item + b) * inputs.padded + block * kCols + 32 * k;
#pragma GCC unroll 3
                        for (int i = 0; i < Bytes; ++i) sums[r][b][i].add(own[k], load(inputs.bytes[i] + at));
                    }
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int b = 0; b < B; ++b)
#pragma GCC unroll 3
                for (int i = 0; i < Bytes; ++i)
                    whole[r][b][i] = _mm256_add_epi32(whole[r][b][i], sums[r][b][i].whole());
    }
}

template <int Bits, int Bytes, int R, int B>
TARGET void dot(const CodeMatrix& matrix, const Inputs& inputs, int64_t row, int64_t item, int64_t first, int64_t last,
                int64_t* totals) {
    __m256i whole[R][B][Bytes];
    add_up<Bits, Bytes, R, B>(matrix, inputs, row, item, first, last, whole);
    for (int r = 0; r < R; ++r)
        for (int b = 0; b < B; ++b) {
            int64_t total = 0;
            for (int i = 0; i < Bytes; ++i) total = 256 * total + sum_of(whole[r][b][i]);
            totals[r * B + b] += total;
        }
}

// Four rows at a time of a matrix of one group, times one input: what comes after the sums takes as long as these where
// rows are short. Integers below 2^53 are exact in float64, so that outputs are those of `tile_product`.
template <int Bits, int Bytes>
TARGET int64_t four_rows(const CodeMatrix& matrix, const Inputs& inputs, int64_t begin, int64_t end, float* y) {
    const __m256d shift = _mm256_set1_pd(static_cast<double>(inputs.sums[0]) * (1 << (Bits - 1)));
    const __m256d scale = _mm256_set1_pd(inputs.scales[0]), none = _mm256_setzero_pd();
    int64_t row = begin;
    for (; row + 4 <= end; row += 4) {
        __m256i whole[4][1][Bytes];
        if constexpr (Sums<Bits>::kWide)
            Sums<Bits>::four_rows(matrix, inputs, row, whole);
        else
            add_up<Bits, Bytes, 4, 1>(matrix, inputs, row, 0, 0, matrix.blocks(), whole);
        const auto all = [&](int i) TARGET {
            return sums_of(whole[0][0][i], whole[1][0][i], whole[2][0][i], whole[3][0][i]);
        };
        __m256d totals = _mm256_cvtepi32_pd(all(0));
        for (int i = 1; i < Bytes; ++i)
            totals = _mm256_add_pd(_mm256_mul_pd(totals, _mm256_set1_pd(256)), _mm256_cvtepi32_pd(all(i)));
        totals = _mm256_sub_pd(totals, shift);
        if (matrix.starts && matrix.starts[row] < matrix.starts[row + 4]) {
            alignas(32) double more[4];
            for (int r = 0; r < 4; ++r) more[r] = static_cast<double>(corrected(matrix, row + r, inputs, 0));
            totals = _mm256_add_pd(totals, _mm256_load_pd(more));
        }
        const __m256d scaled = _mm256_mul_pd(_mm256_cvtps_pd(_mm_loadu_ps(matrix.scales + row)), totals);
        _mm_storeu_ps(y + row, _mm256_cvtpd_ps(_mm256_mul_pd(_mm256_add_pd(none, scaled), scale)));
    }
    return row;
}

template <int Bits, int Bytes>
void tiles_of(Tile (&found)[4]) {
    found[0] = {2, 2, dot<Bits, Bytes, 2, 2>};
    found[1] = {4, 1, dot<Bits, Bytes, 4, 1>};
    found[2] = {1, 2, dot<Bits, Bytes, 1, 2>};
    found[3] = {1, 1, dot<Bits, Bytes, 1, 1>};
}

template <int Bytes>
FourRows four_rows_of(int bits) {
    switch (bits) {
        case 2: return four_rows<2, Bytes>;
        case 3: return four_rows<3, Bytes>;
        case 4: return four_rows<4, Bytes>;
        case 5: return four_rows<5, Bytes>;
        case 6: return four_rows<6, Bytes>;
        default: return four_rows<8, Bytes>;
    }
}

template <int Bytes>
void tiles_of(int bits, Tile (&found)[4]) {
    if (bits == 2) tiles_of<2, Bytes>(found);
    if (bits == 3) tiles_of<3, Bytes>(found);
    if (bits == 4) tiles_of<4, Bytes>(found);
    if (bits == 5) tiles_of<5, Bytes>(found);
    if (bits == 6) tiles_of<6, Bytes>(found);
    if (bits == 8) tiles_of<8, Bytes>(found);
}

FourRows four_rows_of(int bits, int bytes) {
    return bytes == 3 ? four_rows_of<3>(bits) : bytes == 2 ? four_rows_of<2>(bits) : four_rows_of<1>(bits);
}

void tiles_of(int bits, int bytes, Tile (&found)[4]) {
    bytes == 3 ? tiles_of<3>(bits, found) : bytes == 2 ? tiles_of<2>(bits, found) : tiles_of<1>(bits, found);
}

}  // namespace
}  // namespace waterfill
