// The coder's loops for AVX2: 8 lanes to a register, four registers at a time, 32 or 64 lanes.
#include "coder.h"

#ifdef WATERFILL_X86
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,popcnt")))

namespace waterfill {
namespace {

constexpr int kWidth = 8;                 // lanes in a register
constexpr int kBatch = 4;                 // registers whose symbols fill one 32-byte store
constexpr int kStep = kWidth * kBatch;    // lanes in a batch

// Permutations that AVX-512 has instructions for, by the mask of the lanes concerned.
struct Permutations {
    uint8_t expand[256][kWidth];     // lane i takes the word whose rank is that of i among the lanes of the mask
    uint8_t compress[256][kWidth];   // the lanes of the mask, in order, at the upper end
};

constexpr Permutations permutations() {
    Permutations made{};
    for (int mask = 0; mask < 256; ++mask) {
        int rank = 0;
        for (int lane = 0; lane < kWidth; ++lane) {
            made.expand[mask][lane] = uint8_t(rank);
            rank += mask >> lane & 1;
        }
        for (int lane = kWidth, to = kWidth; lane-- > 0;) {
            if (mask >> lane & 1) made.compress[mask][--to] = uint8_t(lane);
        }
    }
    return made;
}

constexpr Permutations kPermute = permutations();

AVX2 inline __m256i permutation(const uint8_t* lanes) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(lanes)));
}

AVX2 inline __m256i load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }
AVX2 inline void store(void* at, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(at), value); }
AVX2 inline unsigned lanes_where(__m256i condition) { return _mm256_movemask_ps(_mm256_castsi256_ps(condition)); }
AVX2 inline __m256i widen(const uint16_t* at) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}
AVX2 inline __m256i gather(const uint32_t* base, __m256i index) {
    return _mm256_i32gather_epi32(reinterpret_cast<const int*>(base), index, 4);
}

// The low bytes of four registers, in order.
AVX2 inline __m256i low_bytes(const __m256i entry[kBatch]) {
    const __m256i byte = _mm256_set1_epi32(255);
    const __m256i first = _mm256_packus_epi32(_mm256_and_si256(entry[0], byte), _mm256_and_si256(entry[1], byte));
    const __m256i second = _mm256_packus_epi32(_mm256_and_si256(entry[2], byte), _mm256_and_si256(entry[3], byte));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packs work in halves: undo their interleaving
    return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(first, second), order);
}

// Takes one register's symbols off its states and refills them; returns the next unread word.
AVX2 inline const uint8_t* refill(__m256i& state, __m256i entry, const uint8_t* word) {
    const __m256i low = _mm256_set1_epi32(kTotal - 1);
    const __m256i freq = _mm256_add_epi32(_mm256_and_si256(_mm256_srli_epi32(entry, 8), low), _mm256_set1_epi32(1));
    const __m256i product = _mm256_mullo_epi32(freq, _mm256_srli_epi32(state, kTableBits));
    const __m256i taken = _mm256_add_epi32(product, _mm256_srli_epi32(entry, 20));
    const __m256i lacking = _mm256_cmpeq_epi32(_mm256_srli_epi32(taken, 16), _mm256_setzero_si256());
    const unsigned mask = lanes_where(lacking);
    const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(word)));
    const __m256i spread = _mm256_permutevar8x32_epi32(words, permutation(kPermute.expand[mask]));
    state = _mm256_blendv_epi8(taken, _mm256_or_si256(_mm256_slli_epi32(taken, 16), spread), lacking);
    return word + 2 * _mm_popcnt_u32(mask);
}

template <int Registers, bool Select, bool Machine>
AVX2 void decode_groups(DecodeRun& run, const uint16_t* select, int8_t* symbols, size_t groups) {
    const __m256i low = _mm256_set1_epi32(kTotal - 1), row = _mm256_set1_epi32(kRowMask);
    __m256i state[Registers], machine[Registers];
    for (int r = 0; r < Registers; ++r) {
        state[r] = load(run.state + r * kWidth);
        machine[r] = load(run.machine + r * kWidth);
    }
    const uint8_t* word = run.word;
    for (size_t step = 0; step < groups * Registers / kBatch; ++step) {
        const int first = step * kBatch % Registers;
        __m256i entry[kBatch];
        for (int b = 0; b < kBatch; ++b) {
            __m256i table = _mm256_setzero_si256();
            if (Select) table = widen(select + b * kWidth);
            if (Machine) table = _mm256_add_epi32(table, _mm256_srli_epi32(machine[first + b], kOffsetShift));
            const __m256i slot = _mm256_and_si256(state[first + b], low);
            entry[b] = gather(run.slots, _mm256_or_si256(slot, _mm256_slli_epi32(table, kTableBits)));
        }
        for (int b = 0; b < kBatch; ++b) {
            word = refill(state[first + b], entry[b], word);
            if (!Machine) continue;
            const __m256i parity = _mm256_and_si256(entry[b], _mm256_set1_epi32(1));
            machine[first + b] = gather(run.next, _mm256_or_si256(_mm256_and_si256(machine[first + b], row), parity));
        }
        store(symbols, low_bytes(entry));
        symbols += kStep;
        if (Select) select += kStep;
    }
    for (int r = 0; r < Registers; ++r) {
        store(run.state + r * kWidth, state[r]);
        store(run.machine + r * kWidth, machine[r]);
    }
    run.word = word;
}

// floor(state / freq) for state < freq << 20. Without an unsigned conversion both are halved, which loses less than one
// of the quotient and rounds by less than another; comparisons either way repair it.
AVX2 inline __m256i quotient(__m256i state, __m256i freq) {
    const __m256 half = _mm256_mul_ps(_mm256_cvtepi32_ps(freq), _mm256_set1_ps(0.5f));
    const __m256i guess = _mm256_cvttps_epi32(_mm256_div_ps(_mm256_cvtepi32_ps(_mm256_srli_epi32(state, 1)), half));
    const __m256i rest = _mm256_sub_epi32(state, _mm256_mullo_epi32(guess, freq));
    const __m256i small = _mm256_cmpgt_epi32(freq, rest);                        // all ones where rest < freq
    const __m256i negative = _mm256_srai_epi32(rest, 31);
    const __m256i up = _mm256_add_epi32(guess, _mm256_add_epi32(small, _mm256_set1_epi32(1)));
    return _mm256_add_epi32(up, negative);
}

template <bool Select>
AVX2 bool encode_groups(EncodeRun& run, const int8_t* symbols, const uint16_t* select, size_t groups) {
    const __m256i total = _mm256_set1_epi32(kTotal);
    const int registers = run.lanes / kWidth;
    __m256i state[kMaxLanes / kWidth], absent = _mm256_setzero_si256();
    for (int r = 0; r < registers; ++r) state[r] = load(run.state + r * kWidth);
    uint8_t* word = run.word;
    for (size_t at = groups * run.lanes; at > 0;) {
        at -= kWidth;
        __m256i& x = state[at / kWidth % registers];
        __m256i index = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(symbols + at)));
        if (Select) index = _mm256_or_si256(index, _mm256_slli_epi32(widen(select + at), 8));
        const __m256i entry = gather(run.entries, index);
        const __m256i freq = _mm256_and_si256(entry, _mm256_set1_epi32(0xFFFF));
        absent = _mm256_or_si256(absent, _mm256_cmpeq_epi32(freq, _mm256_setzero_si256()));

        const __m256i roomy = _mm256_cmpgt_epi32(freq, _mm256_srli_epi32(x, kRenormShift));
        const unsigned full = ~lanes_where(roomy) & 255;
        const __m256i top = _mm256_permutevar8x32_epi32(_mm256_blend_epi16(x, _mm256_setzero_si256(), 0xAA),
                                                        permutation(kPermute.compress[full]));
        const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(word - 2 * kWidth), words);
        word -= 2 * _mm_popcnt_u32(full);
        x = _mm256_blendv_epi8(_mm256_srli_epi32(x, 16), x, roomy);

        // (q << 12) + (x - q * freq) + start, with one product
        const __m256i gap = _mm256_mullo_epi32(quotient(x, freq), _mm256_sub_epi32(total, freq));
        x = _mm256_add_epi32(_mm256_add_epi32(x, _mm256_srli_epi32(entry, 16)), gap);
    }
    for (int r = 0; r < registers; ++r) store(run.state + r * kWidth, state[r]);
    run.word = word;
    return lanes_where(absent) == 0;
}

template <int Registers>
void decode_lanes(DecodeRun& run, const uint16_t* select, int8_t* symbols, size_t groups) {
    auto* loop = select ? decode_groups<Registers, true, false> : decode_groups<Registers, false, false>;
    if (run.next) loop = select ? decode_groups<Registers, true, true> : decode_groups<Registers, false, true>;
    loop(run, select, symbols, groups);
}

void decode(DecodeRun& run, const uint16_t* select, int8_t* symbols, size_t groups) {
    (run.lanes == 64 ? decode_lanes<8> : decode_lanes<4>)(run, select, symbols, groups);
}

bool encode(EncodeRun& run, const int8_t* symbols, const uint16_t* select, size_t groups) {
    return (select ? encode_groups<true> : encode_groups<false>)(run, symbols, select, groups);
}

bool available() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt"); }

}  // namespace

const InstructionSet kAvx2{"avx2", 32, available, decode, encode};

}  // namespace waterfill

#else

const waterfill::InstructionSet waterfill::kAvx2{"avx2", 32, [] { return false; }, nullptr, nullptr};

#endif
