// Floating-point words apart and together: coding/lossless/word_format.py. And words as they lie in memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace waterfill {

constexpr int8_t kEscape = -128;
constexpr int kPhases = 8;

// word_format.WordFormat: where the fields of a word lie. No exponent: the words are not floats.
struct Fields {
    int bits;  // of a word
    int exponent, mantissa;
    bool sign;  // whether signs are stored

    bool floats() const { return exponent > 0; }
    int top() const { return std::min(2, mantissa); }  // mantissa bits in a symbol
    int low() const { return mantissa - top(); }       // and below it
    int symbol() const { return exponent + top(); }
    int raw() const { return low() + sign; }
    int dropped() const { return bits - 1 - exponent - mantissa; }
    size_t packed(size_t entries) const { return (entries * raw() + 7) / 8; }  // bytes of raw bits
    uint32_t magnitude(uint32_t word) const {
        return word >> dropped() & uint32_t((uint64_t(1) << (exponent + mantissa)) - 1);
    }
};

// A matrix of words of 1, 2, 4, 8 or 16 bytes. Those of up to four can be taken as numbers.
struct Words {
    const uint8_t* data;
    size_t rows, cols;
    int size;  // bytes of a word

    size_t entries() const { return rows * cols; }
    const uint8_t* row(size_t i) const { return data + i * cols * size; }
    Words part(size_t first, size_t count) const { return {row(first), count, cols, size}; }

    // So many words as numbers: where they lie, or in `room` if they do not lie as such.
    const uint32_t* take(size_t from, size_t count, uint32_t* room) const {
        const uint8_t* at = data + size * from;
        if (size == 4 && reinterpret_cast<uintptr_t>(at) % alignof(uint32_t) == 0) {
            return reinterpret_cast<const uint32_t*>(at);
        }
        for (size_t i = 0; i < count; ++i) room[i] = one(from + i);
        return room;
    }

    uint32_t one(size_t at) const {
        uint32_t word = 0;
        if (size == 2) {
            uint16_t half;
            std::memcpy(&half, data + 2 * at, 2);
            return half;
        }
        std::memcpy(&word, data + size * at, size);
        return word;
    }
};

// The two summands of the scale of every entry; their sums stay below 2^15.
struct Scales {
    std::vector<int16_t> first, second;  // [rows], [cols]

    // Scales of the entries at .. at + count of the rows from `row` on, row by row.
    void fill(size_t row, size_t at, size_t count, int16_t* to) const;
};

constexpr size_t kBlock = 2048;  // entries at a time; a multiple of 16, so that a block's raw bits begin at a byte

// Symbols, tables and raw bits of the words, whose scales are those from `row` on. `coded` [8, 256]: the frequencies
// of symbols; one without is an escape.
void split(const Words& words, const Fields& fields, const Scales& scales, size_t row, const uint16_t* coded,
           int8_t* symbols, uint16_t* select, uint8_t* raw);

// The tables [entries] of rows from `row` on.
void select_tables(const Scales& scales, size_t row, size_t entries, uint16_t* select);

// The inverse of `split`, into words [entries]; escapes are still to be put in by `patch`.
void merge(const int8_t* symbols, const uint8_t* raw, const Fields& fields, const Scales& scales, size_t row,
           size_t entries, uint8_t* words);

// The top bits of a word's magnitude.
inline uint32_t top_bits(const Fields& fields, uint32_t word) { return fields.magnitude(word) >> fields.low(); }

// Put top bits into word number `at`.
void patch(uint8_t* words, size_t at, uint32_t value, const Fields& fields);

}  // namespace waterfill
