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
constexpr int kMostAdded = 1024;  // costs of at most 30 bits each that an int32 holds the sum of
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

// Codes [rows, channels, positions] as residuals and phases (or none), and scale indices as sums of three.
struct Codes {
    const int32_t* residual;
    const uint8_t* phase;
    const int32_t *row, *channel, *position;
    int64_t rows, channels, positions;
};

// By how much scale indices move.
struct Deltas {
    const int32_t* delta;
    int64_t count;
    int lowest, highest;
};

// Some of the rows and channels.
struct Part {
    int64_t row, last_row, channel, last_channel;
};

// The costs of neighboring scale indices lie side by side: one addition of a vector does for all moves. sums [kWide] of
// part's row, or [channels, kWide]; kMostAdded entries fit their int32. Entries at the ends of the tables go to `wide`
// [deltas, length of axis].
FOR_THIS_MACHINE
void sum_near(const Codes& codes, const Costs& costs, const Deltas& moves, bool by_row, const Part& part,
              int32_t* __restrict sums, int64_t* __restrict wide) {
    const int64_t length = by_row ? codes.rows : codes.channels;
    Lanes<int32_t> whole{}, next;
    for (int64_t r = part.row; r < part.last_row; ++r)
        for (int64_t c = part.channel; c < part.last_channel; ++c)
            for (int64_t p = 0; p < codes.positions; ++p) {
                const int64_t n = (r * codes.channels + c) * codes.positions + p;
                const int k = codes.row[r] + codes.channel[c] + codes.position[p];
                const int h = codes.phase ? codes.phase[n] : 0;
                if (k + moves.lowest < 0 || k + moves.lowest + kWide > costs.scales) {
                    for (int64_t d = 0; d < moves.count; ++d)
                        wide[d * length + (by_row ? r : c)] += costs(codes.residual[n], k + moves.delta[d], h);
                    continue;
                }
                load(costs.of(codes.residual[n], h) + k + moves.lowest, next);
                if (by_row)
                    whole += next;
                else
                    add(next, sums + c * kWide);
            }
    if (by_row) add(whole, sums);
}

// The same for moves of any size, entry by entry.
void sum_each(const Codes& codes, const Costs& costs, const Deltas& moves, int axis, int64_t length, int64_t* sums) {
    int64_t n = 0;
    for (int64_t r = 0; r < codes.rows; ++r)
        for (int64_t c = 0; c < codes.channels; ++c)
            for (int64_t p = 0; p < codes.positions; ++p, ++n) {
                const int k = codes.row[r] + codes.channel[c] + codes.position[p];
                const int h = codes.phase ? codes.phase[n] : 0;
                int64_t* sum = sums + (axis == 0 ? r : axis == 1 ? c : p);
                if (k + moves.lowest >= 0 && k + moves.highest < costs.scales) {
                    const int32_t* here = costs.of(codes.residual[n], h) + k;
                    for (int64_t d = 0; d < moves.count; ++d) sum[d * length] += here[moves.delta[d]];
                } else {
                    for (int64_t d = 0; d < moves.count; ++d)
                        sum[d * length] += costs(codes.residual[n], k + moves.delta[d], h);
                }
            }
}

}  // namespace

// out[d, :] = costs along one axis (0 rows, 1 channels, 2 positions) when every scale index moves by deltas[d].
void axis_costs(Array<const int32_t, 3> residual, Array<const uint8_t, 3> phase, Array<const int32_t, 1> rows,
                Array<const int32_t, 1> channels, Array<const int32_t, 1> positions, Array<const int32_t, 3> table,
                Array<const int32_t, 1> deltas, int axis, int most_scale, Array<int64_t, 2> out) {
    const int64_t R = residual.shape(0), C = residual.shape(1), P = residual.shape(2), D = deltas.shape(0);
    const int64_t length = axis == 0 ? R : axis == 1 ? C : P;
    if (static_cast<int64_t>(rows.shape(0)) != R || static_cast<int64_t>(channels.shape(0)) != C ||
        static_cast<int64_t>(positions.shape(0)) != P || static_cast<int64_t>(out.shape(0)) != D || D == 0 ||
        static_cast<int64_t>(out.shape(1)) != length || table.shape(1) != 256)
        throw std::invalid_argument("axis_costs: the arrays do not fit together");
    const Costs costs{table.data(), static_cast<int>(table.shape(2)), most_scale};
    const int32_t *delta = deltas.data(), *e = residual.data();
    const uint8_t* phases = phase.size() == residual.size() ? phase.data() : nullptr;
    const Deltas moves{delta, D, *std::min_element(delta, delta + D), *std::max_element(delta, delta + D)};
    const Codes codes{e, phases, rows.data(), channels.data(), positions.data(), R, C, P};
    int64_t* sums = out.data();
    nb::gil_scoped_release release;
    std::fill(sums, sums + D * length, 0);
    if (axis == 2 || moves.highest - moves.lowest >= kWide) {
        sum_each(codes, costs, moves, axis, length, sums);
        return;
    }
    const bool by_row = axis == 0;
    const int64_t some = std::max<int64_t>(1, kMostAdded / std::max<int64_t>(1, P));
    std::vector<int32_t> near(kWide * (by_row ? 1 : C));
    for (int64_t r = 0; r < R; r += by_row ? 1 : some)
        for (int64_t c = 0; c < C; c += by_row ? some : C) {
            const Part part{r, by_row ? r + 1 : std::min(r + some, R), c, by_row ? std::min(c + some, C) : C};
            std::fill(near.begin(), near.end(), 0);
            sum_near(codes, costs, moves, by_row, part, near.data(), sums);
            for (int64_t i = 0; i < (by_row ? 1 : C); ++i)
                for (int64_t d = 0; d < D; ++d)
                    sums[d * length + r * by_row + i] += near[i * kWide + delta[d] - moves.lowest];
        }
}

// counts[(scale * phases + phase) * span + residual] of entries, with scale indices counted from `least` and residuals
// from `lowest`.
void count_entries(Array<const int32_t, 3> residual, Array<const uint8_t, 3> phase, Array<const int32_t, 1> rows,
                   Array<const int32_t, 1> channels, Array<const int32_t, 1> positions, int lowest, int64_t span,
                   int least, Array<int64_t, 1> out) {
    const int64_t R = residual.shape(0), C = residual.shape(1), P = residual.shape(2), size = out.shape(0);
    const bool phased = phase.size() > 0;
    if (static_cast<int64_t>(rows.shape(0)) != R || static_cast<int64_t>(channels.shape(0)) != C ||
        static_cast<int64_t>(positions.shape(0)) != P || (phased && phase.size() != residual.size()))
        throw std::invalid_argument("count_entries: the arrays do not fit together");
    const int32_t* e = residual.data();
    int64_t* counts = out.data();
    bool inside = true;
    {
        nb::gil_scoped_release release;
        std::fill(counts, counts + size, 0);
        for (int64_t r = 0, n = 0; r < R; ++r)
            for (int64_t c = 0; c < C; ++c)
                for (int64_t p = 0; p < P; ++p, ++n) {
                    int64_t key = rows.data()[r] + channels.data()[c] + positions.data()[p] - least;
                    if (phased) key = key * kPhases + phase.data()[n];
                    key = key * span + (e[n] - lowest);
                    if (key < 0 || key >= size)
                        inside = false;
                    else
                        ++counts[key];
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
