// Codes by distortion + price * bits: the inner loop of waterfill/parts/choose.py, whose NumPy form is the reference.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>

namespace nb = nanobind;

namespace {

using Targets = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Factors = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Means = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Prices = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Weights = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Codes = nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

struct Entry {
    const float* prices;  // [256], of the entry's scale and phase
    int shift;
    int32_t whole;  // the mean's nearest integer
    bool mirrored;

    float bits(int32_t code) const {
        int32_t e = mirrored ? whole - code : code - whole;
        if (shift) e = (e + (1 << (shift - 1))) >> shift;
        return prices[(e < -127 || e > 127) ? 128 : (e & 255)] + static_cast<float>(shift);
    }
};

// The choice where the mean is zero and no code escapes; bits [256] by code & 255.
int32_t nearest_two_or_zero(float value, float weight, const float* bits) {
    const float floor = std::floor(value);
    const int32_t low = static_cast<int32_t>(floor);
    const float below = value - floor, above = value - (floor + 1.0f);
    const float at_low = weight * below * below + bits[static_cast<uint8_t>(low)];
    const float at_high = weight * above * above + bits[static_cast<uint8_t>(low + 1)];
    const int32_t best = at_high < at_low ? low + 1 : low;
    const float at_zero = weight * value * value + bits[0];
    return std::abs(value) < 3.0f && at_zero < std::min(at_low, at_high) ? 0 : best;
}

}  // namespace

// out[r, c] = the code z among the two neighbors of x[r, c] and the mean (where it is near) that has the least
// row_weights[r] * col_weights[c] * (x - z)^2 + bits(z); x in steps, weights in bits per squared step, means in eighths of a step.
void choose_codes(Targets x, Factors rows, Factors cols, Means means, Prices prices, Weights row_weights,
                  Weights col_weights, Codes out) {
    const int64_t R = x.shape(0), C = x.shape(1);
    const int scales = static_cast<int>(prices.shape(0)), phases = static_cast<int>(prices.shape(1));
    const bool predicted = static_cast<int64_t>(means.shape(0)) == R && R > 0;
    if (static_cast<int64_t>(rows.shape(0)) != R || static_cast<int64_t>(cols.shape(0)) != C ||
        static_cast<int64_t>(row_weights.shape(0)) != R ||
        static_cast<int64_t>(col_weights.shape(0)) != C || static_cast<int64_t>(out.shape(0)) != R ||
        static_cast<int64_t>(out.shape(1)) != C || (predicted && static_cast<int64_t>(means.shape(1)) != C))
        throw std::invalid_argument("choose_codes: the arrays do not fit together");
    nb::gil_scoped_release release;
    for (int64_t r = 0; r < R; ++r) {
        for (int64_t c = 0; c < C; ++c) {
            const float value = x.data()[r * C + c];
            const float weight = row_weights.data()[r] * col_weights.data()[c];
            int k = rows.data()[r] + cols.data()[c];
            int shift = 0, phase = 0;
            int32_t whole = 0;
            bool mirrored = false;
            if (predicted) {
                const int32_t mean = means.data()[r * C + c];
                whole = (mean + 4) >> 3;
                phase = mean - whole * 8;
                mirrored = phase < 0;
                phase = std::abs(phase);
            }
            if (k >= scales) {
                shift = (k - scales + 8) >> 3;
                k -= 8 * shift;
                phase = 0;
            }
            k = std::max(k, 0);
            if (!predicted && shift == 0 && std::abs(value) < 126.0f) {  // nearly all entries of a plain matrix
                out.data()[r * C + c] = nearest_two_or_zero(value, weight, prices.data() + int64_t{256} * k * phases);
                continue;
            }
            const Entry entry{prices.data() + (static_cast<int64_t>(k) * phases + phase) * 256, shift, whole, mirrored};
            const int32_t low = static_cast<int32_t>(std::floor(value));
            int32_t best = low;
            float least = weight * (value - static_cast<float>(low)) * (value - static_cast<float>(low)) + entry.bits(low);
            const auto consider = [&](int32_t code) {
                const float gap = value - static_cast<float>(code);
                const float total = weight * gap * gap + entry.bits(code);
                if (total < least) least = total, best = code;
            };
            consider(low + 1);
            if (whole != low && whole != low + 1 && std::abs(value - static_cast<float>(whole)) < 3.0f) consider(whole);
            out.data()[r * C + c] = best;
        }
    }
}

void bind_choose(nb::module_& m) { m.def("choose_codes", &choose_codes); }
