// Costs of codes for waterfill/coding/costs.py, and the parities along a trellis for waterfill/coding/trellis.py.
#include "costs.h"

namespace nb = nanobind;
using namespace waterfill;

// out[d, :] = costs along one axis (0 rows, 1 channels, 2 positions) when every scale index moves by deltas[d].
void axis_costs(Array<const int32_t, 3> residual, Array<const uint8_t, 3> phase, Array<const int32_t, 1> rows,
                Array<const int32_t, 1> channels, Array<const int32_t, 1> positions, Array<const int32_t, 3> table,
                Array<const int32_t, 1> deltas, int axis, int most_scale, Array<int64_t, 2> out) {
    const Codes codes(residual, phase, rows, channels, positions);
    const int64_t D = deltas.shape(0);
    const int64_t length = axis == 0 ? codes.rows : axis == 1 ? codes.channels : codes.positions;
    if (static_cast<int64_t>(out.shape(0)) != D || D == 0 || static_cast<int64_t>(out.shape(1)) != length ||
        table.shape(1) != 256)
        throw std::invalid_argument("axis_costs: the arrays do not fit together");
    const Costs costs{table.data(), static_cast<int>(table.shape(2)), most_scale};
    const int32_t* delta = deltas.data();
    const Deltas moves{delta, D, *std::min_element(delta, delta + D), *std::max_element(delta, delta + D)};
    nb::gil_scoped_release release;
    sum_along(codes, costs, moves, axis, out.data());
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
