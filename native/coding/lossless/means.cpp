#include "means.h"

#include <array>

#include "for_this_machine.h"

namespace waterfill {
namespace {

constexpr double kLeast = 0x1p-160;
constexpr size_t kLanes = 8;
constexpr size_t kRowsWorth = 1 << 16;  // entries whose columns are summed before they join the others

using Sums = std::array<double, kLanes>;

// `sums` [kLanes].
FOR_THIS_MACHINE
void add(double* sums, const double* values, size_t count) {
    Sums held;
    std::copy_n(sums, kLanes, held.begin());
    size_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        for (size_t lane = 0; lane < kLanes; ++lane) held[lane] += values[i + lane];
    }
    for (; i < count; ++i) held[i % kLanes] += values[i];
    std::copy_n(held.begin(), kLanes, sums);
}

double total(const Sums& s) { return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7])); }

// Magnitudes as numbers; those that are not finite as zero.
FOR_THIS_MACHINE
void sizes(const uint32_t* words, size_t count, const Fields& fields, double* to) {
    const uint32_t mask = uint32_t((uint64_t(1) << (fields.exponent + fields.mantissa)) - 1);
    const uint32_t largest = ((1u << fields.exponent) - 1) << fields.mantissa;
    const int dropped = fields.dropped(), shift = 23 - fields.mantissa;
    for (size_t i = 0; i < count; ++i) {
        const uint32_t magnitude = words[i] >> dropped & mask, bits = magnitude < largest ? magnitude << shift : 0;
        float size;
        std::memcpy(&size, &bits, 4);
        to[i] = double(size);
    }
}

FOR_THIS_MACHINE
void divide(double* values, const double* by, size_t count) {
    for (size_t i = 0; i < count; ++i) values[i] /= by[i];
}

FOR_THIS_MACHINE
void divide_all(double* values, double by, size_t count) {
    for (size_t i = 0; i < count; ++i) values[i] /= by;
}

}  // namespace

double mean(const double* values, size_t count) {
    Sums sums{};
    add(sums.data(), values, count);
    return total(sums) / double(count);
}

MeanSizes mean_sizes(const Words& words, size_t step, const Fields& fields, const std::vector<double>* rows,
                     const std::vector<double>* cols) {
    const size_t count = (words.rows + step - 1) / step, together = std::max<size_t>(1, kRowsWorth / words.cols);
    MeanSizes made{std::vector<double>(count), std::vector<double>(words.cols)};
    std::vector<double> some(words.cols), divisors;
    for (size_t i = 0; cols && i < words.cols; ++i) divisors.push_back(std::max((*cols)[i], kLeast));
    uint32_t block[kBlock];
    double size[kBlock];
    for (size_t row = 0; row < count; ++row) {
        const double by = rows ? std::max((*rows)[row], kLeast) : 1.0;
        Sums sums{};
        for (size_t at = 0; at < words.cols; at += kBlock) {
            const size_t run = std::min(kBlock, words.cols - at);
            sizes(words.take(row * step * words.cols + at, run, block), run, fields, size);
            if (rows) divide_all(size, by, run);
            if (cols) divide(size, divisors.data() + at, run);
            add(sums.data(), size, run);
            for (size_t i = 0; i < run; ++i) some[at + i] += size[i];
        }
        made.rows[row] = total(sums) / double(words.cols);
        if ((row + 1) % together && row + 1 < count) continue;
        for (size_t i = 0; i < words.cols; ++i) made.cols[i] += some[i];
        some.assign(words.cols, 0.0);
    }
    for (double& col : made.cols) col /= double(count);
    return made;
}

}  // namespace waterfill
