// The model of floating-point words with the shortest message: `fit` of coding/lossless/magnitude.py.
#include <cmath>
#include <limits>

#include "coding/coder.h"
#include "means.h"
#include "model.h"
#include "moves.h"

namespace waterfill {
namespace {

constexpr size_t kWordsSampled = 1 << 18;
constexpr int64_t kLargest = 1 << 13;
constexpr double kLeast = 0x1p-160;

struct Candidate {
    int64_t bits;  // of the entries, in units of 1 / kPriceUnit
    Model model;
};

using Numbers = std::vector<double>;

Numbers logarithms(const Numbers& values, double less = 0) {
    Numbers made;
    for (const double value : values) made.push_back(std::log2(std::max(value, kLeast)) - less);
    return made;
}

double median(Numbers values) {
    const size_t half = values.size() / 2;
    std::nth_element(values.begin(), values.begin() + half, values.end());
    if (values.size() % 2) return values[half];
    return (*std::max_element(values.begin(), values.begin() + half) + values[half]) / 2;
}

double clipped(double value, double most) { return std::min(std::max(value, -most), most); }
int64_t rounded(double value) { return int64_t(std::nearbyint(value)); }

struct Factors {
    Numbers rows, cols;  // log2; an axis that has none as one number
};

std::vector<Factors> log_factors(const Words& words, const Fields& fields) {
    const MeanSizes means = mean_sizes(words, 1, fields, nullptr, nullptr);
    const Numbers overall = logarithms({mean(means.rows.data(), means.rows.size())}), none(1, 0.0);
    std::vector<Factors> made{{overall, none}};
    if (words.rows > 1) made.push_back({logarithms(means.rows), none});
    if (words.cols > 1 && words.rows > 1) {
        made.push_back({overall, logarithms(means.cols, overall[0])});
        const size_t step = std::max<size_t>(1, words.rows / 1024);
        Numbers some;
        for (size_t i = 0; i < words.rows; i += step) some.push_back(means.rows[i]);
        const Numbers cols = mean_sizes(words, step, fields, &some, nullptr).cols;
        const Numbers rows = mean_sizes(words, 1, fields, nullptr, &cols).rows;
        made.push_back({logarithms(rows), logarithms(cols)});
    }
    return made;
}

// The model, its density still to be found, with these factors as integers.
Model with_factors(const Factors& factors, size_t count) {
    Model made;
    const double center = median(factors.rows);
    double middle = factors.cols[0];
    made.has_rows = factors.rows.size() > 1;
    made.has_channels = factors.cols.size() > 1;
    if (made.has_rows) {
        for (const double row : factors.rows) made.rows.push_back(rounded(4 * clipped(row - center, 256)));
    }
    if (made.has_channels) {
        middle = median(factors.cols);
        Numbers places(count, 0.0), grid(count);
        const size_t channels = factors.cols.size() / count;
        for (size_t c = 0; c < channels; ++c) {
            for (size_t p = 0; p < count; ++p) grid[p] = clipped(factors.cols[c * count + p] - middle, 256);
            const double channel = median(grid);
            made.channels.push_back(rounded(4 * channel));
            for (size_t p = 0; p < count; ++p) places[p] += clipped(grid[p] - channel, 4);
        }
        for (const double place : places) made.positions.push_back(rounded(8 * (place / double(channels))));
    }
    const double base = std::nearbyint(8 * (center + middle + 127));
    made.base = int64_t(std::min(std::max(base, 0.0), double(kLargest)));
    return made;
}

Candidate moved(const Model& model, const MovedCounts& counts, int top, Families& families) {
    const Move best = counts.cheapest(model.base, families.prices(top), families.shapes());
    Candidate made{int64_t(best.bits), model};
    made.model.shape = best.shape;
    made.model.base += best.move;
    return made;
}

// A histogram in place of a density; the model has no factors.
Candidate histogram(const Model& model, const MovedCounts& counts, int shapes) {
    Candidate made{0, model};
    made.model.shape = shapes;
    made.model.base = model.base / kPhases * kPhases;
    const std::array<int64_t, kSymbols> found = counts.of_symbols(int(made.model.base - model.base));
    std::array<int64_t, kSymbols> masses{};
    for (int symbol = -127; symbol <= 127; ++symbol) masses[symbol & 255] = found[symbol + 127];
    masses[uint8_t(kEscape)] = found[255];
    made.model.freq = normalize(masses);
    int64_t prices[kSymbols];
    price(made.model.freq.data(), prices);
    for (size_t i = 0; i < kSymbols; ++i) made.bits += found[i] * prices[i];
    return made;
}

}  // namespace

Model fit(const Words& words, const Fields& fields, size_t positions, Families& families) {
    const size_t stride = std::max<size_t>(1, words.entries() / kWordsSampled);
    Model best;
    int64_t least = std::numeric_limits<int64_t>::max();
    const auto consider = [&](const Candidate& candidate) {
        Output side;
        candidate.model.write(side, families, fields.sign);
        const int64_t cost = candidate.bits * int64_t(stride) + 8 * int64_t(side.bytes().size()) * kPriceUnit;
        if (cost < least) best = candidate.model, least = cost;
    };
    for (const Factors& factors : log_factors(words, fields)) {
        const bool both = factors.cols.size() > 1 && positions > 1;
        for (const size_t count : both ? std::vector<size_t>{1, positions} : std::vector<size_t>{1}) {
            const Model model = with_factors(factors, count);
            const MovedCounts counts(words, stride, fields, model.scales(words.rows, words.cols));
            consider(moved(model, counts, fields.top(), families));
            if (!model.has_rows && !model.has_channels) consider(histogram(model, counts, families.shapes()));
        }
    }
    return best;
}

}  // namespace waterfill
