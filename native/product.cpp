// What codes cost under product-scale densities, summed along an axis: the inner loop of waterfill/coding/costs.py,
// whose NumPy form is the reference.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>

namespace nb = nanobind;

namespace {

template <class Number, size_t Dimensions>
using Array = nb::ndarray<Number, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;

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
    const int lowest = *std::min_element(delta, delta + D), highest = *std::max_element(delta, delta + D);
    int64_t* sums = out.data();
    nb::gil_scoped_release release;
    std::fill(sums, sums + D * length, 0);
    for (int64_t r = 0, n = 0; r < R; ++r)
        for (int64_t c = 0; c < C; ++c)
            for (int64_t p = 0; p < P; ++p, ++n) {
                const int k = rows.data()[r] + channels.data()[c] + positions.data()[p];
                const int h = phases ? phases[n] : 0;
                int64_t* sum = sums + (axis == 0 ? r : axis == 1 ? c : p);
                if (k + lowest >= 0 && k + highest < costs.scales) {
                    const int32_t* here = costs.of(e[n], h) + k;
                    for (int64_t d = 0; d < D; ++d) sum[d * length] += here[delta[d]];
                } else {
                    for (int64_t d = 0; d < D; ++d) sum[d * length] += costs(e[n], k + delta[d], h);
                }
            }
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
    m.def("trellis_parities", &trellis_parities);
}
