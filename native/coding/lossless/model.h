// magnitude.Model: the integers that the decoder needs before the first entry.
#pragma once

#include <vector>

#include "coding/stream.h"
#include "families.h"

namespace waterfill {

struct Model {
    int shape = 0;          // of the family; `shapes()` stands for the histogram `freq`
    Table freq{};
    int64_t base = 0;       // the scale where all factors are zero
    bool has_rows = false, has_channels = false;
    std::vector<int64_t> rows, channels, positions;  // factors

    Scales scales(size_t of_rows, size_t of_cols) const;
    void write(Output& out, const Families& families, bool sign) const;

    // Of a matrix of so many rows and columns; `sign`: whether signs are stored.
    static Model read(Input& src, const Families& families, size_t of_rows, size_t of_cols, bool& sign);
};

void write_table(const Table& freq, Output& out);
Table read_table(Input& src);

// The model of words with the shortest message; `positions` are the kernel positions of a channel.
Model fit(const Words& words, const Fields& fields, size_t positions, Families& families);

}  // namespace waterfill
