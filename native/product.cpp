// What codes cost under product-scale densities, summed along an axis: the inner loop of waterfill/coding/costs.py,
// whose NumPy form is the reference.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "choose.h"

namespace nb = nanobind;
using namespace waterfill;

namespace {

template <class Number, size_t Dimensions>
using Array = nb::ndarray<Number, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;

constexpr int kWide = 16;         // moves of scale indices that are summed side by side
constexpr int64_t kMostAdded = 1024;  // costs of at most 30 bits each that an int32 holds the sum of
constexpr int kPhases = 5;
constexpr int kUnitBits = 16;  // a cost of 1 is 2^-16 bit

struct Costs {
    const int32_t* table;  // [phases, 256, scales]
    int scales;
    int most_scale;  // the largest scale index there is

    // Of residual `e` at scale index `k`, with low bits taken raw where the scale is beyond the last table.
    int64_t operator()(int64_t e, int k, int phase) const {
        int shift = 0;
        k = std::min(k, most_scale);
        if (k >= scales) {
            shift = (k - scales + 8) >> 3;
            e = (e + (int64_t{1} << (shift - 1))) >> shift;
            k -= 8 * shift;
            phase = 0;
        }
        return of(e, phase)[std::max(k, 0)] + (int64_t{shift} << kUnitBits);
    }

    // The costs of residual `e` [scales], nothing raw.
    const int32_t* of(int64_t e, int phase) const {
        const int symbol = (e < -127 || e > 127) ? 128 : static_cast<int>(e & 255);
        return table + (phase * 256 + symbol) * scales;
    }
};

// Codes [rows, channels, positions], the last two side by side, as residuals and phases (or none). Scale indices are
// sums of a row's and a column's.
struct Codes {
    const int32_t* residual;
    const uint8_t* phase;
    const int32_t* row;
    std::vector<int32_t> column;
    int64_t rows, channels, positions;

    Codes(const Array<const int32_t, 3>& residual, const Array<const uint8_t, 3>& phase,
          const Array<const int32_t, 1>& row, const Array<const int32_t, 1>& channel,
          const Array<const int32_t, 1>& position)
        : residual(residual.data()), phase(phase.size() ? phase.data() : nullptr), row(row.data()),
          rows(residual.shape(0)), channels(residual.shape(1)), positions(residual.shape(2)) {
        if (static_cast<int64_t>(row.shape(0)) != rows || static_cast<int64_t>(channel.shape(0)) != channels ||
            static_cast<int64_t>(position.shape(0)) != positions || (this->phase && phase.size() != residual.size()))
            throw std::invalid_argument("codes and factors do not fit together");
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t p = 0; p < positions; ++p) column.push_back(channel.data()[c] + position.data()[p]);
    }

    int64_t columns() const { return channels * positions; }
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
// part's row, or [channels, kWide]; kMostAdded entries fit their int32. Entries at the ends of the tables go to `wide`
// [deltas, length of axis]. slot: where the sum of a column is.
FOR_THIS_MACHINE
void sum_near(const Codes& codes, const Costs& costs, const Deltas& moves, const int32_t* __restrict slot,
              const Part& part, int32_t* __restrict sums, int64_t* __restrict wide) {
    const int64_t length = slot ? codes.channels : codes.rows;
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
            load(costs.of(residual[n], h) + k, next);
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

}  // namespace

// out[d, :] = costs along one axis (0 rows, 1 channels, 2 positions) when every scale index moves by deltas[d].
void axis_costs(Array<const int32_t, 3> residual, Array<const uint8_t, 3> phase, Array<const int32_t, 1> rows,
                Array<const int32_t, 1> channels, Array<const int32_t, 1> positions, Array<const int32_t, 3> table,
                Array<const int32_t, 1> deltas, int axis, int most_scale, Array<int64_t, 2> out) {
    const Codes codes(residual, phase, rows, channels, positions);
    const int64_t R = codes.rows, N = codes.columns(), P = codes.positions, D = deltas.shape(0);
    const int64_t length = axis == 0 ? R : axis == 1 ? codes.channels : P;
    if (static_cast<int64_t>(out.shape(0)) != D || D == 0 || static_cast<int64_t>(out.shape(1)) != length ||
        table.shape(1) != 256)
        throw std::invalid_argument("axis_costs: the arrays do not fit together");
    const Costs costs{table.data(), static_cast<int>(table.shape(2)), most_scale};
    const int32_t* delta = deltas.data();
    const Deltas moves{delta, D, *std::min_element(delta, delta + D), *std::max_element(delta, delta + D)};
    int64_t* sums = out.data();
    nb::gil_scoped_release release;
    std::fill(sums, sums + D * length, 0);
    if (length == 1 && axis == 2) {
        for (int64_t d = 0; d < D; ++d) sums[d] = sum_all(codes, costs, delta[d]);
        return;
    }
    if (axis == 2 || moves.highest - moves.lowest >= kWide) {
        sum_each(codes, costs, moves, axis, length, sums);
        return;
    }
    const bool by_row = axis == 0;
    std::vector<int32_t> slot;
    for (int64_t n = 0; n < N; ++n) slot.push_back(static_cast<int32_t>(n / P));
    const int64_t some = std::max<int64_t>(1, kMostAdded / std::max<int64_t>(1, P));
    std::vector<int32_t> near(kWide * (by_row ? 1 : codes.channels));
    for (int64_t r = 0; r < R; r += by_row ? 1 : some)
        for (int64_t n = 0; n < N; n += by_row ? kMostAdded : N) {
            const Part part{r, by_row ? r + 1 : std::min(r + some, R), n, by_row ? std::min(n + kMostAdded, N) : N};
            std::fill(near.begin(), near.end(), 0);
            sum_near(codes, costs, moves, by_row ? nullptr : slot.data(), part, near.data(), sums);
            for (int64_t i = 0; i < (by_row ? 1 : length); ++i)
                for (int64_t d = 0; d < D; ++d)
                    sums[d * length + r * by_row + i] += near[i * kWide + delta[d] - moves.lowest];
        }
}

// counts[(scale * phases + phase) * span + residual] of entries, with scale indices counted from `least` and residuals
// from `lowest`.
void count_entries(Array<const int32_t, 3> residual, Array<const uint8_t, 3> phase, Array<const int32_t, 1> rows,
                   Array<const int32_t, 1> channels, Array<const int32_t, 1> positions, int lowest, int64_t span,
                   int least, Array<int64_t, 1> out) {
    const Codes codes(residual, phase, rows, channels, positions);
    const int64_t size = out.shape(0), N = codes.columns(), phases = codes.phase ? kPhases : 1;
    int64_t* counts = out.data();
    bool inside = true;
    {
        nb::gil_scoped_release release;
        std::fill(counts, counts + size, 0);
        for (int64_t r = 0; r < codes.rows; ++r) {
            const int32_t* e = codes.residual + r * N;
            const uint8_t* phase_of = codes.phase ? codes.phase + r * N : nullptr;
            for (int64_t n = 0; n < N; ++n) {
                const int64_t scale = codes.row[r] + codes.column[n] - least;
                const int64_t key = (scale * phases + (phase_of ? phase_of[n] : 0)) * span + (e[n] - lowest);
                if (key < 0 || key >= size)
                    inside = false;
                else
                    ++counts[key];
            }
        }
    }
    if (!inside) throw std::invalid_argument("count_entries: an entry beyond the counters");
}

// out[i] = the parity, the lowest bit, of the state before symbol i; lane i mod `lanes` begins in state 0, and a
// symbol's lowest bit moves it: coding/trellis.py.
void trellis_parities(Array<const int8_t, 1> symbols, int lanes, Array<const uint8_t, 2> transition,
                      Array<uint8_t, 1> out) {
    constexpr int kMost = 64;
    const int64_t size = symbols.shape(0);
    const int64_t states = transition.shape(0);
    if (lanes < 1 || lanes > kMost || static_cast<int64_t>(out.shape(0)) != size || transition.shape(1) != 2 ||
        states < 1 || *std::max_element(transition.data(), transition.data() + 2 * states) >= states)
        throw std::invalid_argument("trellis_parities: the arrays do not fit together");
    const uint8_t* next = transition.data();
    const int8_t* symbol = symbols.data();
    uint8_t* parity = out.data();
    nb::gil_scoped_release release;
    uint8_t state[kMost] = {};
    for (int64_t at = 0; at < size; at += lanes) {
        const int here = static_cast<int>(std::min<int64_t>(lanes, size - at));
        for (int lane = 0; lane < here; ++lane) {
            parity[at + lane] = state[lane] & 1;
            state[lane] = next[state[lane] * 2 + (symbol[at + lane] & 1)];
        }
    }
}

void bind_product(nb::module_& m) {
    m.def("axis_costs", &axis_costs);
    m.def("count_entries", &count_entries);
    m.def("trellis_parities", &trellis_parities);
}
