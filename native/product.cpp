// Code lengths of a matrix under product-scale densities, summed along each axis: the inner loop of
// waterfill/coding/product.py, whose NumPy form is the reference.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace nb = nanobind;

namespace {

using Codes = nb::ndarray<const int32_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Phases = nb::ndarray<const uint8_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Factors = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Prices = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Sums = nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

struct Lengths {
    const float* prices;
    int scales;
    int phases;

    // Bits of residual `e` at scale index `k`, with low bits taken raw where the scale is beyond the last table.
    float operator()(int32_t e, int k, int phase) const {
        int shift = 0;
        if (k >= scales) {
            shift = (k - scales + 8) >> 3;
            e = static_cast<int32_t>((static_cast<int64_t>(e) + (int64_t{1} << (shift - 1))) >> shift);
            k -= 8 * shift;
            phase = 0;
        }
        k = std::max(k, 0);
        const int symbol = (e < -127 || e > 127) ? 128 : (e & 255);
        return prices[(static_cast<int64_t>(k) * phases + phase) * 256 + symbol] + static_cast<float>(shift);
    }
};

}  // namespace

// out[d, :] = bits along one axis (0 rows, 1 channels, 2 positions) when every scale index moves by deltas[d].
void axis_bits(Codes e, Phases phase, Factors rows, Factors channels, Factors positions, Prices prices, Factors deltas,
               int axis, Sums out) {
    const int64_t R = e.shape(0), C = e.shape(1), P = e.shape(2), D = deltas.shape(0);
    const int64_t length = axis == 0 ? R : axis == 1 ? C : P;
    const bool phased = phase.shape(0) == e.shape(0);
    if (rows.shape(0) != e.shape(0) || channels.shape(0) != e.shape(1) || positions.shape(0) != e.shape(2) ||
        static_cast<int64_t>(out.shape(0)) != D || static_cast<int64_t>(out.shape(1)) != length || prices.shape(2) != 256)
        throw std::invalid_argument("axis_bits: the arrays do not fit together");
    const Lengths lengths{prices.data(), static_cast<int>(prices.shape(0)), static_cast<int>(prices.shape(1))};
    const int32_t* codes = e.data();
    const uint8_t* phases = phase.data();
    double* sums = out.data();
    nb::gil_scoped_release release;
    std::fill(sums, sums + D * length, 0.0);
    for (int64_t r = 0, n = 0; r < R; ++r)
        for (int64_t c = 0; c < C; ++c)
            for (int64_t p = 0; p < P; ++p, ++n) {
                const int k = rows.data()[r] + channels.data()[c] + positions.data()[p];
                const int h = phased ? phases[n] : 0;
                const int64_t at = axis == 0 ? r : axis == 1 ? c : p;
                for (int64_t d = 0; d < D; ++d) sums[d * length + at] += lengths(codes[n], k + deltas.data()[d], h);
            }
}

void bind_product(nb::module_& m) { m.def("axis_bits", &axis_bits); }
