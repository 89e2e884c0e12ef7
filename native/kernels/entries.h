// Rows of a sparse matrix times an input.
#pragma once

#include <cstdint>

namespace waterfill {

struct SparseRows {
    const int64_t* starts;  // [rows + 1]
    const void* where;      // [entries], uint16 if narrow, else int32
    const float* values;    // [entries]
    int64_t rows, cols;
    bool narrow;
};

// Writes y[r] for rows `begin` up to before `end` from one input x [cols].
void entries_rows(const SparseRows& of, int64_t begin, int64_t end, const float* x, float* y);

}  // namespace waterfill
