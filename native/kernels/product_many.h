// Products of a matrix of small codes with many inputs: rows are unpacked into bytes once for all of them. For AVX-512
// VNNI; included by product_vnni.cpp, which defines TARGET and what one instruction does.
#pragma once

#include <immintrin.h>

#include <vector>

#include "product_x86.h"

namespace waterfill {
namespace {

constexpr int kHeight = 8;    // rows that are unpacked at a time: of them and two inputs, registers hold the sums
constexpr int kMiddle = 128;  // what stands for a code of 0 in rows that are unpacked
static_assert(kBlock % kLine == 0, "inputs are padded to whole registers");

// A row as bytes, corrected wherever the code is a byte still; whether every code is.
template <int Bits>
TARGET bool spread(const CodeMatrix& matrix, int64_t row, uint8_t* out) {
    const uint8_t* block = matrix.codes + row * matrix.row_bytes();
    const __m256i up = _mm256_set1_epi8(static_cast<char>(kMiddle - (1 << (Bits - 1))));
    for (int64_t begin = 0; begin < matrix.cols; begin += block_cols(Bits), block += block_bytes(Bits)) {
        __m256i codes[4];
        unpack<Bits>(block, codes);
        for (int k = 0; k < block_cols(Bits) / 32; ++k)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + begin + 32 * k), _mm256_add_epi8(codes[k], up));
    }
    if (matrix.starts == nullptr) return true;
    bool whole = true;
    for (int32_t k = matrix.starts[row]; k < matrix.starts[row + 1]; ++k) {
        const int64_t code = out[matrix.where[k]] + static_cast<int64_t>(matrix.values[k]);
        const bool fits = code >= 0 && code <= 255;
        if (fits) out[matrix.where[k]] = static_cast<uint8_t>(code);
        whole = whole && fits;
    }
    return whole;
}

// What the corrections of a row add that `spread` could not put in.
template <int Bits>
int64_t left_over(const CodeMatrix& matrix, int64_t row, const Inputs& inputs, int64_t item) {
    const uint8_t* codes = matrix.codes + row * matrix.row_bytes();
    int64_t sum = 0;
    for (int32_t k = matrix.starts[row]; k < matrix.starts[row + 1]; ++k) {
        const int32_t c = matrix.where[k];
        const int64_t plain = code_at(Bits, codes + c / block_cols(Bits) * block_bytes(Bits), c % block_cols(Bits));
        const int64_t code = plain + kMiddle - (1 << (Bits - 1)) + matrix.values[k];
        if (code < 0 || code > 255) sum += matrix.values[k] * inputs.whole(item, c);
    }
    return sum;
}

// Of four registers: in each lane of 128 bits the sums of their lanes there, one after the other.
TARGET inline __m512i by_lanes(const __m512i* of) {
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(of[0], of[1]), _mm512_unpackhi_epi32(of[0], of[1]));
    const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(of[2], of[3]), _mm512_unpackhi_epi32(of[2], of[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

// Neighboring lanes of two registers added up: those of the first, then those of the second.
TARGET inline __m512i lanes_added(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

// Sums of kHeight rows times one or two rows of bytes of inputs, from a column up to before another.
template <int Streams>
TARGET inline void square(const uint8_t* rows, int64_t each, const int8_t* const* streams, int64_t first, int64_t last,
                          __m256i* sums) {
    __m512i all[Streams * kHeight];
#pragma GCC unroll 16
    for (int i = 0; i < Streams * kHeight; ++i) all[i] = _mm512_setzero_si512();
    for (int64_t c = first; c < last; c += kLine) {
        __m512i codes[kHeight];
#pragma GCC unroll 8
        for (int r = 0; r < kHeight; ++r) codes[r] = held(_mm512_loadu_si512(rows + r * each + c));
#pragma GCC unroll 2
        for (int s = 0; s < Streams; ++s) {
            const __m512i inputs = _mm512_loadu_si512(streams[s] + c);
#pragma GCC unroll 8
            for (int r = 0; r < kHeight; ++r) add_fours(all[s * kHeight + r], codes[r], inputs);
        }
    }
    __m512i halves[2] = {};
#pragma GCC unroll 2
    for (int s = 0; s < Streams; ++s)
        halves[s] = lanes_added(by_lanes(all + s * kHeight), by_lanes(all + s * kHeight + 4));
    const __m512i whole = lanes_added(halves[0], halves[Streams - 1]);
    sums[0] = _mm512_castsi512_si256(whole);
    if (Streams == 2) sums[Streams - 1] = _mm512_extracti64x4_epi64(whole, 1);
}

// kHeight rows of a matrix that are unpacked, and what their sums are multiplied by.
struct Spread {
    const CodeMatrix& matrix;
    const Inputs& inputs;
    int64_t row;             // the first
    int count;               // of the rows; the last stands for those that there are not
    bool whole;              // whether every code is in its place
    const uint8_t* codes;    // [kHeight, padded]
    const double* scales;    // [groups, kHeight]
    const double* zeros;     // [groups, kHeight]
};

// What is left to be added to the sums of the rows, times an input.
template <int Bits>
TARGET inline __m512d left_over_of_all(const Spread& spread, int64_t item) {
    alignas(64) double more[kHeight] = {};
    for (int r = 0; r < spread.count; ++r)
        more[r] = static_cast<double>(left_over<Bits>(spread.matrix, spread.row + r, spread.inputs, item));
    return _mm512_load_pd(more);
}

// Outputs of the rows for so many inputs, which have one or two rows of bytes together or are one of three. Integers
// below 2^53 are exact in float64, so that outputs are those of `tile_product`.
template <int Bits, int Bytes, int Items>
TARGET inline void outputs(const Spread& spread, int64_t item, float* y) {
    constexpr int kStreams = Items * Bytes, kPair = kStreams == 1 ? 1 : 2;
    static_assert(kStreams <= 3, "more sums than registers");
    const CodeMatrix& matrix = spread.matrix;
    const Inputs& inputs = spread.inputs;
    const int8_t* streams[kStreams];
    for (int i = 0; i < kStreams; ++i) streams[i] = inputs.bytes[i % Bytes] + (item + i / Bytes) * inputs.padded;
    __m512d out[Items];
    for (int b = 0; b < Items; ++b) out[b] = _mm512_setzero_pd();
    for (int64_t g = 0; g < matrix.groups; ++g) {
        const int64_t first = g * matrix.group, last = g + 1 < matrix.groups ? first + matrix.group : inputs.padded;
        const __m512d scales = _mm512_loadu_pd(spread.scales + g * kHeight);
        const __m512d zeros = _mm512_loadu_pd(spread.zeros + g * kHeight);
        __m256i sums[kStreams];
        square<kPair>(spread.codes, inputs.padded, streams, first, last, sums);
        if (kStreams == 3) square<1>(spread.codes, inputs.padded, streams + kPair, first, last, sums + kPair);
#pragma GCC unroll 2
        for (int b = 0; b < Items; ++b) {
            __m512d totals = _mm512_cvtepi32_pd(sums[b * Bytes]);
#pragma GCC unroll 2
            for (int i = 1; i < Bytes; ++i)
                totals = _mm512_add_pd(_mm512_mul_pd(totals, _mm512_set1_pd(256)),
                                       _mm512_cvtepi32_pd(sums[b * Bytes + i]));
            const double sum = static_cast<double>(inputs.sums[(item + b) * matrix.groups + g]);
            totals = _mm512_sub_pd(totals, _mm512_mul_pd(zeros, _mm512_set1_pd(sum)));
            if (!spread.whole) totals = _mm512_add_pd(totals, left_over_of_all<Bits>(spread, item + b));
            out[b] = _mm512_add_pd(out[b], _mm512_mul_pd(scales, totals));
        }
    }
    const __mmask8 there = static_cast<__mmask8>((1 << spread.count) - 1);
    for (int b = 0; b < Items; ++b) {
        const __m512d scaled = _mm512_mul_pd(out[b], _mm512_set1_pd(inputs.scales[item + b]));
        _mm256_mask_storeu_ps(y + (item + b) * matrix.rows + spread.row, there, _mm512_cvtpd_ps(scaled));
    }
}

template <int Bits, int Bytes>
TARGET int64_t many_inputs(const CodeMatrix& matrix, const Inputs& inputs, int64_t begin, int64_t end, float* y) {
    static thread_local std::vector<uint8_t> memory;
    static thread_local std::vector<double> factors;
    memory.resize(kHeight * inputs.padded + kLine);
    factors.resize(2 * matrix.groups * kHeight);
    uint8_t* rows = memory.data() + (kLine - reinterpret_cast<uintptr_t>(memory.data()) % kLine) % kLine;
    double *scales = factors.data(), *zeros = scales + matrix.groups * kHeight;
    for (int64_t row = begin; row < end; row += kHeight) {
        const int count = end - row < kHeight ? static_cast<int>(end - row) : kHeight;
        bool whole = true;
        for (int r = 0; r < kHeight; ++r) {
            const int64_t own = row + (r < count ? r : count - 1);
            whole = spread<Bits>(matrix, own, rows + r * inputs.padded) && whole;
            for (int64_t g = 0; g < matrix.groups; ++g) {
                const int64_t place = own * matrix.groups + g;
                scales[g * kHeight + r] = matrix.scales[place];
                zeros[g * kHeight + r] = matrix.zeros ? matrix.zeros[place] + kMiddle - (1 << (Bits - 1)) : kMiddle;
            }
        }
        const Spread own{matrix, inputs, row, count, whole, rows, scales, zeros};
        int64_t item = 0;
        if (Bytes == 1)
            for (; item + 2 <= inputs.batch; item += 2) outputs<Bits, Bytes, Bytes == 1 ? 2 : 1>(own, item, y);
        for (; item < inputs.batch; ++item) outputs<Bits, Bytes, 1>(own, item, y);
    }
    return end;
}

}  // namespace
}  // namespace waterfill
