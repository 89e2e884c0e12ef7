#include "families.h"

#include <cmath>
#include <numeric>
#include <stdexcept>

#include "coding/coder.h"
#include "coding/coder_streams.h"

namespace waterfill {
namespace {

constexpr int kUnit = 28;  // abscissas are integers in units of 2^-28 standard deviations
constexpr size_t kEscapeAt = uint8_t(kEscape);

}  // namespace

Table normalize(const std::array<int64_t, kSymbols>& masses) {
    const int64_t total = std::max<int64_t>(std::accumulate(masses.begin(), masses.end(), int64_t(0)), 1);
    std::array<int64_t, kSymbols> freq, rest;
    for (size_t i = 0; i < kSymbols; ++i) {
        const int64_t scaled = masses[i] << kTableBits;
        freq[i] = (2 * scaled + total) / (2 * total);
        if (i == kEscapeAt) freq[i] = std::max<int64_t>(freq[i], 1);
        rest[i] = scaled - freq[i] * total;
    }
    int64_t excess = std::accumulate(freq.begin(), freq.end(), int64_t(0)) - int64_t(kTotal);
    std::array<size_t, kSymbols> order;
    while (excess) {
        const int64_t sign = excess > 0 ? 1 : -1;
        const auto movable = [&](size_t i) { return freq[i] > (sign > 0 ? 1 : 0); };
        const auto key = [&](size_t i) { return movable(i) ? rest[i] * sign : INT64_MAX; };
        std::iota(order.begin(), order.end(), size_t(0));
        std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return key(a) < key(b); });
        const size_t most = size_t(std::min<int64_t>(std::abs(excess), kSymbols));
        for (size_t rank = 0; rank < most; ++rank) {
            const size_t i = order[rank];
            if (!movable(i)) break;
            freq[i] -= sign;
            rest[i] += sign * total;
            excess -= sign;
        }
    }
    Table made;
    std::copy(freq.begin(), freq.end(), made.begin());
    return made;
}

void price(const uint16_t* freq, int64_t* prices) {
    const auto bits = [](int f) { return kTableBits - std::log2(double(std::max(f, 1))); };
    const auto units = [](double value) { return int64_t(std::nearbyint(value * double(kPriceUnit))); };
    const int64_t escape = units(bits(freq[kEscapeAt]) + kEscapeBits);
    for (int symbol = -127; symbol <= 127; ++symbol) {
        const int f = freq[symbol & 255];
        prices[symbol + 127] = f ? units(bits(f)) : escape;
    }
    prices[255] = escape;
}

Families::Families(std::vector<std::vector<int64_t>> survival, std::vector<int64_t> octave)
    : survival_(std::move(survival)), octave_(std::move(octave)) {
    const size_t points = survival_.empty() ? 0 : survival_[0].size();
    bool whole = points > 1 && survival_.size() <= kMostShapes && octave_.size() == size_t(kPhases);
    for (const auto& one : survival_) whole = whole && one.size() == points;
    for (const int64_t one : octave_) whole = whole && one > 0;
    if (!whole) throw std::invalid_argument("survival functions [shapes, points] and octaves [8] are wanted");
    for (int64_t j = 0; j < int64_t(points); ++j) grid_.push_back(16 * j * j << (kUnit - 16));
}

// One-sided mass above x (2^-28 standard deviations) in units of 2^-30; linear between the frozen points.
int64_t Families::mass_above(int shape, int64_t x) const {
    if (x >= grid_.back()) return 0;
    const size_t j = size_t(std::upper_bound(grid_.begin(), grid_.end(), x) - grid_.begin()) - 1;
    const std::vector<int64_t>& mass = survival_[shape];
    return mass[j] - (mass[j] - mass[j + 1]) * (x - grid_[j]) / (grid_[j + 1] - grid_[j]);
}

Table Families::table(int shape, int phase, int top) const {
    std::array<int64_t, kSymbols> masses{};
    int64_t before = 0, left = int64_t(1) << 29;
    for (int edge = -127; edge <= 128; ++edge) {
        const int octave = std::min(edge >> top, 5), shift = kUnit + 16 - top + octave;
        const int64_t fraction = edge & ((1 << top) - 1), step = (1 << top) + fraction;
        const int64_t above = mass_above(shape, shift < 0 ? 0 : (step << shift) / octave_[phase]);
        const int64_t mass = std::max<int64_t>(before - above, 0);
        before = above;
        if (edge == -127 || mass << kTableBits < int64_t(1) << 28) continue;  // below half a count of 2^29
        masses[(edge - 1) & 255] = mass;
        left -= mass;
    }
    masses[kEscapeAt] = left;
    return normalize(masses);
}

const uint16_t* Families::tables(int shape, int top) {
    Density& density = densities_[top][shape];
    std::call_once(density.made, [&] {
        for (int phase = 0; phase < kPhases; ++phase) {
            const Table one = table(shape, phase, top);
            density.tables.insert(density.tables.end(), one.begin(), one.end());
        }
    });
    return density.tables.data();
}

const uint32_t* Families::slots(int shape, int top) {
    const uint16_t* freq = tables(shape, top);
    Density& density = densities_[top][shape];
    std::call_once(density.laid_out, [&] {
        density.slots.resize(size_t(kPhases) * kTotal);
        for (int phase = 0; phase < kPhases; ++phase) {
            lay_out(freq + phase * kSymbols, density.slots.data() + phase * kTotal);
        }
    });
    return density.slots.data();
}

const double* Families::prices(int top) {
    Prices& prices = prices_[top];
    std::call_once(prices.made, [&] {
        prices.values.resize(size_t(kPhases) * kPriced * kMostShapes);
        int64_t one[kSymbols];
        for (int shape = 0; shape < shapes(); ++shape) {
            const uint16_t* freq = tables(shape, top);
            for (int phase = 0; phase < kPhases; ++phase) {
                price(freq + phase * kSymbols, one);
                double* to = prices.values.data() + size_t(phase) * kPriced * kMostShapes + shape;
                for (int symbol = -kPriced / 2; symbol <= kPriced / 2; ++symbol, to += kMostShapes) {
                    *to = double(one[symbol < -127 || symbol > 127 ? 255 : symbol + 127]);
                }
            }
        }
    });
    return prices.values.data();
}

}  // namespace waterfill
