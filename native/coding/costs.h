// What codes cost under the densities of a model, summed along an axis: the inner loop of coding/model/costs.py,
// whose NumPy form is the reference.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "quantizer/choose.h"
#include "codes.h"

namespace waterfill {
namespace {

constexpr int kWide = 16;             // moves of scale indices that are summed side by side
constexpr int64_t kMostAdded = 1024;  // costs of at most 30 bits each that an int32 holds the sum of
constexpr int kPhases = 5;
constexpr int kUnitBits = 16;         // a cost of 1 is 2^-16 bit

struct Costs {
    const int32_t* table;  // [phases, 256, scales]
    int scales;
    int most_scale;  // the largest scale index there is

    // Where the table has residual `e` at scale index `k`, and how many of its bits go raw: some, beyond the table.
    struct Place {
        int64_t at;
        int shift;
    };

    Place place(int64_t e, int k, int phase) const {
        k = std::min(k, most_scale);
        if (k < scales) return {begin(e, phase) + std::max(k, 0), 0};
        const int shift = (k - scales + 8) >> 3;
        return {begin((e + (int64_t{1} << (shift - 1))) >> shift, 0) + std::max(k - 8 * shift, 0), shift};
    }

    int64_t operator()(int64_t e, int k, int phase) const {
        const Place found = place(e, k, phase);
        return table[found.at] + (int64_t{found.shift} << kUnitBits);
    }

    // Where the costs of residual `e` [scales] begin, nothing raw.
    int64_t begin(int64_t e, int phase) const {
        const int symbol = (e < -127 || e > 127) ? 128 : static_cast<int>(e & 255);
        return (int64_t{phase} * 256 + symbol) * scales;
    }
};

// By how much scale indices move.
struct Deltas {
    const int32_t* delta;
    int64_t count;
    int lowest, highest;
};

// Some of the rows and columns.
struct Part {
    int64_t row, last_row, column, last_column;
};

// The costs of neighboring scale indices lie side by side: one addition of a vector does for all moves. sums [kWide] of
// part's row, or [length, kWide]; kMostAdded entries of each fit their int32. Entries at the ends of the tables go to
// `wide` [deltas, length]. length: of the axis. slot: where the sum of a column is; none where rows are summed.
FOR_THIS_MACHINE
void sum_near(const Codes& codes, const Costs& costs, const Deltas& moves, const int32_t* __restrict slot,
              int64_t length, const Part& part, int32_t* __restrict sums, int64_t* __restrict wide) {
    const int32_t* __restrict column = codes.column.data();
    Lanes<int32_t> whole{}, next;
    for (int64_t r = part.row; r < part.last_row; ++r) {
        const int32_t* __restrict residual = codes.residual + r * codes.columns();
        const uint8_t* __restrict phase = codes.phase ? codes.phase + r * codes.columns() : nullptr;
        const int first = codes.row[r] + moves.lowest;
        for (int64_t n = part.column; n < part.last_column; ++n) {
            const int k = first + column[n], h = phase ? phase[n] : 0;
            if (k < 0 || k + kWide > costs.scales) {
                for (int64_t d = 0; d < moves.count; ++d)
                    wide[d * length + (slot ? slot[n] : r)] +=
                        costs(residual[n], k - moves.lowest + moves.delta[d], h);
                continue;
            }
            load(costs.table + costs.begin(residual[n], h) + k, next);
            if (slot)
                add(next, sums + slot[n] * kWide);
            else
                whole += next;
        }
    }
    if (!slot) add(whole, sums);
}

// The same for moves of any size, entry by entry.
void sum_each(const Codes& codes, const Costs& costs, const Deltas& moves, int axis, int64_t length, int64_t* sums) {
    int64_t n = 0;
    for (int64_t r = 0; r < codes.rows; ++r)
        for (int64_t c = 0, at = 0; c < codes.channels; ++c)
            for (int64_t p = 0; p < codes.positions; ++p, ++n, ++at) {
                const int k = codes.row[r] + codes.column[at], h = codes.phase ? codes.phase[n] : 0;
                int64_t* sum = sums + (axis == 0 ? r : axis == 1 ? c : p);
                for (int64_t d = 0; d < moves.count; ++d)
                    sum[d * length] += costs(codes.residual[n], k + moves.delta[d], h);
            }
}

// The costs of all entries together when every scale index moves by `delta`.
int64_t sum_all(const Codes& codes, const Costs& costs, int delta) {
    int64_t sum = 0;
    for (int64_t r = 0; r < codes.rows; ++r) {
        const int32_t* residual = codes.residual + r * codes.columns();
        const uint8_t* phase = codes.phase ? codes.phase + r * codes.columns() : nullptr;
        const int first = codes.row[r] + delta;
        for (int64_t n = 0; n < codes.columns(); ++n)
            sum += costs(residual[n], first + codes.column[n], phase ? phase[n] : 0);
    }
    return sum;
}

// sums[d, :] = costs along one axis (0 rows, 1 channels, 2 positions) when every scale index moves by moves.delta[d].
void sum_along(const Codes& codes, const Costs& costs, const Deltas& moves, int axis, int64_t* sums) {
    const int64_t R = codes.rows, C = codes.channels, P = codes.positions, N = codes.columns(), D = moves.count;
    const int64_t length = axis == 0 ? R : axis == 1 ? C : P;
    std::fill(sums, sums + D * length, 0);
    if (length == 1 && axis == 2) {
        for (int64_t d = 0; d < D; ++d) sums[d] = sum_all(codes, costs, moves.delta[d]);
        return;
    }
    if (moves.highest - moves.lowest >= kWide) {
        sum_each(codes, costs, moves, axis, length, sums);
        return;
    }
    const bool by_row = axis == 0;
    std::vector<int32_t> slot;
    for (int64_t n = 0; n < (by_row ? 0 : N); ++n) slot.push_back(static_cast<int32_t>(axis == 1 ? n / P : n % P));
    // So many rows and columns at once that no sum has more than kMostAdded entries.
    const int64_t each = std::max<int64_t>(1, axis == 1 ? P : C);
    const int64_t some = by_row ? 1 : std::max<int64_t>(1, kMostAdded / each);
    const int64_t wide = !by_row && each <= kMostAdded ? N : axis == 2 ? kMostAdded * P : kMostAdded;
    std::vector<int32_t> near(kWide * (by_row ? 1 : length));
    for (int64_t r = 0; r < R; r += some)
        for (int64_t n = 0; n < N; n += wide) {
            const Part part{r, std::min(r + some, R), n, std::min(n + wide, N)};
            std::fill(near.begin(), near.end(), 0);
            sum_near(codes, costs, moves, by_row ? nullptr : slot.data(), length, part, near.data(), sums);
            for (int64_t i = 0; i < (by_row ? 1 : length); ++i)
                for (int64_t d = 0; d < D; ++d)
                    sums[d * length + r * by_row + i] += near[i * kWide + moves.delta[d] - moves.lowest];
        }
}

}  // namespace
}  // namespace waterfill
