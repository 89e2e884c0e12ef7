// Products with small codes for AVX-512 VNNI: four products and their sum in one instruction.
#include <vector>

#include "codes.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define TARGET __attribute__((target("avx2,avx512f,avx512bw,avx512vl,avx512vnni")))

#include <immintrin.h>

namespace waterfill {
namespace {

// sum += codes * inputs, by fours. As an instruction in words: GCC 12 copies every sum twice for the intrinsic.
TARGET inline void add_fours(__m512i& sum, __m512i codes, __m512i inputs) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(inputs));
}

TARGET inline __m256i halves_added(__m512i lanes) {
    return _mm256_add_epi32(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64(lanes, 1));
}

// The lower fields of 64 codes from line `Line` of a block on: two lines of bytes, or one and then its next fields.
template <int Bits, int Line>
TARGET inline __m512i lower_of_64(const uint8_t* block) {
    constexpr Place kFirst = lower_place(Bits, 32 * Line), kSecond = lower_place(Bits, 32 * Line + 32);
    static_assert(kFirst.byte == kSecond.byte, "both lie in the same bytes");
    const __m512i bytes = _mm512_broadcast_i64x4(_mm256_loadu_si256(
        reinterpret_cast<const __m256i*>(block + kFirst.byte)));
    const __m512i counts = _mm512_inserti64x4(_mm512_set1_epi16(kFirst.shift), _mm256_set1_epi16(kSecond.shift), 1);
    return _mm512_srlv_epi16(bytes, counts);
}

// The upper fields of the same codes, each where it lies in its code; what else is in their bytes is to be masked.
template <int Bits, int Line>
TARGET inline __m512i upper_of_64(const uint8_t* block) {
    constexpr int kUpper = upper_bits(Bits), kFirst = upper_place(Bits, 32 * Line).shift, kTo = lower_bits(Bits);
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_loadu_si128(
        reinterpret_cast<const __m128i*>(block + lower_bytes(Bits))));
    const auto turn = [](int lane) { return (kFirst + lane * kUpper - kTo + 32) % 32; };
    const __m512i turns = _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm256_inserti128_si256(_mm256_set1_epi32(turn(0)), _mm_set1_epi32(turn(1)), 1)),
        _mm256_inserti128_si256(_mm256_set1_epi32(turn(2)), _mm_set1_epi32(turn(3)), 1), 1);
    return _mm512_rorv_epi32(bytes, turns);
}

// 64 codes of a block, from line `Line` of 32 on, as unsigned bytes.
template <int Bits, int Line>
TARGET inline __m512i codes_of_64(const uint8_t* block) {
    const __m512i lower = lower_of_64<Bits, Line>(block);
    const __m512i low = _mm512_set1_epi8((1 << lower_bits(Bits)) - 1);
    if constexpr (upper_bits(Bits) == 0) return _mm512_and_si512(lower, low);
    const __m512i all = _mm512_set1_epi8((1 << Bits) - 1);
    return _mm512_and_si512(_mm512_ternarylogic_epi64(low, lower, upper_of_64<Bits, Line>(block), 0xca), all);
}

template <int Bits>
struct Sums {
    static constexpr int64_t kHeld = int64_t{1} << 40;  // blocks: kMostCols columns of 255 * 128 fit into 32 bits
    static constexpr bool kWide = true;
    __m256i all;

    TARGET inline Sums() : all(_mm256_setzero_si256()) {}
    TARGET inline void add(__m256i codes, __m256i inputs) { all = _mm256_dpbusd_epi32(all, codes, inputs); }
    TARGET inline __m256i whole() const { return all; }

    template <int Bytes>
    TARGET static inline void four_rows(const CodeMatrix& matrix, const Inputs& inputs, int64_t row,
                                        __m256i (&whole)[4][1][Bytes]) {
        const int64_t row_bytes = matrix.row_bytes();
        const uint8_t* codes = matrix.codes + row * row_bytes;
        __m512i sums[4][Bytes];
#pragma GCC unroll 8
        for (int i = 0; i < 4 * Bytes; ++i) (&sums[0][0])[i] = _mm512_setzero_si512();
        constexpr int kStep = Bits == 8 ? 2 : 1;  // blocks: a register holds two of 8-bit codes
        for (int64_t block = 0; block < matrix.blocks(); block += kStep) {
            const uint8_t* from = codes + block * block_bytes(Bits);
            const int64_t at = block * block_cols(Bits);
            fetch<Bits, 4>(codes, row_bytes, block);
            if (kStep == 2) fetch<Bits, 4>(codes, row_bytes, block + 1);
            const __mmask64 there = Bits == 8 && block + 1 == matrix.blocks() ? 0xffffffff : ~__mmask64{0};
            add_half<0>(from, there, row_bytes, inputs, at, sums);
            if constexpr (block_cols(Bits) == 128) add_half<2>(from, there, row_bytes, inputs, at + 64, sums);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 4 * Bytes; ++i) (&whole[0][0][0])[i] = halves_added((&sums[0][0])[i]);
    }

private:
    template <int Line, int Bytes>
    TARGET static inline void add_half(const uint8_t* block, __mmask64 there, int64_t row_bytes, const Inputs& inputs,
                                       int64_t at, __m512i (&sums)[4][Bytes]) {
        __m512i given[Bytes];
#pragma GCC unroll 3
        for (int i = 0; i < Bytes; ++i) given[i] = _mm512_loadu_si512(inputs.bytes[i] + at);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
            const __m512i own = Bits == 8 ? _mm512_maskz_loadu_epi8(there, block + r * row_bytes)
                                          : codes_of_64<Bits == 8 ? 4 : Bits, Line>(block + r * row_bytes);
#pragma GCC unroll 3
            for (int i = 0; i < Bytes; ++i) add_fours(sums[r][i], own, given[i]);
        }
    }
};

}  // namespace
}  // namespace waterfill

#include "product_x86.h"

namespace waterfill {
namespace {

constexpr int kHeight = 4;    // rows, and with as many rows of bytes of inputs as here, 32 registers hold the sums
constexpr int streams_of(int bytes) { return bytes == 3 ? 6 : 4; }
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

// Sums of four rows times rows of bytes of inputs, from a column up to before another; sums[stream] has the rows.
template <int Streams>
TARGET inline void square(const uint8_t* rows, int64_t each, const int8_t* const (&streams)[Streams], int64_t first,
                          int64_t last, __m128i (&sums)[Streams]) {
    __m512i all[Streams][kHeight];
#pragma GCC unroll 24
    for (int i = 0; i < Streams * kHeight; ++i) (&all[0][0])[i] = _mm512_setzero_si512();
    for (int64_t c = first; c < last; c += kLine) {
        __m512i codes[kHeight];
#pragma GCC unroll 4
        for (int r = 0; r < kHeight; ++r) codes[r] = _mm512_loadu_si512(rows + r * each + c);
#pragma GCC unroll 6
        for (int s = 0; s < Streams; ++s) {
            const __m512i inputs = _mm512_loadu_si512(streams[s] + c);
#pragma GCC unroll 4
            for (int r = 0; r < kHeight; ++r) add_fours(all[s][r], codes[r], inputs);
        }
    }
    for (int s = 0; s < Streams; ++s) {
        __m256i halves[kHeight];
#pragma GCC unroll 4
        for (int r = 0; r < kHeight; ++r) halves[r] = halves_added(all[s][r]);
        sums[s] = sums_of(halves[0], halves[1], halves[2], halves[3]);
    }
}

// Rows of a matrix that are unpacked, and what their sums are multiplied by.
struct Spread {
    const CodeMatrix& matrix;
    const Inputs& inputs;
    const uint8_t* codes;  // [kHeight, padded]
    int64_t row;           // the first
    bool whole;            // whether every code is in its place
};

// Outputs of four rows for as many inputs as there are rows of bytes for, from `item` on; a last one stands for those
// that there are not. Integers below 2^53 are exact in float64, so that outputs are those of `tile_product`.
template <int Bits, int Bytes>
TARGET inline void outputs(const Spread& spread, int64_t item, __m256d (&out)[streams_of(Bytes) / Bytes]) {
    const CodeMatrix& matrix = spread.matrix;
    const Inputs& inputs = spread.inputs;
    constexpr int kStreams = streams_of(Bytes), kItems = kStreams / Bytes;
    int64_t items[kItems];
    const int8_t* streams[kStreams];
    for (int b = 0; b < kItems; ++b) {
        items[b] = item + b < inputs.batch ? item + b : inputs.batch - 1;
        for (int i = 0; i < Bytes; ++i) streams[b * Bytes + i] = inputs.bytes[i] + items[b] * inputs.padded;
        out[b] = _mm256_setzero_pd();
    }
    for (int64_t g = 0; g < matrix.groups; ++g) {
        const int64_t last = g + 1 < matrix.groups ? (g + 1) * matrix.group : inputs.padded;
        __m128i sums[kStreams];
        square(spread.codes, inputs.padded, streams, g * matrix.group, last, sums);
        alignas(32) double scales[kHeight], zeros[kHeight], more[kHeight] = {};
        for (int r = 0; r < kHeight; ++r) {
            const int64_t place = (spread.row + r) * matrix.groups + g;
            scales[r] = matrix.scales[place];
            zeros[r] = matrix.zeros ? matrix.zeros[place] + kMiddle - (1 << (Bits - 1)) : kMiddle;
        }
        for (int b = 0; b < kItems; ++b) {
            __m256d totals = _mm256_cvtepi32_pd(sums[b * Bytes]);
            for (int i = 1; i < Bytes; ++i)
                totals = _mm256_add_pd(_mm256_mul_pd(totals, _mm256_set1_pd(256)),
                                       _mm256_cvtepi32_pd(sums[b * Bytes + i]));
            const double sum = static_cast<double>(inputs.sums[items[b] * matrix.groups + g]);
            totals = _mm256_sub_pd(totals, _mm256_mul_pd(_mm256_load_pd(zeros), _mm256_set1_pd(sum)));
            if (!spread.whole) {
                for (int r = 0; r < kHeight; ++r)
                    more[r] = static_cast<double>(left_over<Bits>(matrix, spread.row + r, inputs, items[b]));
                totals = _mm256_add_pd(totals, _mm256_load_pd(more));
            }
            out[b] = _mm256_add_pd(out[b], _mm256_mul_pd(_mm256_load_pd(scales), totals));
        }
    }
    for (int b = 0; b < kItems; ++b) out[b] = _mm256_mul_pd(out[b], _mm256_set1_pd(inputs.scales[items[b]]));
}

template <int Bits, int Bytes>
TARGET int64_t many_inputs(const CodeMatrix& matrix, const Inputs& inputs, int64_t begin, int64_t end, float* y) {
    static thread_local std::vector<uint8_t> memory;
    memory.resize(kHeight * inputs.padded + kLine);
    uint8_t* rows = memory.data() + (kLine - reinterpret_cast<uintptr_t>(memory.data()) % kLine) % kLine;
    constexpr int kItems = streams_of(Bytes) / Bytes;
    int64_t row = begin;
    for (; row + kHeight <= end; row += kHeight) {
        bool whole = true;
        for (int r = 0; r < kHeight; ++r) whole = spread<Bits>(matrix, row + r, rows + r * inputs.padded) && whole;
        const Spread own{matrix, inputs, rows, row, whole};
        for (int64_t item = 0; item < inputs.batch; item += kItems) {
            __m256d out[kItems];
            outputs<Bits, Bytes>(own, item, out);
            for (int b = 0; b < kItems && item + b < inputs.batch; ++b)
                _mm_storeu_ps(y + (item + b) * matrix.rows + row, _mm256_cvtpd_ps(out[b]));
        }
    }
    return row;
}

template <int Bytes>
FourRows many_inputs_of(int bits) {
    switch (bits) {
        case 2: return many_inputs<2, Bytes>;
        case 3: return many_inputs<3, Bytes>;
        case 4: return many_inputs<4, Bytes>;
        case 5: return many_inputs<5, Bytes>;
        case 6: return many_inputs<6, Bytes>;
        default: return many_inputs<8, Bytes>;
    }
}

FourRows many_of(int bits, int bytes) {
    return bytes == 3 ? many_inputs_of<3>(bits) : bytes == 2 ? many_inputs_of<2>(bits) : many_inputs_of<1>(bits);
}

bool available() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

}  // namespace

const ProductSet kProductVnni = {"vnni", available, four_rows_of, many_of, tiles_of};

}  // namespace waterfill
#else
namespace waterfill {
const ProductSet kProductVnni = {"vnni", [] { return false; }, nullptr, nullptr, nullptr};
}
#endif
