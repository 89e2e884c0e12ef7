// Mean magnitudes of floating-point words: `_mean_sizes` of coding/lossless/magnitude.py, sum for sum.
#pragma once

#include <vector>

#include "words.h"

namespace waterfill {

struct MeanSizes {
    std::vector<double> rows, cols;
};

// The mean of numbers, summed as the reference does: eight interleaved sums.
double mean(const double* values, size_t count);

// Of every `step`-th row, on the biased exponent's scale, relative to the given factors (of those rows, of columns).
MeanSizes mean_sizes(const Words& words, size_t step, const Fields& fields, const std::vector<double>* rows,
                     const std::vector<double>* cols);

}  // namespace waterfill
