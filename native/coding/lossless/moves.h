// How often symbols occur, and what they cost when the scale of all entries is moved: `_counts`, `_symbol_counts` and
// `_moved` of coding/lossless/magnitude.py. Only symbols that occur are looked at.
#pragma once

#include <array>
#include <vector>

#include "families.h"

namespace waterfill {

constexpr int kMostMoved = 24;  // eighths of an octave, up or down

struct Move {
    double bits;  // of all entries, in units of 1 / kPriceUnit
    int shape, move;
};

class MovedCounts {
public:
    // Of every `stride`-th row.
    MovedCounts(const Words& words, size_t stride, const Fields& fields, const Scales& scales);

    // Over all densities and moves; a base of 0 or more cannot become negative. Of equal ones the first.
    Move cheapest(int64_t base, const double* prices, int shapes) const;

    // Of symbols -127 to 127 and of escapes in all phases together, when the scale makes this move.
    std::array<int64_t, kSymbols> of_symbols(int move) const;

private:
    struct Bin {
        int phase, relative;
        uint32_t count;
        size_t row(int move, int top) const;  // of [8, 256]: phase and symbol after the move
    };

    int top_;
    std::vector<Bin> bins_;
};

}  // namespace waterfill
