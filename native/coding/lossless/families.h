// The densities of magnitudes and their prices, as coding/lossless/magnitude.py derives them: integers only.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <vector>

#include "words.h"

namespace waterfill {

constexpr int kTops = 3;              // 0 to 2 mantissa bits in a symbol
constexpr size_t kSymbols = 256;      // of a table
constexpr int kMostShapes = 12;       // densities of the family, filled up so that loops have one length
constexpr int kMostMoved = 24;        // eighths of an octave that a scale is moved, up or down
constexpr int kReach = 140;           // symbols on either side; even moved, those beyond 127 + 12 escape
constexpr int kMargin = 12;           // symbols that the largest move, begun in the last phase, moves
constexpr int kPriced = 2 * (kReach + kMargin) + 1;
constexpr int64_t kPriceUnit = 1 << 20;  // prices are in units of this part of a bit
constexpr int kEscapeBits = 16;

using Table = std::array<uint16_t, kSymbols>;

// density.normalize of one table: frequencies that sum to 4096; the escape has at least one.
Table normalize(const std::array<int64_t, kSymbols>& masses);

// Prices of symbols -127 to 127 and, last, of an escape, under one table.
void price(const uint16_t* freq, int64_t* prices);

// Everything derived from the frozen survival functions, each the first time it is asked for. Safe for threads.
class Families {
public:
    // `survival` [shapes, points], `octave` [8]: those of coding/density_tables.py.
    Families(std::vector<std::vector<int64_t>> survival, std::vector<int64_t> octave);

    int shapes() const { return int(survival_.size()); }
    const uint16_t* tables(int shape, int top);   // [8, 256]
    const uint32_t* slots(int shape, int top);    // [8, 4096], for the decoder
    const double* prices(int top);                // [8, kPriced, kMostShapes], whole numbers; in the middle symbol 0

private:
    struct Density {
        std::once_flag made, laid_out;
        std::vector<uint16_t> tables;
        std::vector<uint32_t> slots;
    };
    struct Prices {
        std::once_flag made;
        std::vector<double> values;
    };

    int64_t mass_above(int shape, int64_t x) const;
    Table table(int shape, int phase, int top) const;

    std::vector<std::vector<int64_t>> survival_;
    std::vector<int64_t> octave_, grid_;
    std::array<std::array<Density, kMostShapes>, kTops> densities_;
    std::array<Prices, kTops> prices_;
};

}  // namespace waterfill
