// Floating-point words apart and together: split_reference and merge_reference of coding/lossless/word_format.py.
//
// Entries are taken in blocks that stay in the first-level cache: first the scale of every entry, row by row, then all
// else in one flat loop, so that short rows cost little.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define WATERFILL_X86 1
#endif

namespace nb = nanobind;
using namespace nb::literals;

namespace {

constexpr size_t kBlock = 2048;   // entries; a multiple of 16, so that a block's raw bits begin at a byte
constexpr int kMostRaw = 24;      // raw bits of an entry: the sign and 23 mantissa bits
constexpr int8_t kEscape = -128;

template <class Number>
using Vector = nb::ndarray<Number, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class Number>
using Matrix = nb::ndarray<Number, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Coded = nb::ndarray<const uint8_t, nb::shape<8, 256>, nb::c_contig, nb::device::cpu>;
using Numbers = std::tuple<int, int, int, int, bool>;

struct Fields {
    int bits;      // of a word
    int symbol;    // exponent and top mantissa bits
    int top, low;  // mantissa bits in a symbol, and below it
    int sign;      // 1 if signs are stored

    explicit Fields(const Numbers& n)
        : bits(std::get<0>(n)), symbol(std::get<1>(n)), top(std::get<2>(n)), low(std::get<3>(n)), sign(std::get<4>(n)) {
        if (top < 0 || top > 7 || low < 0 || raw() > kMostRaw || symbol < top || 1 + symbol + low > bits) {
            throw nb::value_error("no word has such fields");
        }
    }

    int raw() const { return low + sign; }
    int dropped() const { return bits - 1 - symbol - low; }
};

struct Factors {
    const int16_t *first, *second;
    size_t cols;

    // Scales of the entries at .. at + count of the matrix, row by row.
    template <class Each>
    void scales(size_t at, size_t count, Each* to, int16_t mask = INT16_MAX) const {
        size_t row = at / cols, col = at % cols;
        while (count) {
            const size_t run = std::min(count, cols - col);
            const int16_t base = first[row];
            for (size_t i = 0; i < run; ++i) to[i] = Each(std::max(int16_t(base + second[col + i]), int16_t(0)) & mask);
            to += run;
            count -= run;
            ++row;
            col = 0;
        }
    }
};

Factors factors(const Vector<const int16_t>& first, const Vector<const int16_t>& second, size_t rows, size_t cols) {
    if (first.size() != rows || second.size() != cols) throw nb::value_error("one factor for every row and column");
    return {first.data(), second.data(), cols};
}

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

template <class Word>
void split(const Word* words, size_t entries, const Factors& factors, const uint8_t* coded, const Fields& f,
           int8_t* symbols, uint8_t* raw) {
    const uint32_t low_mask = (1u << f.low) - 1, symbol_mask = (1u << f.symbol) - 1;
    const int dropped = f.dropped();
    int16_t scale[kBlock];
    BitWriter bits(raw, f.raw());
    for (size_t at = 0; at < entries; at += kBlock) {
        const size_t count = std::min(kBlock, entries - at);
        factors.scales(at, count, scale);
        for (size_t i = 0; i < count; ++i) {
            const uint32_t word = words[at + i], kept = word >> dropped;
            const int32_t relative = int32_t(kept >> f.low & symbol_mask) - (scale[i] >> 3 << f.top);
            const bool known = relative >= -127 && relative <= 127 && coded[(scale[i] & 7) << 8 | (relative & 255)];
            symbols[at + i] = known ? int8_t(relative) : kEscape;
            bits.put((kept & low_mask) | (f.sign ? word >> (f.bits - 1) << f.low : 0));
        }
    }
    bits.finish();
}

// `raw` has 64 readable bytes beyond those of the entries.
template <class Word>
void merge_block(const int8_t* symbols, const int16_t* scale, const uint8_t* raw, size_t entries, const Fields& f,
                 Word* words) {
    const uint32_t low_mask = (1u << f.low) - 1, symbol_mask = (1u << f.symbol) - 1, raw_mask = (1u << f.raw()) - 1;
    const int dropped = f.dropped(), width = f.raw();
    for (size_t i = 0; i < entries; ++i) {
        const uint32_t rest = load(raw + (i * width >> 3)) >> (i * width & 7) & raw_mask;
        const uint32_t top = uint32_t(symbols[i] + (scale[i] >> 3 << f.top)) & symbol_mask;
        const uint32_t magnitude = top << f.low | (rest & low_mask);
        words[i] = Word(magnitude << dropped | (f.sign ? rest >> f.low << (f.bits - 1) : 0));
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
    const __m512i low_mask = _mm512_set1_epi32((1 << f.low) - 1), symbol_mask = _mm512_set1_epi32((1 << f.symbol) - 1);
    const __m512i sign_mask = _mm512_set1_epi32(f.sign);
    const __m128i top = _mm_cvtsi32_si128(f.top), low = _mm_cvtsi32_si128(f.low);
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
#endif

template <class Word>
void merge(const int8_t* symbols, const uint8_t* raw, size_t entries, const Factors& factors, const Fields& f,
           Word* words) {
    int16_t scale[kBlock];
    uint8_t bytes[kBlock * kMostRaw / 8 + 64] = {};
    for (size_t at = 0; at < entries; at += kBlock) {
        const size_t count = std::min(kBlock, entries - at);
        factors.scales(at, count, scale);
        std::memcpy(bytes, raw + at * f.raw() / 8, (count * f.raw() + 7) / 8);  // may be read beyond its end
        size_t done = 0;
#ifdef WATERFILL_X86
        if (has_avx512()) done = merge_groups(symbols + at, scale, bytes, count, f, words + at);
#endif
        merge_block(symbols + at + done, scale + done, bytes + done * f.raw() / 8, count - done, f, words + at + done);
    }
}

void check(size_t words, size_t symbols, size_t raw, const Fields& f, size_t word_bits) {
    if (symbols != words || raw != (words * f.raw() + 7) / 8 || f.bits != int(word_bits)) {
        throw nb::value_error("words, symbols and raw bits do not belong together");
    }
}

template <class Word>
void split_floats(Matrix<const Word> words, Vector<const int16_t> first, Vector<const int16_t> second, Coded coded,
                  const Numbers& numbers, Vector<int8_t> symbols, Vector<uint8_t> raw) {
    const Fields fields(numbers);
    check(words.size(), symbols.size(), raw.size(), fields, 8 * sizeof(Word));
    const Factors scale = factors(first, second, words.shape(0), words.shape(1));
    nb::gil_scoped_release unlocked;
    split(words.data(), words.size(), scale, coded.data(), fields, symbols.data(), raw.data());
}

template <class Word>
void merge_floats(Vector<const int8_t> symbols, Vector<const uint8_t> raw, Vector<const int16_t> first,
                  Vector<const int16_t> second, const Numbers& numbers, Matrix<Word> words) {
    const Fields fields(numbers);
    check(words.size(), symbols.size(), raw.size(), fields, 8 * sizeof(Word));
    const Factors scale = factors(first, second, words.shape(0), words.shape(1));
    nb::gil_scoped_release unlocked;
    merge(symbols.data(), raw.data(), words.size(), scale, fields, words.data());
}

void select_floats(Vector<const int16_t> first, Vector<const int16_t> second, Vector<uint16_t> select) {
    if (select.size() != first.size() * second.size()) throw nb::value_error("one table for every entry");
    const Factors scale = factors(first, second, first.size(), second.size());
    nb::gil_scoped_release unlocked;
    scale.scales(0, select.size(), select.data(), 7);
}

template <class Word>
void bind(nb::module_& m) {
    m.def("split_floats", split_floats<Word>, "words"_a.noconvert(), "first"_a, "second"_a, "coded"_a, "fields"_a,
          "symbols"_a.noconvert(), "raw"_a.noconvert());
    m.def("merge_floats", merge_floats<Word>, "symbols"_a, "raw"_a, "first"_a, "second"_a, "fields"_a,
          "words"_a.noconvert());
}

}  // namespace

void bind_lossless(nb::module_& m) {
    m.def("select_floats", select_floats, "first"_a, "second"_a, "select"_a.noconvert());
    bind<uint16_t>(m);
    bind<uint32_t>(m);
}
