// Products of inputs with a matrix of small codes: inputs become integers, integers are multiplied and added up
// exactly, scales come last. So every machine finds the same; waterfill/runtime/reference.py is the specification.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "for_this_machine.h"
#include "pool.h"
#include "product.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace waterfill;

namespace {

// Integer of the largest input, for 1, 2 and 3 bytes.
constexpr float kLargest[] = {0, 127, 127 * 256, 127 * 256 * 256};
constexpr float kTiny = 1e-33f;          // inputs that are not above are zeros
constexpr float kRounding = 8388608.0f;  // 2^23: added to a smaller magnitude and taken away, it rounds to an integer
// Products of so many entries and fewer are not shared out: they take less than 100 microseconds, and to wake a thread
// takes 10.
constexpr int64_t kAlone = 1 << 20;

const ProductSet* const kSets[] = {&kProductVnni, &kProductAvx2, &kProductPortable};

const ProductSet& product_set(const std::string& name) {
    for (const ProductSet* set : kSets)
        if (set->available() && (name.empty() || name == set->name)) return *set;
    throw std::invalid_argument("no instruction set " + name + " on this machine");
}

// x times the column scales, into `scaled`; the largest magnitude, and NaN if any is not finite.
FOR_THIS_MACHINE
float scaled_inputs(const float* __restrict x, const float* __restrict columns, int64_t cols,
                    float* __restrict scaled) {
    if (columns != nullptr)
        for (int64_t c = 0; c < cols; ++c) scaled[c] = x[c] * columns[c];
    else
        std::memcpy(scaled, x, cols * sizeof(float));
    int32_t most = 0;  // magnitudes compare like their bits, and NaN is above all
    for (int64_t c = 0; c < cols; ++c) {
        int32_t bits;
        std::memcpy(&bits, scaled + c, sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    float largest;
    std::memcpy(&largest, &most, sizeof largest);
    return largest <= FLT_MAX ? largest : std::numeric_limits<float>::quiet_NaN();
}

template <class Number>
FOR_THIS_MACHINE
int64_t sum_of(const Number* __restrict begin, const Number* __restrict end) {
    int64_t sum = 0;
    while (begin < end) {
        const int64_t count = std::min<int64_t>(end - begin, 1 << 15);  // whose sum 32 bits hold
        int32_t some = 0;
        for (int64_t i = 0; i < count; ++i) some += begin[i];
        sum += some;
        begin += count;
    }
    return sum;
}

// The integer nearest to x, ties to even, for magnitudes below 2^23.
ALWAYS_INLINE int32_t nearest(float x) {
    const float away = std::copysign(kRounding, x);
    return static_cast<int32_t>((x + away) - away);
}

// Integers nearest to scaled * factor and their signed bytes; null for bytes that there are not.
FOR_THIS_MACHINE
void integers(const float* __restrict scaled, float factor, int64_t cols, int16_t* __restrict upper,
              int8_t* __restrict first, int8_t* __restrict second, int8_t* __restrict third) {
    if (third == nullptr)
        for (int64_t c = 0; c < cols; ++c) upper[c] = static_cast<int16_t>(nearest(scaled[c] * factor));
    else
        for (int64_t c = 0; c < cols; ++c) {
            const int32_t whole = nearest(scaled[c] * factor), above = (whole + 128) >> 8;
            upper[c] = static_cast<int16_t>(above);
            third[c] = static_cast<int8_t>(whole - 256 * above);
        }
    if (second == nullptr)
        for (int64_t c = 0; c < cols; ++c) first[c] = static_cast<int8_t>(upper[c]);
    else
        for (int64_t c = 0; c < cols; ++c) {
            first[c] = static_cast<int8_t>((upper[c] + 128) >> 8);
            second[c] = static_cast<int8_t>(upper[c] - 256 * ((upper[c] + 128) >> 8));
        }
}

// Outputs of one tile.
void tile_product(const Tile& tile, const CodeMatrix& matrix, const Inputs& inputs, int64_t row, int64_t item,
                  float* y) {
    double sums[4] = {};
    const int64_t blocks = matrix.blocks();
    const int64_t per_group = matrix.groups > 1 ? matrix.group / block_cols(matrix.bits) : blocks;
    for (int64_t g = 0; g < matrix.groups; ++g) {
        int64_t totals[4] = {};
        tile.dot(matrix, inputs, row, item, g * per_group, std::min(blocks, (g + 1) * per_group), totals);
        for (int r = 0; r < tile.rows; ++r) {
            const int64_t place = (row + r) * matrix.groups + g;
            const int64_t zero = matrix.zeros ? matrix.zeros[place] : 1 << (matrix.bits - 1);
            for (int b = 0; b < tile.items; ++b) {
                int64_t total = totals[r * tile.items + b] - zero * inputs.sums[(item + b) * matrix.groups + g];
                if (matrix.starts) total += corrected(matrix, row + r, inputs, item + b);
                sums[r * tile.items + b] += static_cast<double>(matrix.scales[place]) * static_cast<double>(total);
            }
        }
    }
    for (int r = 0; r < tile.rows; ++r)
        for (int b = 0; b < tile.items; ++b)
            y[(item + b) * matrix.rows + row + r] =
                static_cast<float>(sums[r * tile.items + b] * inputs.scales[item + b]);
}

}  // namespace

void CodesProduct::prepare(const CodeMatrix& matrix, const float* x, const float* columns, int64_t batch, int bytes,
                           const std::string& isa) {
    if (matrix.cols > kMostCols) throw std::invalid_argument("codes_product: too many columns");
    if (bytes < 1 || bytes > kMostBytes) throw std::invalid_argument("codes_product: inputs of other bytes");
    const ProductSet& set = product_set(isa);
    set.tiles(matrix.bits, bytes, tiles_);
    const bool plain = batch == 1 && matrix.groups == 1 && matrix.zeros == nullptr && matrix.cols <= kNarrow;
    const bool many = batch >= kMany && matrix.cols <= kNarrow && (matrix.groups == 1 || matrix.group % kLine == 0);
    four_rows_ = plain && set.four_rows ? set.four_rows(matrix.bits, bytes) : nullptr;
    if (many && set.many_inputs) four_rows_ = set.many_inputs(matrix.bits, bytes);
    matrix_ = matrix;
    const int64_t padded = (matrix.cols + kBlock - 1) / kBlock * kBlock;
    inputs_ = {};
    upper_.resize(batch * padded);
    for (int k = 0; k < bytes; ++k) {
        bytes_[k].resize(batch * padded);
        inputs_.bytes[k] = bytes_[k].data();
    }
    sums_.resize(batch * matrix.groups);
    scales_.resize(batch);
    scaled_.resize(matrix.cols);
    for (int64_t i = 0; i < batch; ++i) {
        const float largest = scaled_inputs(x + i * matrix.cols, columns, matrix.cols, scaled_.data());
        const float factor = largest > kTiny ? kLargest[bytes] / largest : 0.0f;
        scales_[i] = std::isnan(largest) ? largest : static_cast<double>(largest) / kLargest[bytes];
        const int64_t used = std::isnan(largest) ? 0 : matrix.cols;
        int16_t* upper = upper_.data() + i * padded;
        int8_t* own[kMostBytes] = {};
        for (int k = 0; k < bytes; ++k) own[k] = bytes_[k].data() + i * padded;
        integers(scaled_.data(), factor, used, upper, own[0], own[1], own[2]);
        std::fill(upper + used, upper + padded, int16_t{0});
        for (int k = 0; k < bytes; ++k) std::fill(own[k] + used, own[k] + padded, int8_t{0});
        for (int64_t g = 0; g < matrix.groups; ++g) {
            const int64_t begin = g * matrix.group, end = std::min(matrix.cols, (g + 1) * matrix.group);
            int64_t& sum = sums_[i * matrix.groups + g];
            sum = sum_of(upper + begin, upper + end);
            if (bytes == 3) sum = 256 * sum + sum_of(own[2] + begin, own[2] + end);
        }
    }
    inputs_.upper = upper_.data();
    inputs_.sums = sums_.data();
    inputs_.scales = scales_.data();
    inputs_.batch = batch;
    inputs_.padded = padded;
}

void CodesProduct::rows(int64_t begin, int64_t end, float* y) const {
    const CodeMatrix& matrix = matrix_;
    const Inputs& inputs = inputs_;
    if (four_rows_) begin = four_rows_(matrix, inputs, begin, end, y);
    for (int64_t row = begin, height; row < end; row += height) {
        height = end - row >= 4 && inputs.batch == 1 ? 4 : end - row >= 2 && inputs.batch > 1 ? 2 : 1;
        for (int64_t item = 0, width; item < inputs.batch; item += width) {
            const Tile* fitting = tiles_;
            while (fitting->rows > height || fitting->items > inputs.batch - item) ++fitting;
            width = fitting->items;
            for (int64_t r = 0; r < height; r += fitting->rows)
                tile_product(*fitting, matrix, inputs, row + r, item, y);
        }
    }
}

void CodesProduct::run(int threads, float* y) {
    const int64_t rows = matrix_.rows, chunks = (rows + kRowsAtOnce - 1) / kRowsAtOnce;
    if (rows * matrix_.cols * inputs_.batch <= kAlone) {
        this->rows(0, rows, y);
    } else {
        in_parallel(threads, chunks, [&](int64_t chunk) {
            const int64_t begin = chunk * kRowsAtOnce;
            this->rows(begin, std::min(rows, begin + kRowsAtOnce), y);
        });
    }
    if (inputs_.batch * matrix_.cols > kKept) *this = CodesProduct();
}

// y [batch, rows] = x [batch, cols] times a matrix of codes; all are addresses of contiguous arrays, as in CodeMatrix,
// which the caller has checked. columns: [cols] or 0.
void codes_product(std::vector<uintptr_t> arrays, std::vector<int64_t> sizes, int bits, int bytes, int threads,
                   const std::string& isa) {
    const CodeMatrix matrix = code_matrix(arrays.data() + 2, sizes.data() + 1, bits);
    const float *x = at<float>(arrays.at(0)), *columns = at<float>(arrays.at(5));
    float* y = const_cast<float*>(at<float>(arrays.at(1)));
    nb::gil_scoped_release unlocked;
    static thread_local CodesProduct product;
    product.prepare(matrix, x, columns, sizes.at(0), bytes, isa);
    product.run(threads, y);
}

std::vector<std::string> product_sets() {
    std::vector<std::string> names;
    for (const ProductSet* set : kSets)
        if (set->available()) names.emplace_back(set->name);
    return names;
}

void bind_product(nb::module_& m) {
    m.def("codes_product", &codes_product, "arrays"_a, "sizes"_a, "bits"_a, "bytes"_a, "threads"_a, "isa"_a = "");
    m.def("product_sets", &product_sets);
}
