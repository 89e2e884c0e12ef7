// A sum of matrices times one input: small codes, products of two such matrices, sparse entries.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "entries.h"
#include "product.h"

namespace waterfill {

// Addresses and sizes of a matrix: of codes, 7 addresses as in `code_matrix` and rows, cols, groups, group, bits, bytes
// of an input; of a product of two, those of the left one, then those of the right one; of sparse entries, starts,
// where and values, and rows, cols, whether columns are narrow.
using Record = std::pair<std::vector<uintptr_t>, std::vector<int64_t>>;

// A matrix of a sum, ready for its rows.
class Summand {
public:
    void prepare(const Record& record, const float* x, const std::string& isa);

    void rows(int64_t begin, int64_t end, float* y) const;

private:
    static void prepare_codes(CodesProduct& product, const Record& record, int which, const float* x,
                              const std::string& isa);

    const float* x_ = nullptr;
    bool sparse_ = false;
    SparseRows entries_{};
    CodesProduct left_, right_;
    std::vector<float> between_;
};

// y [rows] = x [cols] times the sum; what each matrix gives is added up in float32 from first to last. Memory is kept
// for the next product.
class SumProduct {
public:
    void run(const std::vector<Record>& records, const float* x, int threads, float* y, const std::string& isa);

private:
    std::vector<Summand> summands_;
    std::vector<float> more_;
};

}  // namespace waterfill
