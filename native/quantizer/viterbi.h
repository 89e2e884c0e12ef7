// The search for codes along a trellis: what waterfill/parts/quantizer/viterbi.py does in NumPy, the reference.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "choose.h"

namespace waterfill {
namespace {

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
void cosets(const Column& column, const PriceTables& tables, int coset, float* __restrict cost,
            int32_t* __restrict best) {
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
int choose_along(const Column& column, const PriceTables& tables, Search& search, int begin, int32_t* code) {
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

}  // namespace
}  // namespace waterfill
