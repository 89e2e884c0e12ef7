// Products of inputs with a matrix of small codes: inputs become integers, integers are multiplied and added up
// exactly, scales come last. So every machine finds the same; waterfill/runtime/reference.py is the specification.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "codes.h"
#include "pool.h"
#include "for_this_machine.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace waterfill;

namespace {

constexpr float kLargest[] = {0, 127, 127 * 256};  // integer of the largest input, for 1 and 2 bytes
constexpr float kTiny = 1e-33f;                    // inputs that are not above are zeros
constexpr float kRounding = 12582912.0f;           // 1.5 * 2^23: added and taken away, it rounds to the nearest integer
constexpr int64_t kRowsAtOnce = 32;
constexpr int64_t kKept = 1 << 22;  // inputs for which memory is kept from call to call
constexpr int64_t kAlone = 1 << 16;  // products of codes with so many entries and fewer are not shared out

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

// Integers nearest to scaled * factor, ties to even, and their two bytes: 256 high + low.
FOR_THIS_MACHINE
void integers(const float* __restrict scaled, float factor, int64_t cols, int16_t* __restrict whole,
              int8_t* __restrict high, int8_t* __restrict low) {
    for (int64_t c = 0; c < cols; ++c) whole[c] = static_cast<int16_t>((scaled[c] * factor + kRounding) - kRounding);
    if (low == nullptr)
        for (int64_t c = 0; c < cols; ++c) high[c] = static_cast<int8_t>(whole[c]);
    else
        for (int64_t c = 0; c < cols; ++c) {
            high[c] = static_cast<int8_t>((whole[c] + 128) >> 8);
            low[c] = static_cast<int8_t>(whole[c] - 256 * ((whole[c] + 128) >> 8));
        }
}

// Inputs as integers; kept by each thread from call to call.
class Quantized {
public:
    void prepare(const CodeMatrix& matrix, const float* x, const float* columns, int64_t batch, int bytes) {
        padded_ = (matrix.cols + kBlock - 1) / kBlock * kBlock;
        whole_.assign(batch * padded_, 0);
        high_.assign(batch * padded_, 0);
        low_.assign(bytes == 2 ? batch * padded_ : 0, 0);
        sums_.resize(batch * matrix.groups);
        scales_.resize(batch);
        scaled_.resize(matrix.cols);
        for (int64_t i = 0; i < batch; ++i) {
            const float largest = scaled_inputs(x + i * matrix.cols, columns, matrix.cols, scaled_.data());
            const float factor = largest > kTiny ? kLargest[bytes] / largest : 0.0f;
            scales_[i] = std::isnan(largest) ? largest : static_cast<double>(largest) / kLargest[bytes];
            int16_t* whole = whole_.data() + i * padded_;
            if (!std::isnan(largest))
                integers(scaled_.data(), factor, matrix.cols, whole, high_.data() + i * padded_,
                         bytes == 2 ? low_.data() + i * padded_ : nullptr);
            for (int64_t g = 0; g < matrix.groups; ++g) {
                const int64_t begin = g * matrix.group, end = std::min(matrix.cols, begin + matrix.group);
                int64_t sum = 0;
                for (int64_t c = begin; c < end; ++c) sum += whole[c];
                sums_[i * matrix.groups + g] = sum;
            }
        }
        inputs = {high_.data(), bytes == 2 ? low_.data() : nullptr, whole_.data(), sums_.data(), scales_.data(),
                  batch,        padded_};
    }

    Inputs inputs{};

private:
    int64_t padded_ = 0;
    std::vector<int16_t> whole_;
    std::vector<int8_t> high_, low_;
    std::vector<int64_t> sums_;
    std::vector<double> scales_;
    std::vector<float> scaled_;
};

// What the corrections of a row add to its sum.
int64_t corrected(const CodeMatrix& matrix, int64_t row, const int16_t* whole) {
    int64_t sum = 0;
    for (int32_t k = matrix.starts[row]; k < matrix.starts[row + 1]; ++k)
        sum += static_cast<int64_t>(matrix.values[k]) * whole[matrix.where[k]];
    return sum;
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
                if (matrix.starts) total += corrected(matrix, row + r, inputs.whole + (item + b) * inputs.padded);
                sums[r * tile.items + b] += static_cast<double>(matrix.scales[place]) * static_cast<double>(total);
            }
        }
    }
    for (int r = 0; r < tile.rows; ++r)
        for (int b = 0; b < tile.items; ++b)
            y[(item + b) * matrix.rows + row + r] =
                static_cast<float>(sums[r * tile.items + b] * inputs.scales[item + b]);
}

void rows_product(const Tile (&tiles)[4], const CodeMatrix& matrix, const Inputs& inputs, int64_t begin, int64_t end,
                  float* y) {
    for (int64_t row = begin, height; row < end; row += height) {
        height = end - row >= 4 && inputs.batch == 1 ? 4 : end - row >= 2 && inputs.batch > 1 ? 2 : 1;
        for (int64_t item = 0, width; item < inputs.batch; item += width) {
            const Tile* fitting = tiles;
            while (fitting->rows > height || fitting->items > inputs.batch - item) ++fitting;
            width = fitting->items;
            for (int64_t r = 0; r < height; r += fitting->rows)
                tile_product(*fitting, matrix, inputs, row + r, item, y);
        }
    }
}

template <class Number>
const Number* at(uintptr_t address) {
    return reinterpret_cast<const Number*>(address);
}

// The codes of a block into their fields, a line of bytes at a time.
FOR_THIS_MACHINE
void pack_block(const uint8_t* __restrict codes, int bits, uint8_t* __restrict block) {
    const int lower = lower_bits(bits), upper = upper_bits(bits), cols = block_cols(bits);
    std::memset(block, 0, block_bytes(bits));
    for (int line = 0; line < cols / 32; ++line) {
        const Place place = lower_place(bits, 32 * line);
        for (int j = 0; j < 32; ++j)
            block[place.byte + j] |= static_cast<uint8_t>((codes[32 * line + j] & ((1 << lower) - 1)) << place.shift);
    }
    for (int line = 0; upper > 0 && line < cols / 16; ++line) {
        const Place place = upper_place(bits, 16 * line);
        for (int j = 0; j < 16; ++j)
            block[place.byte + j] |= static_cast<uint8_t>(codes[16 * line + j] >> lower << place.shift);
    }
}

FOR_THIS_MACHINE
void unpack_block(const uint8_t* __restrict block, int bits, uint8_t* __restrict codes) {
    const int lower = lower_bits(bits), upper = upper_bits(bits), cols = block_cols(bits);
    for (int line = 0; line < cols / 32; ++line) {
        const Place place = lower_place(bits, 32 * line);
        for (int j = 0; j < 32; ++j) codes[32 * line + j] = block[place.byte + j] >> place.shift & ((1 << lower) - 1);
    }
    for (int line = 0; upper > 0 && line < cols / 16; ++line) {
        const Place place = upper_place(bits, 16 * line);
        for (int j = 0; j < 16; ++j)
            codes[16 * line + j] |= (block[place.byte + j] >> place.shift & ((1 << upper) - 1)) << lower;
    }
}

void check_packed(size_t rows, int64_t cols, int bits, size_t packed_rows, int64_t bytes) {
    if (rows != packed_rows || bytes != (cols + block_cols(bits) - 1) / block_cols(bits) * block_bytes(bits))
        throw std::invalid_argument("codes and their packed form do not fit together");
}

template <class Number>
using Matrix = nb::ndarray<Number, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

}  // namespace

// y [batch, rows] = x [batch, cols] times a matrix of codes; all are addresses of contiguous arrays, as in CodeMatrix,
// which the caller has checked. columns: [cols] or 0.
void codes_product(std::vector<uintptr_t> arrays, std::vector<int64_t> sizes, int bits, int bytes, int threads,
                   const std::string& isa) {
    const int64_t batch = sizes.at(0), group = sizes.at(4);
    const CodeMatrix matrix{at<uint8_t>(arrays.at(2)),  at<float>(arrays.at(3)),   at<int16_t>(arrays.at(4)),
                            at<int32_t>(arrays.at(6)),  at<int32_t>(arrays.at(7)), at<int32_t>(arrays.at(8)),
                            sizes.at(1),                sizes.at(2),               sizes.at(3),
                            group,                      bits};
    const float *x = at<float>(arrays.at(0)), *columns = at<float>(arrays.at(5));
    float* y = const_cast<float*>(at<float>(arrays.at(1)));
    if (matrix.cols > kMostCols) throw std::invalid_argument("codes_product: too many columns");
    Tile tiles[4];
    product_set(isa).tiles(bits, bytes, tiles);
    nb::gil_scoped_release unlocked;
    static thread_local Quantized quantized;
    quantized.prepare(matrix, x, columns, batch, bytes);
    const Inputs inputs = quantized.inputs;
    const int64_t chunks = (matrix.rows + kRowsAtOnce - 1) / kRowsAtOnce;
    const bool alone = matrix.rows * matrix.cols * batch <= kAlone;
    in_parallel(alone ? 1 : threads, chunks, [&](int64_t chunk) {
        const int64_t begin = chunk * kRowsAtOnce;
        rows_product(tiles, matrix, inputs, begin, std::min(matrix.rows, begin + kRowsAtOnce), y);
    });
    if (batch * matrix.cols > kKept) quantized = Quantized();
}

// Codes [rows, cols], from 0 to 2^bits - 1, into `packed` [rows, row bytes].
void pack_codes(Matrix<const uint8_t> codes, int bits, Matrix<uint8_t> packed) {
    const int64_t cols = codes.shape(1), bytes = packed.shape(1);
    check_packed(codes.shape(0), cols, bits, packed.shape(0), bytes);
    nb::gil_scoped_release unlocked;
    for (size_t r = 0; r < codes.shape(0); ++r)
        for (int64_t begin = 0; begin < cols; begin += block_cols(bits)) {
            uint8_t given[kBlock] = {};
            std::memcpy(given, codes.data() + r * cols + begin, std::min<int64_t>(block_cols(bits), cols - begin));
            pack_block(given, bits, packed.data() + r * bytes + begin / block_cols(bits) * block_bytes(bits));
        }
}

// The reverse: `packed` [rows, row bytes] into codes [rows, cols].
void unpack_codes(Matrix<const uint8_t> packed, int bits, Matrix<uint8_t> codes) {
    const int64_t cols = codes.shape(1), bytes = packed.shape(1);
    check_packed(codes.shape(0), cols, bits, packed.shape(0), bytes);
    nb::gil_scoped_release unlocked;
    uint8_t found[kBlock];
    for (size_t r = 0; r < codes.shape(0); ++r)
        for (int64_t begin = 0; begin < cols; begin += block_cols(bits)) {
            unpack_block(packed.data() + r * bytes + begin / block_cols(bits) * block_bytes(bits), bits, found);
            std::memcpy(codes.data() + r * cols + begin, found, std::min<int64_t>(block_cols(bits), cols - begin));
        }
}

std::vector<std::string> product_sets() {
    std::vector<std::string> names;
    for (const ProductSet* set : kSets)
        if (set->available()) names.emplace_back(set->name);
    return names;
}

void bind_product(nb::module_& m) {
    m.def("codes_product", &codes_product, "arrays"_a, "sizes"_a, "bits"_a, "bytes"_a, "threads"_a, "isa"_a = "");
    m.def("pack_codes", &pack_codes);
    m.def("unpack_codes", &unpack_codes);
    m.def("product_sets", &product_sets);
}
