// Factors of rows, channels and positions from mean magnitudes: the compiled form of `first_guess` in
// waterfill/coding/model/search.py. In double, like its reference, so that what both round to integers is the same.
#include <cmath>
#include <utility>

#include "codes.h"

namespace nb = nanobind;
using namespace waterfill;

namespace {

constexpr double kLeast = 0.02;  // added to magnitudes, so that rows of zeros have a factor

double product_sum(const double* a, const double* b, int64_t size) {
    constexpr int kLanes = 8;
    double sums[kLanes] = {}, sum = 0;
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes)
        for (int lane = 0; lane < kLanes; ++lane) sums[lane] += a[i + lane] * b[i + lane];
    for (; i < size; ++i) sum += a[i] * b[i];
    for (const double each : sums) sum += each;
    return sum;
}

double sum_of(const std::vector<double>& values) {
    double sum = 0;
    for (const double each : values) sum += each;
    return sum;
}

// Magnitudes of entries, and the factors that they are divided by, as logarithms [rows], [channels], [positions].
class Magnitudes {
  public:
    Magnitudes(const Codes& codes, bool halves, std::vector<double*> logs)
        : sizes_{codes.rows, codes.channels, codes.positions}, logs_(std::move(logs)),
          values_(codes.rows * codes.columns()) {
        for (size_t i = 0; i < values_.size(); ++i)
            values_[i] = std::abs(codes.residual[i] - (halves ? codes.phase[i] / 8.0 : 0.0));
    }

    // Add the logarithms of the means along an axis, against their own mean, to its factors.
    void scale(int axis) {
        const std::vector<double> means = along(axis, 1.0, kLeast);
        const double mean = sum_of(means) / static_cast<double>(means.size());
        for (size_t i = 0; i < means.size(); ++i) logs_[axis][i] += std::log2(means[i] / mean);
    }

    // The root of the mean square. The last call: the magnitudes are gone after it.
    double spread() {
        for (double& value : values_) value *= value;
        return std::sqrt(sum_of(along(0, 2.0, 0.0)) / static_cast<double>(sizes_[0]) + 1e-4);
    }

  private:
    std::vector<double> inverse(int axis, double power) const {
        std::vector<double> made(sizes_[axis]);
        for (int64_t i = 0; i < sizes_[axis]; ++i) made[i] = std::exp2(-power * logs_[axis][i]);
        return made;
    }

    // Means along one axis of the values, with `least` added, divided by the factors to a power.
    std::vector<double> along(int axis, double power, double least) const {
        const std::vector<double> rows = inverse(0, power), channels = inverse(1, power), positions = inverse(2, power);
        const int64_t R = sizes_[0], C = sizes_[1], P = sizes_[2], N = C * P;
        std::vector<double> plane(N), means(sizes_[axis]);
        if (axis == 0) {
            for (int64_t c = 0, n = 0; c < C; ++c)
                for (int64_t p = 0; p < P; ++p) plane[n++] = channels[c] * positions[p];
            const double added = least * sum_of(plane), entries = static_cast<double>(N);
            for (int64_t r = 0; r < R; ++r)
                means[r] = rows[r] * (product_sum(values_.data() + r * N, plane.data(), N) + added) / entries;
            return means;
        }
        for (int64_t r = 0; r < R; ++r) {
            const double* values = values_.data() + r * N;
            for (int64_t n = 0; n < N; ++n) plane[n] += rows[r] * values[n];
        }
        const double added = least * sum_of(rows);
        const std::vector<double>& own = axis == 1 ? channels : positions;
        const std::vector<double>& other = axis == 1 ? positions : channels;
        for (int64_t c = 0, n = 0; c < C; ++c)
            for (int64_t p = 0; p < P; ++p) means[axis == 1 ? c : p] += (plane[n++] + added) * other[axis == 1 ? p : c];
        const double entries = static_cast<double>(R * static_cast<int64_t>(other.size()));
        for (size_t i = 0; i < means.size(); ++i) means[i] *= own[i] / entries;
        return means;
    }

    int64_t sizes_[3];
    std::vector<double*> logs_;
    std::vector<double> values_;
};

}  // namespace

// Adds to the logarithms (base 2) of the factors of rows, channels and positions what rounds of scaling to equal mean
// magnitudes say, along the axes of the mask. Returns the spread of what is left, scaled so.
double scale_rounds(Array<const int32_t, 3> residual, Array<const uint8_t, 3> phase, Array<double, 1> rows,
                    Array<double, 1> channels, Array<double, 1> positions, int axes, int rounds, bool halves) {
    const Codes codes(residual, phase);
    if (static_cast<int64_t>(rows.size()) != codes.rows || static_cast<int64_t>(channels.size()) != codes.channels ||
        static_cast<int64_t>(positions.size()) != codes.positions || residual.size() == 0)
        throw std::invalid_argument("scale_rounds: the arrays do not fit together");
    nb::gil_scoped_release release;
    Magnitudes sizes(codes, halves && codes.phase, {rows.data(), channels.data(), positions.data()});
    for (int round = 0; round < rounds; ++round)
        for (int axis = 0; axis < 3; ++axis)
            if (axes >> axis & 1) sizes.scale(axis);
    return sizes.spread();
}

void bind_first_guess(nb::module_& m) { m.def("scale_rounds", &scale_rounds); }
