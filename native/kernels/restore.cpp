// Rows of a matrix of small codes as floats again: codes times scales, or values of a table.
// waterfill/runtime/reference.py is the specification.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "codes.h"
#include "pool.h"
#include "for_this_machine.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace waterfill;

namespace {

constexpr int64_t kRowsAtOnce = 16;
constexpr int64_t kAlone = 1 << 16;  // so many entries and fewer are not shared out

// The codes of a block, as they are stored.
template <int bits>
ALWAYS_INLINE void separate(const uint8_t* __restrict block, uint8_t* __restrict codes) {
    constexpr int lower = (1 << lower_bits(bits)) - 1, upper = (1 << upper_bits(bits)) - 1;
    for (int line = 0; line < block_cols(bits) / 32; ++line) {
        const Place place = lower_place(bits, 32 * line);
        for (int j = 0; j < 32; ++j) codes[32 * line + j] = block[place.byte + j] >> place.shift & lower;
    }
    if constexpr (upper_bits(bits) > 0)
        for (int line = 0; line < block_cols(bits) / 16; ++line) {
            const Place place = upper_place(bits, 16 * line);
            for (int j = 0; j < 16; ++j)
                codes[16 * line + j] |= (block[place.byte + j] >> place.shift & upper) << lower_bits(bits);
        }
}

// ((code - zero) * scale) * column, each product rounded; columns may be null.
ALWAYS_INLINE void scaled(const uint8_t* __restrict codes, int64_t count, float zero, float scale,
                          const float* __restrict columns, float* __restrict out) {
    if (columns == nullptr)
        for (int64_t j = 0; j < count; ++j) out[j] = (static_cast<float>(codes[j]) - zero) * scale;
    else
        for (int64_t j = 0; j < count; ++j) out[j] = ((static_cast<float>(codes[j]) - zero) * scale) * columns[j];
}

template <int bits>
FOR_THIS_MACHINE void restored(const CodeMatrix& matrix, const float* columns, int64_t row, float* __restrict out) {
    constexpr int64_t each = block_cols(bits);
    const uint8_t* data = matrix.codes + row * matrix.row_bytes();
    alignas(64) uint8_t codes[kBlock];
    for (int64_t begin = 0; begin < matrix.cols; begin += each, data += block_bytes(bits)) {
        const int64_t place = row * matrix.groups + (matrix.groups > 1 ? begin / matrix.group : 0);
        const float zero = matrix.zeros ? matrix.zeros[place] : 1 << (bits - 1);
        separate<bits>(data, codes);
        const float* own = columns == nullptr ? nullptr : columns + begin;
        if (matrix.cols - begin >= each)
            scaled(codes, each, zero, matrix.scales[place], own, out + begin);
        else
            scaled(codes, matrix.cols - begin, zero, matrix.scales[place], own, out + begin);
    }
    if (matrix.starts == nullptr) return;
    const int64_t zero = matrix.zeros ? matrix.zeros[row] : 1 << (bits - 1);  // only one group is corrected
    data = matrix.codes + row * matrix.row_bytes();
    for (int32_t k = matrix.starts[row]; k < matrix.starts[row + 1]; ++k) {
        const int32_t c = matrix.where[k];
        const int64_t code = code_at(bits, data + c / each * block_bytes(bits), c % each) - zero + matrix.values[k];
        out[c] = static_cast<float>(code) * matrix.scales[row];
        if (columns != nullptr) out[c] *= columns[c];
    }
}

template <int bits>
FOR_THIS_MACHINE void looked_up(const uint8_t* data, const float* __restrict table, int64_t cols,
                                float* __restrict out) {
    constexpr int64_t each = block_cols(bits);
    alignas(64) uint8_t codes[kBlock];
    for (int64_t begin = 0; begin < cols; begin += each, data += block_bytes(bits)) {
        separate<bits>(data, codes);
        const int64_t count = std::min(each, cols - begin);
        for (int64_t j = 0; j < count; ++j) out[begin + j] = table[codes[j]];
    }
}

template <class Number>
const Number* at(uintptr_t address) {
    return reinterpret_cast<const Number*>(address);
}

// Calls work(row) for every row.
template <class Work>
void each_row(int64_t rows, int64_t cols, int threads, const Work& work) {
    in_parallel(rows * cols <= kAlone ? 1 : threads, (rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t chunk) {
        const int64_t end = std::min(rows, (chunk + 1) * kRowsAtOnce);
        for (int64_t row = chunk * kRowsAtOnce; row < end; ++row) work(row);
    });
}

// Calls run.template operator()<bits>() for the bits of a code.
template <class Run>
void with_bits(int bits, const Run& run) {
    switch (bits) {
        case 2: return run.template operator()<2>();
        case 3: return run.template operator()<3>();
        case 4: return run.template operator()<4>();
        case 5: return run.template operator()<5>();
        case 6: return run.template operator()<6>();
        case 8: return run.template operator()<8>();
        default: throw std::invalid_argument("no codes of so many bits");
    }
}

struct Restoring {
    const CodeMatrix& matrix;
    const float* columns;
    float* out;
    int threads;

    template <int bits>
    void operator()() const {
        each_row(matrix.rows, matrix.cols, threads,
                 [&](int64_t row) { restored<bits>(matrix, columns, row, out + row * matrix.cols); });
    }
};

struct LookingUp {
    const uint8_t* data;
    const float* table;
    float* out;
    int64_t rows, cols;
    int threads;

    template <int bits>
    void operator()() const {
        const int64_t bytes = (cols + block_cols(bits) - 1) / block_cols(bits) * block_bytes(bits);
        each_row(rows, cols, threads,
                 [&](int64_t row) { looked_up<bits>(data + row * bytes, table, cols, out + row * cols); });
    }
};

}  // namespace

// out [rows, cols], all rows of a matrix of codes. arrays: addresses of out and of the matrix, as in CodeMatrix, with
// the scales of columns or 0 behind the zero points; the caller has checked them. sizes: rows, cols, groups, group.
void codes_restored(std::vector<uintptr_t> arrays, std::vector<int64_t> sizes, int bits, int threads) {
    const CodeMatrix matrix{at<uint8_t>(arrays.at(1)), at<float>(arrays.at(2)),   at<int16_t>(arrays.at(3)),
                            at<int32_t>(arrays.at(5)), at<int32_t>(arrays.at(6)), at<int32_t>(arrays.at(7)),
                            sizes.at(0),               sizes.at(1),               sizes.at(2),
                            sizes.at(3),               bits};
    float* out = const_cast<float*>(at<float>(arrays.at(0)));
    nb::gil_scoped_release unlocked;
    with_bits(bits, Restoring{matrix, at<float>(arrays.at(4)), out, threads});
}

// out [rows, cols]: the values of a table at codes. arrays: addresses of out, of the codes, and of the 2^bits values.
void levels_restored(std::vector<uintptr_t> arrays, std::vector<int64_t> sizes, int bits, int threads) {
    float* out = const_cast<float*>(at<float>(arrays.at(0)));
    const LookingUp work{at<uint8_t>(arrays.at(1)), at<float>(arrays.at(2)), out, sizes.at(0), sizes.at(1), threads};
    nb::gil_scoped_release unlocked;
    with_bits(bits, work);
}

void bind_restore(nb::module_& m) {
    m.def("codes_restored", &codes_restored, "arrays"_a, "sizes"_a, "bits"_a, "threads"_a);
    m.def("levels_restored", &levels_restored, "arrays"_a, "sizes"_a, "bits"_a, "threads"_a);
}
