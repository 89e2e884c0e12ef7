// The product of two matrices in float32, the same on every machine: waterfill/coding/exact_product.py is the
// specification. Every entry is one chain of products and sums, each rounded; entries side by side fill the registers.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "quantizer/choose.h"

namespace nb = nanobind;
using namespace waterfill;

namespace {

using Factor = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Product = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

constexpr int kTerms = 4;        // added to an entry between its load and its store
constexpr int64_t kStrip = 256;  // columns at a time: of so many, a right factor of rank 64 stays in the cache

// Adds kTerms terms to `size` entries of two rows: left[k] * right[k * stride + c], one after the other.
FOR_THIS_MACHINE
void add_terms(const float* __restrict left, const float* __restrict other, const float* __restrict right,
               int64_t stride, int64_t size, float* __restrict out, float* __restrict out_other) {
    const float *second = right + stride, *third = second + stride, *fourth = third + stride;
    for (int64_t c = 0; c < size; ++c) {
        out[c] = (((out[c] + left[0] * right[c]) + left[1] * second[c]) + left[2] * third[c]) + left[3] * fourth[c];
        out_other[c] = (((out_other[c] + other[0] * right[c]) + other[1] * second[c]) + other[2] * third[c]) +
                       other[3] * fourth[c];
    }
}

// Adds one term to `size` entries of a row.
FOR_THIS_MACHINE
void add_term(float left, const float* __restrict right, int64_t size, float* __restrict out) {
    for (int64_t c = 0; c < size; ++c) out[c] += left * right[c];
}

// Adds the terms from the first to the last to `size` entries of `rows` rows, at most two.
void add_all(const float* left, int64_t rows, const float* right, int64_t rank, int64_t cols, int64_t size,
             float* out) {
    int64_t k = 0;
    for (; rows == 2 && k + kTerms <= rank; k += kTerms)
        add_terms(left + k, left + rank + k, right + k * cols, cols, size, out, out + cols);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t rest = k; rest < rank; ++rest)
            add_term(left[r * rank + rest], right + rest * cols, size, out + r * cols);
}

}  // namespace

// Adds left [rows, rank] times right [rank, cols] to `out`, in ascending order of the rank.
void exact_product(Factor left, Factor right, Product out) {
    const int64_t rows = left.shape(0), rank = left.shape(1), cols = right.shape(1);
    if (static_cast<int64_t>(right.shape(0)) != rank || static_cast<int64_t>(out.shape(0)) != rows ||
        static_cast<int64_t>(out.shape(1)) != cols)
        throw std::invalid_argument("exact_product: the arrays do not fit together");
    const float *from = left.data(), *with = right.data();
    float* to = out.data();
    nb::gil_scoped_release release;
    for (int64_t begin = 0; begin < cols; begin += kStrip)
        for (int64_t r = 0; r < rows; r += 2)
            add_all(from + r * rank, std::min<int64_t>(2, rows - r), with + begin, rank, cols,
                    std::min(kStrip, cols - begin), to + r * cols + begin);
}

void bind_exact_product(nb::module_& m) { m.def("exact_product", &exact_product); }
