// Codes of a matrix as they come from Python, and the scale indices of their densities.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <stdexcept>
#include <vector>

namespace waterfill {

template <class Number, size_t Dimensions>
using Array = nanobind::ndarray<Number, nanobind::ndim<Dimensions>, nanobind::c_contig, nanobind::device::cpu>;

// Codes [rows, channels, positions], the last two side by side, as residuals and phases (or none). Scale indices are
// sums of a row's and a column's.
struct Codes {
    const int32_t* residual;
    const uint8_t* phase;
    const int32_t* row;
    std::vector<int32_t> column;
    int64_t rows, channels, positions;

    // Without scale indices yet.
    Codes(const Array<const int32_t, 3>& residual, const Array<const uint8_t, 3>& phase)
        : residual(residual.data()), phase(phase.size() ? phase.data() : nullptr), row(nullptr),
          column(residual.shape(1) * residual.shape(2)), rows(residual.shape(0)), channels(residual.shape(1)),
          positions(residual.shape(2)) {
        if (this->phase && phase.size() != residual.size())
            throw std::invalid_argument("residuals and phases do not fit together");
    }

    Codes(const Array<const int32_t, 3>& residual, const Array<const uint8_t, 3>& phase,
          const Array<const int32_t, 1>& row, const Array<const int32_t, 1>& channel,
          const Array<const int32_t, 1>& position)
        : Codes(residual, phase) {
        if (static_cast<int64_t>(row.shape(0)) != rows || static_cast<int64_t>(channel.shape(0)) != channels ||
            static_cast<int64_t>(position.shape(0)) != positions)
            throw std::invalid_argument("codes and factors do not fit together");
        scale(row.data(), channel.data(), position.data());
    }

    // Scale indices are sums of these, [rows], [channels], [positions].
    void scale(const int32_t* by_row, const int32_t* by_channel, const int32_t* by_position) {
        row = by_row;
        for (int64_t c = 0, at = 0; c < channels; ++c)
            for (int64_t p = 0; p < positions; ++p) column[at++] = by_channel[c] + by_position[p];
    }

    int64_t columns() const { return channels * positions; }
};

}  // namespace waterfill
