// Products with a matrix of small integer codes: what the loops of every instruction set share. How codes lie in memory
// is told in waterfill/runtime/layout.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace waterfill {

constexpr int kBlock = 128;        // inputs are padded to whole multiples of so many columns
constexpr int64_t kNarrow = 1 << 15;    // columns of which 255 * 128 each stay within 32 bits
constexpr int64_t kMany = 2;            // inputs from which rows are unpacked once for all
constexpr int64_t kLine = 64;           // bytes of a register of 512 bits, and of a line of the cache
constexpr int64_t kMostCols = 1 << 18;  // of so many columns every sum of products stays within 32 bits

// A code is a lower field of 2, 4 or 8 bits and an upper one of the others; in a block the lower fields come first.
constexpr int lower_bits(int bits) { return bits == 8 ? 8 : bits >= 4 ? 4 : 2; }
constexpr int upper_bits(int bits) { return bits - lower_bits(bits); }
constexpr int block_cols(int bits) { return bits == 8 ? 32 : bits == 4 || bits == 6 ? 64 : 128; }
constexpr int lower_bytes(int bits) { return block_cols(bits) * lower_bits(bits) / 8; }
constexpr int block_bytes(int bits) { return block_cols(bits) * bits / 8; }

// Where a field lies: its byte in the block, and its lowest bit there.
struct Place {
    int byte, shift;
};
constexpr Place lower_place(int bits, int code) {
    const int each = 8 / lower_bits(bits), line = code / 32;
    return {32 * (line / each) + code % 32, lower_bits(bits) * (line % each)};
}
constexpr Place upper_place(int bits, int code) {
    return {lower_bytes(bits) + code % 16, upper_bits(bits) * (code / 16)};
}

// The code at a place of a block, from 0 to 2^bits - 1.
inline int code_at(int bits, const uint8_t* block, int code) {
    const Place low = lower_place(bits, code), up = upper_place(bits, code);
    const int value = block[low.byte] >> low.shift & ((1 << lower_bits(bits)) - 1);
    if (upper_bits(bits) == 0) return value;
    return value | (block[up.byte] >> up.shift & ((1 << upper_bits(bits)) - 1)) << lower_bits(bits);
}

// Codes [rows, cols], each plus 2^(bits - 1), row by row in blocks. An entry is (code - zero) * scale of its group.
struct CodeMatrix {
    const uint8_t* codes;
    const float* scales;     // [rows, groups]
    const int16_t* zeros;    // [rows, groups], of the codes as they lie, or null: 2^(bits - 1)
    const int32_t* starts;   // [rows + 1]: where the corrections of a row begin, or null
    const int32_t* where;    // [corrections]: column
    const int32_t* values;   // [corrections]: what is to be added to the code
    int64_t rows, cols, groups, group;  // group: columns, a multiple of block_cols(bits) unless there is one group
    int bits;

    int64_t blocks() const { return (cols + block_cols(bits) - 1) / block_cols(bits); }
    int64_t row_bytes() const { return blocks() * block_bytes(bits); }
};

constexpr int64_t kAhead = 1 << 14;  // bytes at least by which codes are fetched before they are needed

#if defined(__GNUC__)
// Fetches as many bytes as R rows have in a block: of the tile that comes next, from its beginning to its end. Memory
// is faster in this order than in that of the rows side by side.
template <int Bits, int R>
inline __attribute__((always_inline)) void fetch(const uint8_t* tile, int64_t row_bytes, int64_t block) {
    constexpr int kBytes = R * block_bytes(Bits);
    const int64_t ahead = R * row_bytes > kAhead ? R * row_bytes : kAhead;
    const uint8_t* from = tile + ahead + block * kBytes;
#pragma GCC unroll 8
    for (int at = 0; at < kBytes; at += kLine) __builtin_prefetch(from + at, 0, 3);
}
#endif

constexpr int kMostBytes = 3;  // of an input as an integer

// Inputs as integers of one, two or three signed bytes, x = scale * (256 (256 first + second) + third), batch by batch,
// padded with zeros to whole kBlock columns.
struct Inputs {
    const int8_t* bytes[kMostBytes];  // [batch, padded] each, the highest first; null for those that there are not
    const int16_t* upper;             // [batch, padded]: of the first two bytes, or of the only one
    const int64_t* sums;              // [batch, groups]: of the integers
    const double* scales;             // [batch]
    int64_t batch, padded;

    int64_t whole(int64_t item, int64_t column) const {
        const int64_t at = item * padded + column;
        return bytes[2] == nullptr ? upper[at] : 256 * static_cast<int64_t>(upper[at]) + bytes[2][at];
    }
};

// What the corrections of a row add to its sum.
inline int64_t corrected(const CodeMatrix& matrix, int64_t row, const Inputs& inputs, int64_t item) {
    int64_t sum = 0;
    for (int32_t k = matrix.starts[row]; k < matrix.starts[row + 1]; ++k)
        sum += matrix.values[k] * inputs.whole(item, matrix.where[k]);
    return sum;
}

// Adds the sums of codes times inputs of one group to totals[row][item]: for rows first to first + R, items likewise.
// Every instruction set finds the same integers.
using Dot = void (*)(const CodeMatrix& matrix, const Inputs& inputs, int64_t row, int64_t item, int64_t first_block,
                     int64_t last_block, int64_t* totals);

// A tile of R rows and B items; `dot` fills totals [R * B], rows first.
struct Tile {
    int rows, items;
    Dot dot;
};

// Outputs of rows `begin` up to before `end`, four at a time, of a matrix of at most kNarrow columns. Returns the first
// row that is left.
using FourRows = int64_t (*)(const CodeMatrix& matrix, const Inputs& inputs, int64_t begin, int64_t end, float* y);

struct ProductSet {
    const char* name;
    bool (*available)();
    // Of one group and no zero points, times one input; null where there is none.
    FourRows (*four_rows)(int bits, int bytes);
    // Of groups of whole kLine columns or one group, times kMany inputs and more; null where there is none.
    FourRows (*many_inputs)(int bits, int bytes);
    // The loops for a width and for 1 to 3 bytes of input: whole tiles first, then single rows and items.
    void (*tiles)(int bits, int bytes, Tile (&found)[4]);
};

extern const ProductSet kProductPortable, kProductAvx2, kProductVnni;

}  // namespace waterfill
