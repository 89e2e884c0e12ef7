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

// std::floor is a function call on machines older than SSE 4.1, which the portable build must run on.
inline int32_t floor_of(float value) {
    const int32_t cut = static_cast<int32_t>(value);
    return cut - (value < static_cast<float>(cut));
}

#if defined(__x86_64__) && defined(__linux__) && __GNUC__ >= 12 && !defined(__clang__)
#define FOR_THIS_MACHINE __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define FOR_THIS_MACHINE
#endif

// Codes of a row where means are zero, no code escapes and every scale has a table: without a branch, so that the
// compiler vectorizes it. `stride` is the distance from one scale's bits to the next one's.
FOR_THIS_MACHINE
void choose_plain_row(const float* __restrict value, const float* __restrict col_weight,
                      const int32_t* __restrict col_scale, int64_t size, float row_weight, int32_t row_scale,
                      const float* __restrict table, int32_t stride, int32_t* __restrict code) {
    for (int64_t c = 0; c < size; ++c) {
        const float v = value[c], weight = row_weight * col_weight[c];
        const int32_t k = row_scale + col_scale[c], at = (k > 0 ? k : 0) * stride;
        const int32_t cut = static_cast<int32_t>(v), low = cut - (v < static_cast<float>(cut) ? 1 : 0);
        const float below = v - static_cast<float>(low), above = v - static_cast<float>(low + 1);
        const float at_low = weight * below * below + table[at + (low & 255)];
        const float at_high = weight * above * above + table[at + ((low + 1) & 255)];
        const float at_zero = weight * v * v + table[at];
        const int32_t best = at_high < at_low ? low + 1 : low;
        const float least = at_high < at_low ? at_high : at_low;
        code[c] = (at_zero < least) & (v < 3.0f) & (v > -3.0f) ? 0 : best;
    }
}

// Whether `choose_plain_row` may be used for a row.
bool is_plain(const float* value, const int32_t* col_scale, int64_t size, int32_t row_scale, int scales) {
    float largest = 0;
    int32_t widest = INT32_MIN;
    for (int64_t c = 0; c < size; ++c) {
        largest = std::max(largest, std::abs(value[c]));
        widest = std::max(widest, col_scale[c]);
    }
    return largest < 126.0f && row_scale + widest < scales;
}

// The choice under a predicted mean (in eighths of a step) or beyond the tables.
int32_t nearest_two_or_mean(float value, float weight, const Entry& entry) {
    int32_t best = floor_of(value);
    float least = INFINITY;
    for (const int32_t code : {best, best + 1, entry.whole}) {
        const float gap = value - static_cast<float>(code);
        if (code == entry.whole && std::abs(gap) >= 3.0f) continue;
        const float total = weight * gap * gap + entry.bits(code);
        if (total < least) least = total, best = code;
    }
    return best;
}

}  // namespace

// out[r, c] = the code z among the two neighbors of x[r, c] and the mean (where it is near) that has the least
// row_weights[r] * col_weights[c] * (x - z)^2 + bits(z); x in steps, weights in bits per squared step, means in
// eighths of a step.
void choose_codes(Targets x, Factors rows, Factors cols, Means means, Prices prices, Weights row_weights,
                  Weights col_weights, Codes out) {
    const int64_t R = x.shape(0), C = x.shape(1);
    const int scales = static_cast<int>(prices.shape(0)), phases = static_cast<int>(prices.shape(1));
    const bool predicted = static_cast<int64_t>(means.shape(0)) == R && R > 0;
    if (static_cast<int64_t>(rows.shape(0)) != R || static_cast<int64_t>(cols.shape(0)) != C ||
        static_cast<int64_t>(row_weights.shape(0)) != R || static_cast<int64_t>(col_weights.shape(0)) != C ||
        static_cast<int64_t>(out.shape(0)) != R || static_cast<int64_t>(out.shape(1)) != C ||
        (predicted && static_cast<int64_t>(means.shape(1)) != C))
        throw std::invalid_argument("choose_codes: the arrays do not fit together");
    const int32_t *col_scale = cols.data(), *row_scale = rows.data(), *mean = means.data();
    const float *table = prices.data(), *col_weight = col_weights.data(), *row_weight = row_weights.data();
    nb::gil_scoped_release release;
    for (int64_t r = 0; r < R; ++r) {
        const float* value = x.data() + r * C;
        int32_t* code = out.data() + r * C;
        if (!predicted && is_plain(value, col_scale, C, row_scale[r], scales)) {
            choose_plain_row(value, col_weight, col_scale, C, row_weight[r], row_scale[r], table, 256 * phases, code);
            continue;
        }
        for (int64_t c = 0; c < C; ++c) {
            const float weight = row_weight[r] * col_weight[c];
            int k = row_scale[r] + col_scale[c];
            int shift = 0, phase = 0;
            int32_t whole = 0;
            if (predicted) {
                whole = (mean[r * C + c] + 4) >> 3;
                phase = mean[r * C + c] - whole * 8;
            }
            const bool mirrored = phase < 0;
            if (k >= scales) {
                shift = (k - scales + 8) >> 3;
                k -= 8 * shift;
                phase = 0;
            }
            const int64_t place = int64_t{std::max(k, 0)} * phases + std::abs(phase);
            code[c] = nearest_two_or_mean(value[c], weight, {table + place * 256, shift, whole, mirrored});
        }
    }
}

void bind_choose(nb::module_& m) { m.def("choose_codes", &choose_codes); }
