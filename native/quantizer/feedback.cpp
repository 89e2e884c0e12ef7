// Successive quantization of a block of columns, all rows at once: the inner loop of parts/quantizer/feedback.py. How
// codes are chosen stands in code_choice.py (each alone) and viterbi.py (along a trellis) beside it, and the NumPy
// forms there are the references.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "viterbi.h"

namespace nb = nanobind;
using namespace waterfill;

namespace {

template <class Number, size_t Dimensions>
using Array = nb::ndarray<Number, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;

constexpr int64_t kTile = 64;  // rows that go through a block together, so that their errors stay in the cache

// target[n] += sum over j of ratio[j] * errors[j * stride + n]. The sums of 64 entries stay in registers.
FOR_THIS_MACHINE
void add_errors(float* __restrict target, const float* __restrict errors, const float* __restrict ratio, int64_t count,
                int64_t size, int64_t stride) {
    int64_t n = 0;
    for (; n + kTile <= size; n += kTile) {
        Lanes<float> a{}, b{}, c{}, d{}, next;
        for (int64_t j = 0; j < count; ++j) {
            const float* error = errors + j * stride + n;
            load(error, next), a += ratio[j] * next;
            load(error + 16, next), b += ratio[j] * next;
            load(error + 32, next), c += ratio[j] * next;
            load(error + 48, next), d += ratio[j] * next;
        }
        add(a, target + n), add(b, target + n + 16), add(c, target + n + 32), add(d, target + n + 48);
    }
    if (n == size) return;
    float sum[kTile] = {};
    for (int64_t j = 0; j < count; ++j)
        for (int64_t i = 0; i < size - n; ++i) sum[i] += ratio[j] * errors[j * stride + n + i];
    for (int64_t i = 0; i < size - n; ++i) target[n + i] += sum[i];
}

FOR_THIS_MACHINE
void add_codes(int32_t* __restrict sum, const int32_t* __restrict codes, int32_t tap, int64_t size) {
    for (int64_t n = 0; n < size; ++n) sum[n] += tap * codes[n];
}

// Tables of phase 0, [scales, 256], with the bits of code e at 128 + e: those of neighboring codes lie side by side.
std::vector<float> centered(const PriceTables& tables) {
    std::vector<float> made(tables.scales * 256);
    for (int64_t k = 0; k < tables.scales; ++k)
        for (int64_t e = 0; e < 256; ++e) made[k * 256 + (e ^ 128)] = tables.prices[k * tables.phases * 256 + e];
    return made;
}

// `nearest_two_or_zero` for the kTile targets of a column of `count` rows, and a table as `centered` makes it. What is
// looked up is looked up between two loops without lookups, which are vectorized.
FOR_THIS_MACHINE
void choose_plain_tile(const Column& column, int64_t count, const float* __restrict table, int32_t* __restrict code) {
    int32_t low[kTile], at[kTile] = {};
    float pair[2 * kTile], zero[kTile];
    const float* __restrict target = column.target;
    const int32_t scale = column.scale;
    const float weight = column.weight;
    for (int64_t r = 0; r < count; ++r) {
        const int32_t k = column.row_scale[r] + scale;
        at[r] = (k > 0 ? k : 0) * 256 + 128;
    }
    for (int64_t r = 0; r < kTile; ++r) {
        const int32_t cut = static_cast<int32_t>(target[r]);
        low[r] = cut - (target[r] < static_cast<float>(cut) ? 1 : 0);
    }
    for (int64_t r = 0; r < kTile; ++r) {
        zero[r] = table[at[r]];
        std::memcpy(pair + 2 * r, table + at[r] + low[r], 2 * sizeof(float));
    }
    for (int64_t r = 0; r < count; ++r) {
        const float x = target[r], w = column.row_weight[r] * weight;
        const float below = x - static_cast<float>(low[r]), above = x - static_cast<float>(low[r] + 1);
        const float at_low = w * below * below + pair[2 * r], at_high = w * above * above + pair[2 * r + 1];
        const float at_zero = w * x * x + zero[r];
        const int32_t best = at_high < at_low ? low[r] + 1 : low[r];
        const float least = at_high < at_low ? at_high : at_low;
        code[r] = (at_zero < least) & (x < 3.0f) & (x > -3.0f) ? 0 : best;
    }
}

// Codes that each cost least, whatever the others are, of at most kTile rows.
void choose_alone(const Column& column, const PriceTables& tables, const float* table, bool predicted, int32_t* code) {
    if (!predicted && is_plain(column.target, column.row_scale, column.rows, column.scale, tables.scales))
        return choose_plain_tile(column, column.rows, table, code);
    for (int64_t r = 0; r < column.rows; ++r) {
        const Entry entry = tables.entry(column.row_scale[r] + column.scale, predicted ? column.mean[r] : 0);
        code[r] = nearest_two_or_mean(column.target[r], column.row_weight[r] * column.weight, entry);
    }
}

// The mean that the codes of earlier visits predict, in eighths of a step; whether there are any. `codes`: of visit 0,
// `stride` before those of visit 1.
bool predict(int32_t* mean, int64_t rows, const int32_t* codes, int64_t stride, const int32_t* near,
             const int32_t* taps, int64_t count) {
    bool any = false;
    std::fill(mean, mean + rows, 0);
    for (int64_t k = 0; k < count; ++k) {
        if (near[k] < 0 || !taps[k]) continue;
        any = true;
        add_codes(mean, codes + near[k] * stride, taps[k], rows);
    }
    if (any)
        for (int64_t r = 0; r < rows; ++r) mean[r] >>= 1;
    return any;
}

// A block of visits from `start` on: the arguments of `feedback_block`.
struct Block {
    float *targets, *errors;
    const float* ratio;
    int32_t* codes;
    int64_t start, visits, channels, rows;
    const int32_t *near, *taps;
    int64_t most_taps;
    const int32_t *row_scale, *col_scale;
    const float *row_weight, *col_weight;
    PriceTables tables;

    // `count` entries of visit i from row r of channel c on, with the targets and means at hand.
    Column column(int64_t i, int64_t c, int64_t r, int64_t count, const float* target, const int32_t* mean) const {
        const int64_t at = (start + i) * channels + c;
        return {target, row_scale + r, row_weight + r, mean, count, col_scale[at], col_weight[at]};
    }

    bool predicted(int64_t i, int64_t c, int64_t r, int64_t count, int32_t* mean) const {
        const int64_t K = most_taps;
        return predict(mean, count, codes + c * rows + r, channels * rows, near + i * K, taps + i * K, K);
    }

    // Where row r of channel c is in visit i of the block.
    int64_t at(int64_t i, int64_t c, int64_t r) const { return (i * channels + c) * rows + r; }
};

// Codes that stand alone: a few rows go through all visits before the next ones.
void quantize_alone(const Block& block) {
    const std::vector<float> table = centered(block.tables);
    std::vector<float> errors(block.visits * kTile);
    float target[kTile];
    int32_t mean[kTile];
    for (int64_t c = 0; c < block.channels; ++c)
        for (int64_t r = 0; r < block.rows; r += kTile) {
            const int64_t count = std::min(kTile, block.rows - r);
            for (int64_t i = 0; i < block.visits; ++i) {
                float *error = errors.data() + i * kTile, *entry = block.errors + block.at(i, c, r);
                std::fill(target, target + kTile, 0.0f);
                std::copy_n(block.targets + block.at(i, c, r), count, target);
                add_errors(target, errors.data(), block.ratio + i * block.visits, i, kTile, kTile);
                int32_t* code = block.codes + block.at(block.start + i, c, r);
                const bool predicted = block.predicted(i, c, r, count, mean);
                choose_alone(block.column(i, c, r, count, target, mean), block.tables, table.data(), predicted, code);
                for (int64_t n = 0; n < count; ++n) error[n] = entry[n] -= static_cast<float>(code[n]);
            }
        }
}

// Codes along a trellis, whose paths run over chunks of `chunk` rows; ends [chunks, positions, lanes]: their states.
void quantize_along(const Block& block, Search& search, int64_t chunk, uint8_t* ends, int64_t positions,
                    int64_t lanes) {
    const int64_t size = block.channels * block.rows;
    std::vector<int32_t> mean(block.rows);
    for (int64_t i = 0; i < block.visits; ++i) {
        const int64_t visit = block.start + i;
        add_errors(block.targets + i * size, block.errors, block.ratio + i * block.visits, i, size, size);
        for (int64_t c = 0; c < block.channels; ++c) {
            block.predicted(i, c, 0, block.rows, mean.data());
            int32_t* code = block.codes + block.at(visit, c, 0);
            for (int64_t r = 0; r < block.rows; r += chunk) {
                const float* target = block.targets + block.at(i, c, r);
                const Column piece =
                    block.column(i, c, r, std::min(chunk, block.rows - r), target, mean.data() + r);
                uint8_t& state = ends[(r / chunk * positions + visit % positions) * lanes +
                                      (visit / positions + c) % lanes];
                state = static_cast<uint8_t>(choose_along(piece, block.tables, search, state, code + r));
            }
            float* entry = block.errors + block.at(i, c, 0);
            for (int64_t r = 0; r < block.rows; ++r) entry[r] -= static_cast<float>(code[r]);
        }
    }
}

// Whether an array has these sizes.
template <class Numbers, class... Sizes>
bool is(const Numbers& array, Sizes... sizes) {
    size_t i = 0;
    return ((static_cast<int64_t>(array.shape(i++)) == static_cast<int64_t>(sizes)) && ...);
}

}  // namespace

// Visit i of a block begins at targets[i], [channels, rows] in steps: what errors before this block make of entries. On
// return `errors`, which holds the entries themselves, holds entry - code, and codes[start + i] the codes.
//
// ratio: [visits, visits], what an error moves a later target by. near, taps: [visits, taps], the earlier visits whose
// codes predict a mean, -1 for none. row_scale, col_scale: scale indices, added. weights, multiplied: bits per
// squared step. next: a trellis [states, 2], or [0, 2] for none; ends [chunks, positions, lanes]: in what states its
// paths are, over chunks of `chunk` rows.
void feedback_block(Array<float, 3> targets, Array<float, 3> errors, Array<const float, 2> ratio,
                    Array<int32_t, 3> codes, int64_t start, Array<const int32_t, 2> near, Array<const int32_t, 2> taps,
                    Array<const int32_t, 1> row_scale, Array<const int32_t, 2> col_scale,
                    Array<const float, 1> row_weight, Array<const float, 2> col_weight, Array<const float, 3> prices,
                    Array<const uint8_t, 2> next, Array<uint8_t, 3> ends, int64_t chunk) {
    const int64_t V = targets.shape(0), C = targets.shape(1), R = targets.shape(2), N = codes.shape(0);
    const int64_t K = near.shape(1), P = ends.shape(1), L = ends.shape(2);
    const int states = static_cast<int>(next.shape(0));
    if (!is(errors, V, C, R) || !is(ratio, V, V) || !is(codes, N, C, R) || start < 0 || start + V > N ||
        !is(near, V, K) || !is(taps, V, K) || !is(row_scale, R) || !is(col_scale, N, C) || !is(row_weight, R) ||
        !is(col_weight, N, C) || prices.shape(2) != 256 || next.shape(1) != 2 || chunk < 1 || P < 1 || L < 1 ||
        !is(ends, (R + chunk - 1) / chunk, P, L) ||
        (states && !known(states, next.data()[2], next.data()[0] ^ next.data()[1])))
        throw std::invalid_argument("feedback_block: the arrays do not fit together");
    for (int64_t i = 0; i < V * K; ++i)
        if (near.data()[i] < -1 || near.data()[i] >= start + i / K)
            throw std::invalid_argument("feedback_block: a mean from a visit that is still to come");
    const Block block{targets.data(),    errors.data(),     ratio.data(),      codes.data(), start, V, C, R,
                      near.data(),       taps.data(),       K,                 row_scale.data(),
                      col_scale.data(),  row_weight.data(), col_weight.data(),
                      {prices.data(), static_cast<int>(prices.shape(0)), static_cast<int>(prices.shape(1))}};
    nb::gil_scoped_release release;
    if (!states) return quantize_alone(block);
    Search search(next.data(), states, std::min(chunk, R));
    quantize_along(block, search, chunk, ends.data(), P, L);
}

void bind_feedback(nb::module_& m) { m.def("feedback_block", &feedback_block); }
