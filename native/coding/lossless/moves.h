// How often symbols occur, and what they cost when the scale of all entries is moved: `_counts`, `_symbol_counts` and
// `_moved` of coding/lossless/magnitude.py. Only symbols that occur are looked at.
#pragma once

#include <array>
#include <vector>

#include "families.h"

namespace waterfill {

struct Move {
    double bits;  // of all entries, in units of 1 / kPriceUnit
    int shape, move;
};

// A symbol, relative to the scale, and how often it occurs in a phase.
struct Bin {
    int relative;
    uint32_t count;
};

class MovedCounts {
public:
    // Of every `stride`-th row.
    MovedCounts(const Words& words, size_t stride, const Fields& fields, const Scales& scales);

    // Over all densities, whose prices are those of `Families`, and all moves that leave a base of 0 or more. Of equal
    // ones the first.
    Move cheapest(int64_t base, const double* prices, int shapes) const;

    // Of symbols -127 to 127 and of escapes in all phases together, when the scale makes this move.
    std::array<int64_t, kSymbols> of_symbols(int move) const;

private:
    int top_;
    std::array<std::vector<Bin>, kPhases> bins_;
};

}  // namespace waterfill
