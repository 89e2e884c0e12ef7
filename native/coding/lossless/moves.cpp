#include "moves.h"

#include <limits>

#if defined(__x86_64__) && defined(__GNUC__)
#define WATERFILL_X86 1
#endif

namespace waterfill {
namespace {

constexpr int kReach = 512;  // symbols on either side
constexpr size_t kWidth = 2 * kReach + 1;

using Costs = std::array<double, kMostShapes>;

struct Priced {
    const double* prices;  // [kMostShapes]
    double count;
};

#ifdef __GNUC__
#define INLINE inline __attribute__((always_inline))
#else
#define INLINE inline
#endif

// Whole numbers, whose sums are exact in any order.
INLINE void add_up(const Priced* bins, size_t count, double* costs) {
    for (size_t b = 0; b < count; ++b) {
        for (int s = 0; s < kMostShapes; ++s) costs[s] += bins[b].count * bins[b].prices[s];
    }
}

#ifdef WATERFILL_X86
__attribute__((target("avx2"))) void add_up_avx2(const Priced* bins, size_t count, double* costs) {
    add_up(bins, count, costs);
}
#endif

void add_up_fast(const Priced* bins, size_t count, double* costs) {
#ifdef WATERFILL_X86
    if (__builtin_cpu_supports("avx2")) return add_up_avx2(bins, count, costs);
#endif
    add_up(bins, count, costs);
}

}  // namespace

MovedCounts::MovedCounts(const Words& words, size_t stride, const Fields& fields, const Scales& scales)
    : top_(fields.top()) {
    std::vector<uint32_t> counts(kPhases * kWidth);
    int16_t scale[kBlock];
    uint32_t block[kBlock];
    const size_t run = stride == 1 ? words.entries() : words.cols;  // a sample goes row by row
    const int low = fields.low() + fields.dropped(), top = fields.top();
    const uint32_t mask = (1u << fields.symbol()) - 1;
    for (size_t from = 0; from < words.entries(); from += stride * run) {
        for (size_t at = from; at < from + run; at += kBlock) {
            const size_t count = std::min(kBlock, from + run - at);
            words.load(at, count, block);
            scales.fill(0, at, count, scale);
            for (size_t i = 0; i < count; ++i) {
                const int relative = int(block[i] >> low & mask) - (scale[i] >> 3 << top);
                ++counts[(scale[i] & (kPhases - 1)) * kWidth + std::min(std::max(relative, -kReach), kReach) + kReach];
            }
        }
    }
    for (size_t i = 0; i < counts.size(); ++i) {
        if (counts[i]) bins_.push_back({int(i / kWidth), int(i % kWidth) - kReach, counts[i]});
    }
}

size_t MovedCounts::Bin::row(int move, int top) const {
    const int octaves = (phase + move) >> 3, symbol = relative - octaves * (1 << top);
    const bool escapes = symbol < -127 || symbol > 127;
    return size_t((phase + move) & (kPhases - 1)) * kSymbols + (escapes ? kSymbols - 1 : size_t(symbol + 127));
}

Move MovedCounts::cheapest(int64_t base, const double* prices, int shapes) const {
    Move best{std::numeric_limits<double>::infinity(), 0, 0};
    std::vector<Priced> priced(bins_.size());
    for (int move = -kMostMoved; move <= kMostMoved; ++move) {
        if (move < -base) continue;
        for (size_t b = 0; b < bins_.size(); ++b) {
            priced[b] = {prices + bins_[b].row(move, top_) * kMostShapes, double(bins_[b].count)};
        }
        Costs costs{};
        add_up_fast(priced.data(), priced.size(), costs.data());
        for (int shape = 0; shape < shapes; ++shape) {
            if (costs[shape] < best.bits) best = {costs[shape], shape, move};
        }
    }
    return best;
}

std::array<int64_t, kSymbols> MovedCounts::of_symbols(int move) const {
    std::array<int64_t, kSymbols> found{};
    for (const Bin& bin : bins_) found[bin.row(move, top_) % kSymbols] += bin.count;
    return found;
}

}  // namespace waterfill
