// The coder's loops for AVX-512: 16 lanes to a register, up to 64 lanes at once.
#include "coder.h"

#ifdef WATERFILL_X86
#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,popcnt,bmi2")))

namespace waterfill {
namespace {

constexpr int kWidth = 16;  // lanes in a register

// Table numbers of one register's symbols.
template <bool Select, bool Machine>
AVX512 inline __m512i tables_of(const uint16_t* select, __m512i machine) {
    __m512i table = _mm512_setzero_si512();
    if (Select) table = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(select)));
    if (Machine) table = _mm512_add_epi32(table, _mm512_srli_epi32(machine, kOffsetShift));
    return table;
}

template <int Registers, bool Select, bool Machine>
AVX512 void decode_groups(DecodeRun& run, const uint16_t* select, int8_t* symbols, size_t groups) {
    const __m512i low = _mm512_set1_epi32(kTotal - 1), one = _mm512_set1_epi32(1);
    const __m512i floor = _mm512_set1_epi32(kStateFloor), row = _mm512_set1_epi32(kRowMask);
    __m512i state[Registers], machine[Registers], entry[Registers];
    for (int r = 0; r < Registers; ++r) {
        state[r] = _mm512_loadu_si512(run.state + r * kWidth);
        machine[r] = _mm512_loadu_si512(run.machine + r * kWidth);
    }
    const uint8_t* word = run.word;
    for (size_t group = 0; group < groups; ++group) {
#pragma GCC unroll 4
        for (int r = 0; r < Registers; ++r) {
            const __m512i table = tables_of<Select, Machine>(select + r * kWidth, machine[r]);
            __m512i slot = _mm512_and_si512(state[r], low);
            if (Select || Machine) slot = _mm512_or_si512(slot, _mm512_slli_epi32(table, kTableBits));
            entry[r] = _mm512_i32gather_epi32(slot, run.slots, 4);
        }
#pragma GCC unroll 4
        for (int r = 0; r < Registers; ++r) {
            const __m512i freq = _mm512_add_epi32(_mm512_and_si512(_mm512_srli_epi32(entry[r], 8), low), one);
            const __m512i product = _mm512_mullo_epi32(freq, _mm512_srli_epi32(state[r], kTableBits));
            const __m512i taken = _mm512_add_epi32(product, _mm512_srli_epi32(entry[r], 20));
            const __mmask16 refill = _mm512_cmplt_epu32_mask(taken, floor);
            const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(word));
            const __m512i spread = _mm512_maskz_expand_epi32(refill, _mm512_cvtepu16_epi32(words));
            state[r] = _mm512_mask_or_epi32(taken, refill, _mm512_slli_epi32(taken, 16), spread);
            word += 2 * _mm_popcnt_u32(refill);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(symbols + r * kWidth), _mm512_cvtepi32_epi8(entry[r]));
            if (Machine) {
                const __m512i at = _mm512_and_si512(machine[r], row);
                const __m512i path = _mm512_and_si512(entry[r], one);
                machine[r] = _mm512_i32gather_epi32(_mm512_or_si512(at, path), run.next, 4);
            }
        }
        symbols += Registers * kWidth;
        if (Select) select += Registers * kWidth;
    }
    for (int r = 0; r < Registers; ++r) {
        _mm512_storeu_si512(run.state + r * kWidth, state[r]);
        _mm512_storeu_si512(run.machine + r * kWidth, machine[r]);
    }
    run.word = word;
}

// floor(state / freq) for state < freq << 20. Rounding towards zero all the way, the float quotient is exact or one too
// small (it is below 2^20 and loses less than 2^-2), so one comparison repairs it.
AVX512 inline __m512i quotient(__m512i state, __m512i freq) {
    constexpr int down = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;
    const __m512 ratio = _mm512_div_round_ps(_mm512_cvt_roundepu32_ps(state, down), _mm512_cvtepi32_ps(freq), down);
    const __m512i guess = _mm512_cvttps_epu32(ratio);
    const __m512i rest = _mm512_sub_epi32(state, _mm512_mullo_epi32(guess, freq));
    return _mm512_mask_add_epi32(guess, _mm512_cmpge_epu32_mask(rest, freq), guess, _mm512_set1_epi32(1));
}

template <int Registers, bool Select>
AVX512 bool encode_groups(EncodeRun& run, const int8_t* symbols, const uint16_t* select, size_t groups) {
    const __m512i low = _mm512_set1_epi32(0xFFFF), total = _mm512_set1_epi32(kTotal);
    __m512i state[Registers];
    for (int r = 0; r < Registers; ++r) state[r] = _mm512_loadu_si512(run.state + r * kWidth);
    uint8_t* word = run.word;
    __mmask16 absent = 0;
    for (size_t group = groups; group-- > 0;) {
#pragma GCC unroll 4
        for (int r = Registers - 1; r >= 0; --r) {
            const size_t at = (group * Registers + r) * kWidth;
            const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(symbols + at));
            __m512i index = _mm512_cvtepu8_epi32(bytes);
            if (Select) {
                const __m512i table = tables_of<true, false>(select + at, index);
                index = _mm512_or_si512(index, _mm512_slli_epi32(table, 8));
            }
            const __m512i entry = _mm512_i32gather_epi32(index, run.entries, 4);
            const __m512i freq = _mm512_and_si512(entry, low);
            absent |= _mm512_testn_epi32_mask(freq, freq);

            const __mmask16 full = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(state[r], kRenormShift), freq);
            const unsigned count = _mm_popcnt_u32(full);
            const __m256i words = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, state[r]));
            word -= 2 * count;
            _mm256_mask_storeu_epi16(word, __mmask16(_bzhi_u32(0xFFFF, count)), words);
            state[r] = _mm512_mask_srli_epi32(state[r], full, state[r], 16);

            // (q << 12) + (x - q * freq) + start, with one product
            const __m512i gap = _mm512_mullo_epi32(quotient(state[r], freq), _mm512_sub_epi32(total, freq));
            state[r] = _mm512_add_epi32(_mm512_add_epi32(state[r], _mm512_srli_epi32(entry, 16)), gap);
        }
    }
    for (int r = 0; r < Registers; ++r) _mm512_storeu_si512(run.state + r * kWidth, state[r]);
    run.word = word;
    return absent == 0;
}

template <int Registers>
void decode_lanes(DecodeRun& run, const uint16_t* select, int8_t* symbols, size_t groups) {
    auto* loop = select ? decode_groups<Registers, true, false> : decode_groups<Registers, false, false>;
    if (run.next) loop = select ? decode_groups<Registers, true, true> : decode_groups<Registers, false, true>;
    loop(run, select, symbols, groups);
}

void decode(DecodeRun& run, const uint16_t* select, int8_t* symbols, size_t groups) {
    const auto loop = run.lanes == 64 ? decode_lanes<4> : run.lanes == 32 ? decode_lanes<2> : decode_lanes<1>;
    loop(run, select, symbols, groups);
}

template <int Registers>
bool encode_lanes(EncodeRun& run, const int8_t* symbols, const uint16_t* select, size_t groups) {
    return (select ? encode_groups<Registers, true> : encode_groups<Registers, false>)(run, symbols, select, groups);
}

bool encode(EncodeRun& run, const int8_t* symbols, const uint16_t* select, size_t groups) {
    const auto loop = run.lanes == 64 ? encode_lanes<4> : run.lanes == 32 ? encode_lanes<2> : encode_lanes<1>;
    return loop(run, symbols, select, groups);
}

bool available() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("bmi2");
}

}  // namespace

const InstructionSet kAvx512{"avx512", 16, available, decode, encode};

}  // namespace waterfill

#else

const waterfill::InstructionSet waterfill::kAvx512{"avx512", 16, [] { return false; }, nullptr, nullptr};

#endif
