// The search for the density model of a matrix of codes: the compiled form of waterfill/coding/model/search.py, whose
// NumPy form is the reference. Costs are integers, so that both take the same steps.
#include "costs.h"

#include <cmath>
#include <limits>

namespace nb = nanobind;
using namespace waterfill;

namespace {

constexpr int kMostBase = 255;  // the largest scale index that a model may begin with
constexpr int kLong = 24;       // quotients from which on a Rice coded integer is written whole,
constexpr int kWhole = 32;      // in so many bits
constexpr int kParameters = 6;  // of Rice codes, tried
constexpr int64_t kDense = 1 << 16;  // so many counters are always worth having

// How a vector is written: bits, the integer that it is folded around, and the parameter of the Rice code.
struct Rice {
    int64_t bits, middle;
    int parameter;
};

int64_t zigzag(int64_t value) { return (value << 1) ^ (value >> 63); }

Rice rice(const int64_t* values, int64_t size) {
    if (size == 0) return {0, 0, 0};
    std::vector<int64_t> folded(values, values + size);
    const auto center = folded.begin() + (size - 1) / 2;
    std::nth_element(folded.begin(), center, folded.end());
    const int64_t middle = *center;
    Rice best{std::numeric_limits<int64_t>::max(), middle, 0};
    for (int k = 0; k < kParameters; ++k) {
        int64_t bits = 0;
        for (int64_t i = 0; i < size; ++i) {
            const int64_t quotient = zigzag(values[i] - middle) >> k;
            bits += quotient < kLong ? quotient + 1 + k : kLong + 1 + kWhole;
        }
        if (bits < best.bits) best.bits = bits, best.parameter = k;
    }
    return best;
}

// The tables of all shapes: [shapes, phases, 256, scales], and [phases, 256, scales, shapes] of the bare costs.
struct Family {
    const int32_t* tables;
    const int32_t* bare;
    int shapes, scales, most_scale;

    Costs costs(int64_t shape) const { return {tables + shape * kPhases * 256 * scales, scales, most_scale}; }
};

// The model: factors of rows and channels in quarters of an octave, of positions in eighths.
struct Model {
    int64_t* shape_and_base;
    int64_t* factors[3];
    int64_t sizes[3];
    std::vector<int32_t> scales[3];

    int64_t& shape() { return shape_and_base[0]; }
    int64_t& base() { return shape_and_base[1]; }

    void place(Codes& codes) {
        for (int axis = 0; axis < 3; ++axis) {
            scales[axis].resize(sizes[axis]);
            const int64_t unit = axis == 2 ? 1 : 2, first = axis == 0 ? base() : 0;
            for (int64_t i = 0; i < sizes[axis]; ++i)
                scales[axis][i] = static_cast<int32_t>(first + unit * factors[axis][i]);
        }
        codes.scale(scales[0].data(), scales[1].data(), scales[2].data());
    }
};

// Distinct entries, and how often each occurs; where that takes too many counters, every entry once.
struct Distinct {
    std::vector<int32_t> residual, scale, phase;
    std::vector<int64_t> count;

    explicit Distinct(const Codes& codes) {
        const int64_t N = codes.columns(), size = codes.rows * N;
        const auto [low, high] = std::minmax_element(codes.residual, codes.residual + size);
        const auto [left, right] = std::minmax_element(codes.column.begin(), codes.column.end());
        const auto [top, bottom] = std::minmax_element(codes.row, codes.row + codes.rows);
        const int64_t lowest = *low, span = int64_t{*high} - lowest + 1, phases = codes.phase ? kPhases : 1;
        const int64_t least = int64_t{*top} + *left, scales = int64_t{*bottom} + *right - least + 1;
        if (scales * phases * span > std::max(2 * size, kDense)) {
            for (int64_t r = 0, at = 0; r < codes.rows; ++r)
                for (int64_t n = 0; n < N; ++n, ++at)
                    push(codes.residual[at], codes.row[r] + codes.column[n], codes.phase ? codes.phase[at] : 0, 1);
            return;
        }
        std::vector<int32_t> counts(scales * phases * span);
        for (int64_t r = 0, at = 0; r < codes.rows; ++r)
            for (int64_t n = 0; n < N; ++n, ++at) {
                const int64_t k = codes.row[r] + codes.column[n] - least, h = codes.phase ? codes.phase[at] : 0;
                ++counts[(k * phases + h) * span + codes.residual[at] - lowest];
            }
        int64_t key = 0;
        for (int64_t k = 0; k < scales; ++k)
            for (int64_t h = 0; h < phases; ++h)
                for (int64_t e = 0; e < span; ++e, ++key)
                    if (counts[key]) push(e + lowest, k + least, h, counts[key]);
    }

    void push(int64_t e, int64_t k, int64_t h, int64_t times) {
        residual.push_back(static_cast<int32_t>(e));
        scale.push_back(static_cast<int32_t>(k));
        phase.push_back(static_cast<int32_t>(h));
        count.push_back(times);
    }
};

// The shape of the family, and the base scale with it, that code the entries in the fewest bits.
FOR_THIS_MACHINE
void best_shape(const Codes& codes, const Family& family, Model& model) {
    constexpr int kMoves = 7, kMostShapes = 16;
    constexpr int moves[kMoves] = {-4, -2, -1, 0, 1, 2, 4};
    const Distinct entries(codes);
    const Costs any = family.costs(0);  // every shape has its costs in the same places
    int64_t total[kMoves][kMostShapes] = {};
    for (size_t i = 0; i < entries.count.size(); ++i)
        for (int d = 0; d < kMoves; ++d) {
            const Costs::Place found = any.place(entries.residual[i], entries.scale[i] + moves[d], entries.phase[i]);
            const int32_t* bare = family.bare + found.at * family.shapes;
            const int64_t raw = int64_t{found.shift} << kUnitBits, times = entries.count[i];
            for (int s = 0; s < family.shapes; ++s) total[d][s] += times * (bare[s] + raw);
        }
    int64_t least = std::numeric_limits<int64_t>::max(), base = model.base();
    for (int s = 0; s < family.shapes; ++s)
        for (int d = 0; d < kMoves; ++d)
            if (total[d][s] < least) {
                least = total[d][s];
                model.shape() = s;
                base = model.base() + moves[d];
            }
    model.base() = std::clamp<int64_t>(base, 0, kMostBase);
}

// Every factor of an axis by the step that saves most, its own bits included.
void descend(Codes& codes, const Family& family, Model& model, int axis) {
    constexpr int kMoves = 5;
    const int unit = axis == 2 ? 1 : 2;
    int32_t moves[kMoves];
    for (int d = 0; d < kMoves; ++d) moves[d] = (d - kMoves / 2) * unit;
    const int64_t length = model.sizes[axis];
    std::vector<int64_t> sums(kMoves * length);
    model.place(codes);
    sum_along(codes, family.costs(model.shape()), {moves, kMoves, moves[0], moves[kMoves - 1]}, axis, sums.data());
    int64_t* values = model.factors[axis];
    const Rice own = rice(values, length);
    for (int64_t i = 0; i < length; ++i) {
        int64_t least = std::numeric_limits<int64_t>::max(), best = 0;
        for (int64_t d = 0; d < kMoves; ++d) {
            const int64_t step = d - kMoves / 2;
            const int64_t bits = (zigzag(values[i] + step - own.middle) >> own.parameter) + 1 + own.parameter;
            const int64_t cost = sums[d * length + i] + (bits << kUnitBits);
            if (cost < least) least = cost, best = step;
        }
        values[i] += best;
    }
}

}  // namespace

// Moves the model, in place, to fewer bits: shape and base (if `shaped`) before and after `rounds` over the axes of the
// mask. Returns the cost of the entries, without the model's own bits.
int64_t descend_model(Array<const int32_t, 3> residual, Array<const uint8_t, 3> phase, Array<int64_t, 1> shape_and_base,
                      Array<int64_t, 1> rows, Array<int64_t, 1> channels, Array<int64_t, 1> positions,
                      Array<const int32_t, 4> tables, Array<const int32_t, 2> bare, int most_scale, int axes,
                      int rounds, bool shaped) {
    Codes codes(residual, phase);
    Model model{shape_and_base.data(), {rows.data(), channels.data(), positions.data()}, {}, {}};
    const Array<int64_t, 1>* vectors[3] = {&rows, &channels, &positions};
    bool fits = shape_and_base.size() == 2 && residual.size() > 0 && tables.shape(1) == kPhases &&
                tables.shape(2) == 256 && tables.shape(0) <= 16 && bare.shape(1) == tables.shape(0) &&
                bare.size() == tables.size();
    for (int axis = 0; axis < 3; ++axis) {
        model.sizes[axis] = vectors[axis]->size();
        fits = fits && vectors[axis]->size() == residual.shape(axis);
    }
    if (!fits || model.shape() < 0 || model.shape() >= static_cast<int64_t>(tables.shape(0)))
        throw std::invalid_argument("descend_model: the arrays do not fit together");
    const Family family{tables.data(), bare.data(), static_cast<int>(tables.shape(0)),
                        static_cast<int>(tables.shape(3)), most_scale};
    nb::gil_scoped_release release;
    model.place(codes);
    if (shaped) best_shape(codes, family, model);
    for (int round = 0; round < rounds; ++round)
        for (int axis = 0; axis < 3; ++axis)
            if (axes >> axis & 1) descend(codes, family, model, axis);
    model.place(codes);
    if (!shaped) return 0;
    best_shape(codes, family, model);
    model.place(codes);
    return sum_all(codes, family.costs(model.shape()), 0);
}

// Bits, center and parameter of a Rice coded vector.
nb::tuple rice_code(Array<const int64_t, 1> values) {
    const Rice found = rice(values.data(), values.shape(0));
    return nb::make_tuple(found.bits, found.middle, found.parameter);
}

void bind_descent(nb::module_& m) {
    m.def("descend_model", &descend_model);
    m.def("rice_code", &rice_code);
}
