// Successive quantization of a block of columns, all rows at once: the inner loop of waterfill/parts/feedback.py. How
// codes are chosen is told in parts/choose.py (each alone) and parts/viterbi.py (along a trellis), and the NumPy forms
// there are the references.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "choose.h"

namespace nb = nanobind;
using namespace waterfill;

namespace {

template <class Number, size_t Dimensions>
using Array = nb::ndarray<Number, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;

#if defined(__GNUC__)
#define ALWAYS_INLINE inline __attribute__((always_inline))
#else
#define ALWAYS_INLINE inline
#endif

constexpr int kEscape = 128;
constexpr int kSettle = 64;  // rows after which path costs are set back, so that float32 keeps telling them apart
constexpr float kFar = 1e30f;
constexpr float kFarthest = 1 << 25;

// The entries of one column that follow one another: `rows` targets in steps, and what their costs depend on.
struct Column {
    const float* target;
    const int32_t* row_scale;
    const float* row_weight;
    const int32_t* mean;  // in eighths of a step
    int64_t rows;
    int32_t scale;
    float weight;
};

FOR_THIS_MACHINE
void add_errors(float* __restrict target, const float* __restrict errors, const float* __restrict ratio, int64_t count,
                int64_t size) {
    constexpr int64_t kPiece = 1024;
    float sum[kPiece];
    for (int64_t start = 0; start < size; start += kPiece) {
        const int64_t here = std::min(kPiece, size - start);
        std::fill(sum, sum + here, 0.0f);
        for (int64_t j = 0; j < count; ++j) {
            const float* error = errors + j * size + start;
            for (int64_t n = 0; n < here; ++n) sum[n] += ratio[j] * error[n];
        }
        for (int64_t n = 0; n < here; ++n) target[start + n] += sum[n];
    }
}

FOR_THIS_MACHINE
void add_codes(int32_t* __restrict sum, const int32_t* __restrict codes, int32_t tap, int64_t size) {
    for (int64_t n = 0; n < size; ++n) sum[n] += tap * codes[n];
}

FOR_THIS_MACHINE
void choose_plain_column(const Column& column, const Tables& tables, int32_t* __restrict code) {
    const float *target = column.target, *row_weight = column.row_weight, *table = tables.prices;
    const int32_t* row_scale = column.row_scale;
    const int32_t stride = 256 * tables.phases, scale = column.scale;
    const float weight = column.weight;
    for (int64_t r = 0; r < column.rows; ++r) {
        const int32_t k = row_scale[r] + scale;
        code[r] = nearest_two_or_zero(target[r], row_weight[r] * weight, table, (k > 0 ? k : 0) * stride);
    }
}

// Codes that each cost least, whatever the others are.
void choose_alone(const Column& column, const Tables& tables, bool predicted, int32_t* code) {
    if (!predicted && is_plain(column.target, column.row_scale, column.rows, column.scale, tables.scales))
        return choose_plain_column(column, tables, code);
    for (int64_t r = 0; r < column.rows; ++r) {
        const Entry entry = tables.entry(column.row_scale[r] + column.scale, predicted ? column.mean[r] : 0);
        code[r] = nearest_two_or_mean(column.target[r], column.row_weight[r] * column.weight, entry);
    }
}

// A trellis, and room for the search of one column along it.
struct Search {
    const int states, by_parity, by_path;
    std::vector<float> cost;        // [4, rows] of the best code of every coset, z mod 4
    std::vector<int32_t> best;      // [4, rows] that code
    std::vector<uint8_t> decision;  // [rows, states] path bit by which a state is reached at least cost

    Search(const uint8_t* next, int states, int64_t rows)
        : states(states), by_parity(next[2]), by_path(next[0] ^ next[1]), cost(4 * rows), best(4 * rows),
          decision(rows * states) {}
};

// The cheaper of the two codes around a target that are `coset` mod 4, and its cost, for every row.
FOR_THIS_MACHINE
void cosets(const Column& column, const Tables& tables, int coset, float* __restrict cost, int32_t* __restrict best) {
    const float* __restrict target = column.target;
    const float* __restrict row_weight = column.row_weight;
    const float* __restrict prices = tables.prices;
    const int32_t* __restrict row_scale = column.row_scale;
    const int32_t* __restrict mean = column.mean;
    const int32_t scale = column.scale, last = tables.scales - 1, phases = tables.phases;
    const float weight = column.weight;
    for (int64_t r = 0; r < column.rows; ++r) {
        const int32_t middle = (mean[r] >> 1) - 4 * (coset & 1), whole = (middle + 4) >> 3, phase = middle - 8 * whole;
        const int32_t sum = row_scale[r] + scale, k = sum < 0 ? 0 : sum > last ? last : sum;
        const int32_t at = (k * phases + (phase < 0 ? -phase : phase)) * 256, sign = phase < 0 ? -1 : 1;
        float x = target[r];
        x = x < -kFarthest ? -kFarthest : x > kFarthest ? kFarthest : x;
        const float quarter = (x - static_cast<float>(coset)) * 0.25f;
        const int32_t cut = static_cast<int32_t>(quarter);
        const int32_t low = 4 * (cut - (quarter < static_cast<float>(cut) ? 1 : 0)) + coset, high = low + 4;
        const int32_t e_low = sign * ((low >> 1) - whole), e_high = sign * ((high >> 1) - whole);
        const int32_t at_low = (e_low < -127) | (e_low > 127) ? kEscape : e_low & 255;
        const int32_t at_high = (e_high < -127) | (e_high > 127) ? kEscape : e_high & 255;
        const float below = x - static_cast<float>(low), above = x - static_cast<float>(high);
        const float w = row_weight[r] * weight;
        const float cost_low = w * below * below + prices[at + at_low];
        const float cost_high = w * above * above + prices[at + at_high];
        cost[r] = cost_high < cost_low ? cost_high : cost_low;
        best[r] = cost_high < cost_low ? high : low;
    }
}

// Add, compare, select over one row: `path` becomes the least cost of reaching every state. The states whose highest
// bit is b are reached from those of parity b, by path bit u from 2 (s ^ b by_parity ^ u by_path) + b.
template <int States>
ALWAYS_INLINE void step(float* __restrict path, const float* cost, int64_t rows, int by_parity, int by_path,
                        uint8_t* __restrict decision) {
    constexpr int kHalf = States / 2;
    float even[kHalf], odd[kHalf];
    for (int q = 0; q < kHalf; ++q) even[q] = path[2 * q], odd[q] = path[2 * q + 1];
    const float c00 = cost[0], c10 = cost[rows], c01 = cost[2 * rows], c11 = cost[3 * rows];
    const int back = by_parity & (kHalf - 1);
    for (int s = 0; s < kHalf; ++s) {
        const float stay = even[s] + c00, move = even[s ^ by_path] + c01;
        path[s] = move < stay ? move : stay;
        decision[s] = move < stay;
    }
    for (int s = 0; s < kHalf; ++s) {
        const float stay = odd[s ^ back] + c10, move = odd[s ^ back ^ by_path] + c11;
        path[kHalf + s] = move < stay ? move : stay;
        decision[kHalf + s] = move < stay;
    }
}

template <int States, int ByParity, int ByPath>
ALWAYS_INLINE void run(float* path, Search& search, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
        step<States>(path, search.cost.data() + r, rows, ByParity, ByPath, search.decision.data() + r * States);
        if (r % kSettle == kSettle - 1) {
            const float first = path[0];
            for (int s = 0; s < States; ++s) path[s] -= first;
        }
    }
}

// The constants are those of coding/trellis.py: known here, the permutations of states are single instructions.
FOR_THIS_MACHINE
void survive(float* path, Search& search, int64_t rows) {
    switch (search.states) {
        case 4: return run<4, 2, 1>(path, search, rows);
        case 8: return run<8, 5, 2>(path, search, rows);
        case 16: return run<16, 9, 2>(path, search, rows);
        case 32: return run<32, 18, 4>(path, search, rows);
        case 64: return run<64, 33, 10>(path, search, rows);
        case 128: return run<128, 78, 43>(path, search, rows);
        case 256: return run<256, 166, 121>(path, search, rows);
    }
}

bool known(int states, int by_parity, int by_path) {
    constexpr int codes[][3] = {{4, 2, 1},    {8, 5, 2},     {16, 9, 2},    {32, 18, 4},
                                {64, 33, 10}, {128, 78, 43}, {256, 166, 121}};
    for (const auto& code : codes)
        if (code[0] == states && code[1] == by_parity && code[2] == by_path) return true;
    return false;
}

// Codes of a column that together cost least, of those along the trellis from state `begin`; returns the last state.
int choose_along(const Column& column, const Tables& tables, Search& search, int begin, int32_t* code) {
    const int64_t rows = column.rows;
    for (int coset = 0; coset < 4; ++coset)
        cosets(column, tables, coset, search.cost.data() + coset * rows, search.best.data() + coset * rows);
    alignas(64) float path[256];
    std::fill(path, path + search.states, kFar);
    path[begin] = 0;
    survive(path, search, rows);
    const int end = static_cast<int>(std::min_element(path, path + search.states) - path);
    int state = end;
    for (int64_t r = rows - 1; r >= 0; --r) {
        const int moved = search.decision[r * search.states + state], parity = state >= search.states / 2;
        code[r] = search.best[(parity + 2 * moved) * rows + r];
        state = 2 * (state ^ parity * search.by_parity ^ moved * search.by_path) + parity;
    }
    return end;
}

// The mean that the codes of earlier visits predict, in eighths of a step; whether there are any. `codes`: of visit 0,
// `stride` before those of visit 1.
bool predict(std::vector<int32_t>& mean, const int32_t* codes, int64_t stride, const int32_t* near, const int32_t* taps,
             int64_t count) {
    bool any = false;
    std::fill(mean.begin(), mean.end(), 0);
    for (int64_t k = 0; k < count; ++k) {
        if (near[k] < 0 || !taps[k]) continue;
        any = true;
        add_codes(mean.data(), codes + near[k] * stride, taps[k], static_cast<int64_t>(mean.size()));
    }
    if (any)
        for (int32_t& m : mean) m >>= 1;
    return any;
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
    const Tables tables{prices.data(), static_cast<int>(prices.shape(0)), static_cast<int>(prices.shape(1))};
    nb::gil_scoped_release release;
    std::vector<int32_t> mean(R);
    Search search(next.data(), states, states ? std::min(chunk, R) : 0);
    for (int64_t visit = start; visit < start + V; ++visit) {
        const int64_t i = visit - start;
        float *target = targets.data() + i * C * R, *error = errors.data() + i * C * R;
        add_errors(target, errors.data(), ratio.data() + i * V, i, C * R);
        for (int64_t c = 0; c < C; ++c) {
            int32_t* code = codes.data() + (visit * C + c) * R;
            const bool predicted =
                predict(mean, codes.data() + c * R, C * R, near.data() + i * K, taps.data() + i * K, K);
            for (int64_t r = 0; r < R; r += chunk) {
                const Column piece{target + c * R + r,
                                   row_scale.data() + r,
                                   row_weight.data() + r,
                                   mean.data() + r,
                                   std::min(chunk, R - r),
                                   col_scale.data()[visit * C + c],
                                   col_weight.data()[visit * C + c]};
                if (!states) {
                    choose_alone(piece, tables, predicted, code + r);
                    continue;
                }
                uint8_t& state = ends.data()[(r / chunk * P + visit % P) * L + (visit / P + c) % L];
                state = static_cast<uint8_t>(choose_along(piece, tables, search, state, code + r));
            }
            for (int64_t r = 0; r < R; ++r) error[c * R + r] -= static_cast<float>(code[r]);
        }
    }
}

void bind_feedback(nb::module_& m) { m.def("feedback_block", &feedback_block); }
