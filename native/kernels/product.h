// A product of inputs with a matrix of small codes, in two steps: inputs become integers, then rows are multiplied.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "codes.h"

namespace waterfill {

constexpr int64_t kRowsAtOnce = 32;
constexpr int64_t kKept = 1 << 22;  // inputs for which memory is kept from call to call

template <class Number>
const Number* at(uintptr_t address) {
    return reinterpret_cast<const Number*>(address);
}

// arrays: addresses of codes, scales, zeros, the scales of columns, starts, where, values; 0 for what there is not.
// sizes: rows, cols, groups, group.
inline CodeMatrix code_matrix(const uintptr_t* arrays, const int64_t* sizes, int bits) {
    return {at<uint8_t>(arrays[0]), at<float>(arrays[1]),   at<int16_t>(arrays[2]), at<int32_t>(arrays[4]),
            at<int32_t>(arrays[5]), at<int32_t>(arrays[6]), sizes[0],               sizes[1],
            sizes[2],               sizes[3],               bits};
}

class CodesProduct {
public:
    // Takes inputs x [batch, cols], each times `columns` [cols] unless that is null. bytes: of an input as an integer.
    void prepare(const CodeMatrix& matrix, const float* x, const float* columns, int64_t batch, int bytes,
                 const std::string& isa);

    // Writes the outputs of rows `begin` up to before `end` into y [batch, rows].
    void rows(int64_t begin, int64_t end, float* y) const;

    // Writes all of y [batch, rows].
    void run(int threads, float* y);

private:
    CodeMatrix matrix_{};
    Inputs inputs_{};
    Tile tiles_[4] = {};
    FourRows four_rows_ = nullptr;
    std::vector<int16_t> upper_;
    std::vector<int8_t> bytes_[kMostBytes];
    std::vector<int64_t> sums_;
    std::vector<double> scales_;
    std::vector<float> scaled_;
};

}  // namespace waterfill
