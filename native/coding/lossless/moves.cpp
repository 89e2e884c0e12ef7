#include "moves.h"

#include <limits>

#include "for_this_machine.h"

namespace waterfill {
namespace {

constexpr size_t kWidth = 2 * kReach + 1;
constexpr size_t kTables = 2;  // counted by turns, as the same count twice in a row would wait for itself

using Costs = std::array<double, kMostShapes>;

// `prices` [.., kMostShapes] are those of relative symbol 0. Whole numbers, whose sums are exact in any order.
FOR_THIS_MACHINE
void add_up(const Bin* bins, size_t count, const double* prices, double* costs) {
    Costs sums;
    std::copy_n(costs, kMostShapes, sums.begin());
    for (size_t b = 0; b < count; ++b) {
        const double times = bins[b].count, *row = prices + bins[b].relative * kMostShapes;
        for (int s = 0; s < kMostShapes; ++s) sums[s] += times * row[s];
    }
    std::copy_n(sums.begin(), kMostShapes, costs);
}

// Places in a table of counts [8, kWidth].
FOR_THIS_MACHINE
void places_of(const uint32_t* words, const int16_t* scale, size_t count, const Fields& fields, uint32_t* places) {
    const int low = fields.low() + fields.dropped(), top = fields.top();
    const uint32_t mask = (1u << fields.symbol()) - 1;
    for (size_t i = 0; i < count; ++i) {
        const int relative = int(words[i] >> low & mask) - (scale[i] >> 3 << top);
        const int clipped = std::min(std::max(relative, -kReach), kReach);
        places[i] = uint32_t((scale[i] & (kPhases - 1)) * int(kWidth) + clipped + kReach);
    }
}

}  // namespace

MovedCounts::MovedCounts(const Words& words, size_t stride, const Fields& fields, const Scales& scales)
    : top_(fields.top()) {
    std::array<std::array<uint32_t, kPhases * kWidth>, kTables> counts{};
    int16_t scale[kBlock];
    uint32_t block[kBlock], places[kBlock];
    const size_t run = stride == 1 ? words.entries() : words.cols;  // a sample goes row by row
    for (size_t from = 0; from < words.entries(); from += stride * run) {
        for (size_t at = from; at < from + run; at += kBlock) {
            const size_t count = std::min(kBlock, from + run - at);
            const uint32_t* word = words.take(at, count, block);
            scales.fill(0, at, count, scale);
            places_of(word, scale, count, fields, places);
            for (size_t i = 0; i < count; ++i) ++counts[i % kTables][places[i]];
        }
    }
    for (int phase = 0; phase < kPhases; ++phase) {
        for (int relative = -kReach; relative <= kReach; ++relative) {
            const size_t at = phase * kWidth + size_t(relative + kReach);
            const uint32_t count = counts[0][at] + counts[1][at];
            if (count) bins_[phase].push_back({relative, count});
        }
    }
}

Move MovedCounts::cheapest(int64_t base, const double* prices, int shapes) const {
    Move best{std::numeric_limits<double>::infinity(), 0, 0};
    for (int move = int(std::max<int64_t>(-kMostMoved, -base)); move <= kMostMoved; ++move) {
        Costs costs{};
        for (int phase = 0; phase < kPhases; ++phase) {
            if (bins_[phase].empty()) continue;
            const int moved = (phase + move) & (kPhases - 1), octaves = (phase + move) >> 3;
            const int zero = moved * kPriced + kPriced / 2 - octaves * (1 << top_);
            add_up(bins_[phase].data(), bins_[phase].size(), prices + zero * kMostShapes, costs.data());
        }
        for (int shape = 0; shape < shapes; ++shape) {
            if (costs[shape] < best.bits) best = {costs[shape], shape, move};
        }
    }
    return best;
}

std::array<int64_t, kSymbols> MovedCounts::of_symbols(int move) const {
    std::array<int64_t, kSymbols> found{};
    for (int phase = 0; phase < kPhases; ++phase) {
        for (const Bin& bin : bins_[phase]) {
            const int symbol = bin.relative - ((phase + move) >> 3) * (1 << top_);
            found[symbol < -127 || symbol > 127 ? 255 : symbol + 127] += bin.count;
        }
    }
    return found;
}

}  // namespace waterfill
