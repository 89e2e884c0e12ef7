// Products with small codes for AVX-512 VNNI: four products and their sum in one instruction.
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

// The same, which the compiler cannot read from memory a second time instead of keeping it.
TARGET inline __m512i held(__m512i value) {
    __asm__("" : "+v"(value));
    return value;
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

#include "product_many.h"

namespace waterfill {
namespace {

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
