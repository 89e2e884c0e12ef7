// Codes by distortion + price * bits: the inner loop of parts/quantizer/code_choice.py, whose NumPy form is
// the reference.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <stdexcept>

#include "choose.h"

namespace nb = nanobind;
using namespace waterfill;

namespace {

using Targets = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Factors = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Means = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Prices = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Weights = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Codes = nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Codes of a row where means are zero, no code escapes and every scale has a table: without a branch, so that the
// compiler vectorizes it. `stride` is the distance from one scale's bits to the next one's.
FOR_THIS_MACHINE
void choose_plain_row(const float* __restrict value, const float* __restrict col_weight,
                      const int32_t* __restrict col_scale, int64_t size, float row_weight, int32_t row_scale,
                      const float* __restrict table, int32_t stride, int32_t* __restrict code) {
    for (int64_t c = 0; c < size; ++c) {
        const int32_t k = row_scale + col_scale[c];
        code[c] = nearest_two_or_zero(value[c], row_weight * col_weight[c], table, (k > 0 ? k : 0) * stride);
    }
}

}  // namespace

// out[r, c] = the code z among the two neighbors of x[r, c] and the mean (where it is near) that has the least
// row_weights[r] * col_weights[c] * (x - z)^2 + bits(z); x in steps, weights in bits per squared step, means in
// eighths of a step.
void choose_codes(Targets x, Factors rows, Factors cols, Means means, Prices prices, Weights row_weights,
                  Weights col_weights, Codes out) {
    const int64_t R = x.shape(0), C = x.shape(1);
    const PriceTables tables{prices.data(), static_cast<int>(prices.shape(0)), static_cast<int>(prices.shape(1))};
    const bool predicted = static_cast<int64_t>(means.shape(0)) == R && R > 0;
    if (static_cast<int64_t>(rows.shape(0)) != R || static_cast<int64_t>(cols.shape(0)) != C ||
        static_cast<int64_t>(row_weights.shape(0)) != R || static_cast<int64_t>(col_weights.shape(0)) != C ||
        static_cast<int64_t>(out.shape(0)) != R || static_cast<int64_t>(out.shape(1)) != C ||
        (predicted && static_cast<int64_t>(means.shape(1)) != C))
        throw std::invalid_argument("choose_codes: the arrays do not fit together");
    const int32_t *col_scale = cols.data(), *row_scale = rows.data(), *mean = means.data();
    const float *col_weight = col_weights.data(), *row_weight = row_weights.data();
    nb::gil_scoped_release release;
    for (int64_t r = 0; r < R; ++r) {
        const float* value = x.data() + r * C;
        int32_t* code = out.data() + r * C;
        if (!predicted && is_plain(value, col_scale, C, row_scale[r], tables.scales)) {
            choose_plain_row(value, col_weight, col_scale, C, row_weight[r], row_scale[r], tables.prices,
                             256 * tables.phases, code);
            continue;
        }
        for (int64_t c = 0; c < C; ++c) {
            const Entry entry = tables.entry(row_scale[r] + col_scale[c], predicted ? mean[r * C + c] : 0);
            code[c] = nearest_two_or_mean(value[c], row_weight[r] * col_weight[c], entry);
        }
    }
}

void bind_choose(nb::module_& m) { m.def("choose_codes", &choose_codes); }
