// Floating-point words apart and together: coding/lossless/word_format.py.
//
// Entries are taken in blocks that stay in the first-level cache: first the scale of every entry, row by row, then all
// else in one flat loop, so that short rows cost little.
#include "words.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define WATERFILL_X86 1
#endif

namespace waterfill {
namespace {

constexpr int kMostRaw = 24;  // raw bits of an entry: the sign and 23 mantissa bits

// Compilers make one move of each of these, on machines of either byte order.
uint32_t load(const uint8_t* at) { return at[0] | at[1] << 8 | at[2] << 16 | uint32_t(at[3]) << 24; }

void store(uint8_t* at, uint32_t value) {
    for (int b = 0; b < 4; ++b) at[b] = uint8_t(value >> 8 * b);
}

class BitWriter {
public:
    BitWriter(uint8_t* to, int width) : to_(to), width_(width) {}

    void put(uint32_t value) {
        held_ |= uint64_t(value) << count_;
        count_ += width_;
        if (count_ < 32) return;
        store(to_, uint32_t(held_));
        to_ += 4;
        held_ >>= 32;
        count_ -= 32;
    }

    void finish() {
        for (; count_ > 0; count_ -= 8, held_ >>= 8) *to_++ = uint8_t(held_);
    }

private:
    uint8_t* to_;
    int width_;
    uint64_t held_ = 0;
    int count_ = 0;
};

// `raw` has 64 readable bytes beyond those of the entries.
template <class Word>
void merge_block(const int8_t* symbols, const int16_t* scale, const uint8_t* raw, size_t entries, const Fields& f,
                 Word* words) {
    const uint32_t low_mask = (1u << f.low()) - 1, symbol_mask = (1u << f.symbol()) - 1, raw_mask = (1u << f.raw()) - 1;
    const int dropped = f.dropped(), width = f.raw();
    for (size_t i = 0; i < entries; ++i) {
        const uint32_t rest = load(raw + (i * width >> 3)) >> (i * width & 7) & raw_mask;
        const uint32_t top = uint32_t(symbols[i] + (scale[i] >> 3 << f.top())) & symbol_mask;
        const uint32_t magnitude = top << f.low() | (rest & low_mask);
        words[i] = Word(magnitude << dropped | (f.sign ? rest >> f.low() << (f.bits - 1) : 0));
    }
}

#ifdef WATERFILL_X86
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi")))

bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi");
}

// Whole groups of 16 entries, whose raw bits are 2 * width bytes: one load, one permutation of bytes, one shift.
template <class Word>
AVX512 size_t merge_groups(const int8_t* symbols, const int16_t* scale, const uint8_t* raw, size_t entries,
                           const Fields& f, Word* words) {
    alignas(64) uint8_t from[64];
    alignas(64) uint32_t by[16];
    for (int lane = 0; lane < 16; ++lane) {
        for (int b = 0; b < 4; ++b) from[4 * lane + b] = uint8_t((lane * f.raw() >> 3) + b);
        by[lane] = lane * f.raw() & 7;
    }
    const __m512i bytes = _mm512_load_si512(from), shift = _mm512_load_si512(by);
    const __m512i low_mask = _mm512_set1_epi32((1 << f.low()) - 1);
    const __m512i symbol_mask = _mm512_set1_epi32((1 << f.symbol()) - 1);
    const __m512i sign_mask = _mm512_set1_epi32(f.sign);
    const __m128i top = _mm_cvtsi32_si128(f.top()), low = _mm_cvtsi32_si128(f.low());
    const __m128i dropped = _mm_cvtsi32_si128(f.dropped());
    const __m128i sign = _mm_cvtsi32_si128(f.bits - 1);
    const size_t whole = entries / 16 * 16;
    for (size_t i = 0; i < whole; i += 16, raw += 2 * f.raw()) {
        const __m512i loaded = _mm512_loadu_si512(raw);
        const __m512i rest = _mm512_srlv_epi32(_mm512_permutexvar_epi8(bytes, loaded), shift);
        const __m512i scales = _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scale + i)));
        const __m512i octave = _mm512_sll_epi32(_mm512_srai_epi32(scales, 3), top);
        const __m512i symbol = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(symbols + i)));
        const __m512i high = _mm512_and_si512(_mm512_add_epi32(symbol, octave), symbol_mask);
        const __m512i magnitude = _mm512_or_si512(_mm512_sll_epi32(high, low), _mm512_and_si512(rest, low_mask));
        const __m512i signs = _mm512_sll_epi32(_mm512_and_si512(_mm512_srl_epi32(rest, low), sign_mask), sign);
        const __m512i word = _mm512_or_si512(_mm512_sll_epi32(magnitude, dropped), signs);
        if (sizeof(Word) == 4) {
            _mm512_storeu_si512(words + i, word);
        } else {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(words + i), _mm512_cvtepi32_epi16(word));
        }
    }
    return whole;
}

#define AVX2 __attribute__((target("avx2")))

// Whole groups of 8 entries, whose raw bits are `width` bytes: four entries at a time never need more than 16 bytes.
template <class Word>
AVX2 size_t merge_eights(const int8_t* symbols, const int16_t* scale, const uint8_t* raw, size_t entries,
                         const Fields& f, Word* words) {
    alignas(32) uint8_t from[32];
    alignas(32) uint32_t by[8];
    const int width = f.raw(), half = 4 * width >> 3;
    for (int lane = 0; lane < 8; ++lane) {
        const int at = lane * width - (lane < 4 ? 0 : 8 * half);
        for (int b = 0; b < 4; ++b) from[4 * lane + b] = uint8_t((at >> 3) + b);
        by[lane] = at & 7;
    }
    const __m256i bytes = _mm256_load_si256(reinterpret_cast<const __m256i*>(from));
    const __m256i shift = _mm256_load_si256(reinterpret_cast<const __m256i*>(by));
    const __m256i low_mask = _mm256_set1_epi32((1 << f.low()) - 1);
    const __m256i symbol_mask = _mm256_set1_epi32((1 << f.symbol()) - 1), sign_mask = _mm256_set1_epi32(f.sign);
    const __m128i top = _mm_cvtsi32_si128(f.top()), low = _mm_cvtsi32_si128(f.low());
    const __m128i dropped = _mm_cvtsi32_si128(f.dropped()), sign = _mm_cvtsi32_si128(f.bits - 1);
    const size_t whole = entries / 8 * 8;
    for (size_t i = 0; i < whole; i += 8, raw += width) {
        const __m256i loaded = _mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(raw + half),
                                                   reinterpret_cast<const __m128i*>(raw));
        const __m256i rest = _mm256_srlv_epi32(_mm256_shuffle_epi8(loaded, bytes), shift);
        const __m256i scales = _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scale + i)));
        const __m256i octave = _mm256_sll_epi32(_mm256_srai_epi32(scales, 3), top);
        const __m256i symbol = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(symbols + i)));
        const __m256i high = _mm256_and_si256(_mm256_add_epi32(symbol, octave), symbol_mask);
        const __m256i magnitude = _mm256_or_si256(_mm256_sll_epi32(high, low), _mm256_and_si256(rest, low_mask));
        const __m256i signs = _mm256_sll_epi32(_mm256_and_si256(_mm256_srl_epi32(rest, low), sign_mask), sign);
        const __m256i word = _mm256_or_si256(_mm256_sll_epi32(magnitude, dropped), signs);
        if (sizeof(Word) == 4) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(words + i), word);
        } else {
            const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(word, word), 0x08);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(words + i), _mm256_castsi256_si128(packed));
        }
    }
    return whole;
}
#endif

template <class Word>
void merge_words(const int8_t* symbols, const uint8_t* raw, const Fields& f, const Scales& scales, size_t row,
                 size_t entries, Word* words) {
    int16_t scale[kBlock];
    uint8_t bytes[kBlock * kMostRaw / 8 + 64] = {};
#ifdef WATERFILL_X86
    const bool wide = has_avx512();
#endif
    for (size_t at = 0; at < entries; at += kBlock) {
        const size_t count = std::min(kBlock, entries - at);
        scales.fill(row, at, count, scale);
        std::memcpy(bytes, raw + at * f.raw() / 8, (count * f.raw() + 7) / 8);  // may be read beyond its end
        size_t done = 0;
#ifdef WATERFILL_X86
        if (wide) {
            done = merge_groups(symbols + at, scale, bytes, count, f, words + at);
        } else if (__builtin_cpu_supports("avx2")) {
            done = merge_eights(symbols + at, scale, bytes, count, f, words + at);
        }
#endif
        merge_block(symbols + at + done, scale + done, bytes + done * f.raw() / 8, count - done, f, words + at + done);
    }
}

}  // namespace

void Scales::fill(size_t row, size_t at, size_t count, int16_t* to) const {
    const size_t cols = second.size();
    row += at / cols;
    for (size_t col = at % cols; count; ++row, col = 0) {
        const size_t run = std::min(count, cols - col);
        const int16_t base = first[row], *plus = second.data() + col;
        for (size_t i = 0; i < run; ++i) to[i] = std::max(int16_t(base + plus[i]), int16_t(0));
        to += run;
        count -= run;
    }
}

void split(const Words& words, const Fields& f, const Scales& scales, size_t row, const uint16_t* coded,
           int8_t* symbols, uint16_t* select, uint8_t* raw) {
    const uint32_t low_mask = (1u << f.low()) - 1, symbol_mask = (1u << f.symbol()) - 1;
    const int dropped = f.dropped(), low = f.low(), top = f.top();
    int16_t scale[kBlock];
    uint32_t block[kBlock];
    BitWriter bits(raw, f.raw());
    for (size_t at = 0; at < words.entries(); at += kBlock) {
        const size_t count = std::min(kBlock, words.entries() - at);
        scales.fill(row, at, count, scale);
        const uint32_t* word = words.take(at, count, block);
        for (size_t i = 0; i < count; ++i) {
            const uint32_t kept = word[i] >> dropped;
            const int32_t relative = int32_t(kept >> low & symbol_mask) - (scale[i] >> 3 << top);
            const uint16_t table = scale[i] & (kPhases - 1);
            const bool known = relative >= -127 && relative <= 127 && coded[table << 8 | (relative & 255)];
            symbols[at + i] = known ? int8_t(relative) : kEscape;
            select[at + i] = table;
            bits.put((kept & low_mask) | (f.sign ? word[i] >> (f.bits - 1) << low : 0));
        }
    }
    bits.finish();
}

void select_tables(const Scales& scales, size_t row, size_t entries, uint16_t* select) {
    int16_t scale[kBlock];
    for (size_t at = 0; at < entries; at += kBlock) {
        const size_t count = std::min(kBlock, entries - at);
        scales.fill(row, at, count, scale);
        for (size_t i = 0; i < count; ++i) select[at + i] = scale[i] & (kPhases - 1);
    }
}

void merge(const int8_t* symbols, const uint8_t* raw, const Fields& fields, const Scales& scales, size_t row,
           size_t entries, uint8_t* words) {
    if (fields.bits == 32) {
        merge_words(symbols, raw, fields, scales, row, entries, reinterpret_cast<uint32_t*>(words));
    } else {
        merge_words(symbols, raw, fields, scales, row, entries, reinterpret_cast<uint16_t*>(words));
    }
}

void patch(uint8_t* words, size_t at, uint32_t value, const Fields& fields) {
    const int place = fields.low() + fields.dropped();
    const uint32_t mask = ((1u << fields.symbol()) - 1) << place;
    uint8_t* word = words + at * (fields.bits / 8);
    uint32_t changed = value << place;
    for (int b = 0; b < fields.bits / 8; ++b) {
        word[b] = uint8_t((word[b] & ~(mask >> 8 * b)) | (changed >> 8 * b));
    }
}

}  // namespace waterfill
