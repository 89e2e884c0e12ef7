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
constexpr int kItems = 8;  // at once: their sums fill registers
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

// One item: y [rows] from x [cols].
template <class Index>
FOR_THIS_MACHINE void one(const SparseRows& of, int64_t begin, int64_t end, const float* __restrict x,
                          float* __restrict y) {
    const Index* where = static_cast<const Index*>(of.where);
    for (int64_t r = begin; r < end; ++r) {
        Chains sums = {};
        int64_t k = of.starts[r];
        for (; k + kChains <= of.starts[r + 1]; k += kChains) {
            Chains values;
            std::memcpy(&values, of.values + k, sizeof(values));
            sums += values * gathered(where + k, x);
        }
        const int64_t left = of.starts[r + 1] - k;  // numbers of chains that do not vary keep sums in a register
        if (left > 0) sums[0] += of.values[k] * x[where[k]];
        if (left > 1) sums[1] += of.values[k + 1] * x[where[k + 1]];
        if (left > 2) sums[2] += of.values[k + 2] * x[where[k + 2]];
        y[r] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
}

// kItems items: x [cols, kItems], y [rows, kItems].
template <class Index>
FOR_THIS_MACHINE void several(const SparseRows& of, int64_t begin, int64_t end, const float* __restrict x,
                              float* __restrict y) {
    const Index* where = static_cast<const Index*>(of.where);
    for (int64_t r = begin; r < end; ++r) {
        float sums[kChains][kItems] = {};
        for (int64_t k = of.starts[r], c = 0; k < of.starts[r + 1]; ++k, c = (c + 1) % kChains) {
            const float value = of.values[k];
            const float* from = x + static_cast<int64_t>(where[k]) * kItems;
            for (int i = 0; i < kItems; ++i) sums[c][i] += value * from[i];
        }
        for (int i = 0; i < kItems; ++i) y[r * kItems + i] = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
    }
}

template <class Index>
void product(const SparseRows& of, const float* x, float* y, int64_t batch, int threads) {
    const int64_t chunks = (of.rows + kRowsAtOnce - 1) / kRowsAtOnce;
    if (of.starts[of.rows] * batch <= kAlone) threads = 1;
    const auto end_of = [&](int64_t chunk) { return std::min(of.rows, (chunk + 1) * kRowsAtOnce); };
    if (batch == 1) {
        waterfill::in_parallel(threads, chunks, [&](int64_t chunk) {
            one<Index>(of, chunk * kRowsAtOnce, end_of(chunk), x, y);
        });
        return;
    }
    std::vector<float> turned(of.cols * kItems), found(of.rows * kItems);
    for (int64_t first = 0; first < batch; first += kItems) {
        const int64_t items = std::min<int64_t>(kItems, batch - first);
        for (int64_t c = 0; c < of.cols; ++c)
            for (int64_t i = 0; i < kItems; ++i) turned[c * kItems + i] = i < items ? x[(first + i) * of.cols + c] : 0;
        waterfill::in_parallel(threads, chunks, [&](int64_t chunk) {
            several<Index>(of, chunk * kRowsAtOnce, end_of(chunk), turned.data(), found.data());
        });
        for (int64_t i = 0; i < items; ++i)
            for (int64_t r = 0; r < of.rows; ++r) y[(first + i) * of.rows + r] = found[r * kItems + i];
    }
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
