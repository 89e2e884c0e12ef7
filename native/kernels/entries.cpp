// Products of inputs with a sparse matrix: the products of a row are added up in four chains, whatever the batch.
// waterfill/runtime/reference.py is the specification.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "entries.h"
#include "for_this_machine.h"
#include "pool.h"

namespace nb = nanobind;
using namespace nb::literals;
using waterfill::SparseRows;

namespace {

constexpr int kChains = 4;
constexpr int kFew = 8, kMany = 16;  // items at once: their sums fill registers
constexpr int64_t kRowsAtOnce = 64;
constexpr int64_t kAlone = 1 << 14;  // products of so many entries and fewer are not shared out

typedef float Chains __attribute__((vector_size(kChains * sizeof(float))));

// What x has in the next kChains columns. Narrow columns are read in one go: one load in the place of four.
ALWAYS_INLINE Chains gathered(const uint16_t* where, const float* x) {
    uint64_t four;
    std::memcpy(&four, where, sizeof(four));  // the first in its lowest bits
    return Chains{x[four & 0xffff], x[four >> 16 & 0xffff], x[four >> 32 & 0xffff], x[four >> 48]};
}

ALWAYS_INLINE Chains gathered(const int32_t* where, const float* x) {
    return Chains{x[where[0]], x[where[1]], x[where[2]], x[where[3]]};
}

// The products of the next kChains entries.
template <class Index>
ALWAYS_INLINE Chains products(const float* values, const Index* where, const float* x) {
    Chains own;
    std::memcpy(&own, values, sizeof(own));
    return own * gathered(where, x);
}

// One item: y [rows] from x [cols]. Two steps at a time: a shorter loop takes a quarter longer where it lies badly.
template <class Index>
FOR_THIS_MACHINE void one(const SparseRows& of, int64_t begin, int64_t end, const float* __restrict x,
                          float* __restrict y) {
    const Index* where = static_cast<const Index*>(of.where);
    for (int64_t r = begin; r < end; ++r) {
        Chains sums = {};
        int64_t k = of.starts[r];
        for (; k + 2 * kChains <= of.starts[r + 1]; k += 2 * kChains) {
            sums += products(of.values + k, where + k, x);
            sums += products(of.values + k + kChains, where + k + kChains, x);
        }
        for (; k + kChains <= of.starts[r + 1]; k += kChains) sums += products(of.values + k, where + k, x);
        const int64_t left = of.starts[r + 1] - k;  // numbers of chains that do not vary keep sums in a register
        if (left > 0) sums[0] += of.values[k] * x[where[k]];
        if (left > 1) sums[1] += of.values[k + 1] * x[where[k + 1]];
        if (left > 2) sums[2] += of.values[k + 2] * x[where[k + 2]];
        y[r] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
}

// So many items: x [cols, Count], y [rows, Count].
template <class Index, int Count>
FOR_THIS_MACHINE void several(const SparseRows& of, int64_t begin, int64_t end, const float* __restrict x,
                              float* __restrict y) {
    typedef float Items __attribute__((vector_size(Count * sizeof(float))));
    const Index* where = static_cast<const Index*>(of.where);
    const auto product = [&](int64_t k) {
        Items given;
        std::memcpy(&given, x + static_cast<int64_t>(where[k]) * Count, sizeof(given));
        return of.values[k] * given;
    };
    for (int64_t r = begin; r < end; ++r) {
        Items sums[kChains] = {};
        int64_t k = of.starts[r];
        for (; k + kChains <= of.starts[r + 1]; k += kChains) {
            sums[0] += product(k);
            sums[1] += product(k + 1);
            sums[2] += product(k + 2);
            sums[3] += product(k + 3);
        }
        const int64_t left = of.starts[r + 1] - k;  // numbers of chains that do not vary keep sums in registers
        if (left > 0) sums[0] += product(k);
        if (left > 1) sums[1] += product(k + 1);
        if (left > 2) sums[2] += product(k + 2);
        const Items all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        std::memcpy(y + r * Count, &all, sizeof(all));
    }
}

// Rows from `begin` up to before `end`, in pieces that threads share.
template <class Rows>
void in_pieces(const SparseRows& of, int64_t batch, int threads, const Rows& rows) {
    if (of.starts[of.rows] * batch <= kAlone) threads = 1;
    waterfill::in_parallel(threads, (of.rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t piece) {
        rows(piece * kRowsAtOnce, std::min(of.rows, (piece + 1) * kRowsAtOnce));
    });
}

template <class Index, int Count>
void product_of_several(const SparseRows& of, const float* x, float* y, int64_t batch, int threads) {
    std::vector<float> turned(of.cols * Count), found(of.rows * Count);
    for (int64_t first = 0; first < batch; first += Count) {
        const int64_t items = std::min<int64_t>(Count, batch - first);
        for (int64_t c = 0; c < of.cols; ++c)
            for (int64_t i = 0; i < Count; ++i) turned[c * Count + i] = i < items ? x[(first + i) * of.cols + c] : 0;
        in_pieces(of, batch, threads, [&](int64_t begin, int64_t end) {
            several<Index, Count>(of, begin, end, turned.data(), found.data());
        });
        for (int64_t i = 0; i < items; ++i)
            for (int64_t r = 0; r < of.rows; ++r) y[(first + i) * of.rows + r] = found[r * Count + i];
    }
}

template <class Index>
void product(const SparseRows& of, const float* x, float* y, int64_t batch, int threads) {
    if (batch == 1)
        in_pieces(of, 1, threads, [&](int64_t begin, int64_t end) { one<Index>(of, begin, end, x, y); });
    else if (batch <= kFew)
        product_of_several<Index, kFew>(of, x, y, batch, threads);
    else
        product_of_several<Index, kMany>(of, x, y, batch, threads);
}

}  // namespace

void waterfill::entries_rows(const SparseRows& of, int64_t begin, int64_t end, const float* x, float* y) {
    of.narrow ? one<uint16_t>(of, begin, end, x, y) : one<int32_t>(of, begin, end, x, y);
}

// y [batch, rows] = x [batch, cols] times a sparse matrix. places: addresses of x, y, starts (int64), where (uint16 if
// `narrow`, else int32) and values, which the caller has checked. sizes: batch, rows, cols.
void entries_product(std::vector<uintptr_t> places, std::vector<int64_t> sizes, bool narrow, int threads) {
    const SparseRows of{reinterpret_cast<const int64_t*>(places.at(2)), reinterpret_cast<const void*>(places.at(3)),
                        reinterpret_cast<const float*>(places.at(4)), sizes.at(1), sizes.at(2), narrow};
    const float* x = reinterpret_cast<const float*>(places.at(0));
    float* y = reinterpret_cast<float*>(places.at(1));
    nb::gil_scoped_release unlocked;
    if (narrow)
        product<uint16_t>(of, x, y, sizes.at(0), threads);
    else
        product<int32_t>(of, x, y, sizes.at(0), threads);
}

void bind_entries(nb::module_& m) {
    m.def("entries_product", &entries_product, "places"_a, "sizes"_a, "narrow"_a, "threads"_a);
}
