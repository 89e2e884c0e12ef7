// Costs of codes for waterfill/coding/model/costs.py.
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

void bind_costs(nb::module_& m) {
    m.def("axis_costs", &axis_costs);
}
