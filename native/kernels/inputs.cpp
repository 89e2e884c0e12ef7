// What an int8 convolution needs beside itself: inputs rounded to 8 bits in the order in which channels come last, and
// outputs brought out of that order. waterfill/runtime/int8/order.py has the same in PyTorch.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "for_this_machine.h"
#include "pool.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

constexpr int64_t kPlaces = 64;      // at once: a line of the cache in each channel
constexpr int64_t kChannels = 16;    // at once where floats are turned
constexpr int64_t kAlone = 1 << 14;  // so many numbers and fewer are not shared out
constexpr float kLargest = 255.0f;

// NaN becomes 0, and is found apart from that.
ALWAYS_INLINE uint32_t rounded(float x, float factor, float offset) {
    return static_cast<uint32_t>(static_cast<int32_t>(std::min(std::max(0.0f, x * factor + offset), kLargest)));
}

// n inputs in a row, each with a factor of its own; whether one of them is NaN.
FOR_THIS_MACHINE bool of_line(const float* __restrict x, uint8_t* __restrict out, int64_t n,
                              const float* __restrict factors, float offset) {
    int nan = 0;
    for (int64_t i = 0; i < n; ++i) {
        nan |= x[i] != x[i];
        out[i] = static_cast<uint8_t>(rounded(x[i], factors[i], offset));
    }
    return nan != 0;
}

// n inputs of a channel, to every `channels`-th byte; whether one of them is NaN.
FOR_THIS_MACHINE bool of_channel(const float* __restrict x, uint8_t* __restrict out, int64_t n, int64_t channels,
                                 float factor, float offset) {
    uint8_t line[kPlaces];
    int nan = 0;
    for (int64_t p = 0; p < n; ++p) {
        nan |= x[p] != x[p];
        line[p] = static_cast<uint8_t>(rounded(x[p], factor, offset));
    }
    for (int64_t p = 0; p < n; ++p) out[p * channels] = line[p];
    return nan != 0;
}

// The same of four channels, `each` inputs from one to the next.
FOR_THIS_MACHINE bool of_four(const float* __restrict x, uint8_t* __restrict out, int64_t n, int64_t channels,
                              int64_t each, const float* __restrict factors, float offset) {
    const float *x1 = x + each, *x2 = x1 + each, *x3 = x2 + each;
    uint32_t words[kPlaces];
    int nan = 0;
    for (int64_t p = 0; p < n; ++p) {
        nan |= (x[p] != x[p]) | (x1[p] != x1[p]) | (x2[p] != x2[p]) | (x3[p] != x3[p]);
        words[p] = rounded(x[p], factors[0], offset) | rounded(x1[p], factors[1], offset) << 8 |
                   rounded(x2[p], factors[2], offset) << 16 | rounded(x3[p], factors[3], offset) << 24;
    }
    for (int64_t p = 0; p < n; ++p) {
        uint8_t* to = out + p * channels;
        to[0] = static_cast<uint8_t>(words[p]);
        to[1] = static_cast<uint8_t>(words[p] >> 8);
        to[2] = static_cast<uint8_t>(words[p] >> 16);
        to[3] = static_cast<uint8_t>(words[p] >> 24);
    }
    return nan != 0;
}

// x [n, channels], of which `count` are read, to out [channels, n], `each` from one channel to the next.
ALWAYS_INLINE void turned(const float* __restrict x, float* __restrict out, int64_t n, int64_t count, int64_t channels,
                          int64_t each) {
    for (int64_t c = 0; c < count; ++c)
        for (int64_t p = 0; p < n; ++p) out[c * each + p] = x[p * channels + c];
}

}  // namespace

// out [batch, places, channels] (uint8) of x [batch, channels, places], or [batch, places, channels] where channels are
// `last`. places: addresses of x, factors [channels] and out. sizes: batch, channels, places. Returns whether an input
// is NaN; what is written in its place has no meaning.
bool round_inputs(std::vector<uintptr_t> places, std::vector<int64_t> sizes, float offset, bool last, int threads) {
    const float* x = reinterpret_cast<const float*>(places.at(0));
    const float* factors = reinterpret_cast<const float*>(places.at(1));
    uint8_t* out = reinterpret_cast<uint8_t*>(places.at(2));
    const int64_t batch = sizes.at(0), channels = sizes.at(1), each = sizes.at(2);
    if (batch * channels * each <= kAlone) threads = 1;
    const int64_t blocks = (each + kPlaces - 1) / kPlaces;
    const int64_t lines = last ? std::min(kPlaces, (kPlaces + channels - 1) / channels) : 0;
    std::vector<float> own;  // the factors of so many places
    for (int64_t k = 0; k < lines; ++k) own.insert(own.end(), factors, factors + channels);
    std::atomic<bool> nan{false};
    nb::gil_scoped_release unlocked;
    waterfill::in_parallel(threads, batch * blocks, [&](int64_t task) {
        const int64_t item = task / blocks, first = task % blocks * kPlaces, n = std::min(kPlaces, each - first);
        uint8_t* to = out + (item * each + first) * channels;
        bool found = false;
        if (last) {
            const float* from = x + (item * each + first) * channels;
            for (int64_t p = 0; p < n; p += lines) {
                const int64_t count = std::min(lines, n - p) * channels;
                found |= of_line(from + p * channels, to + p * channels, count, own.data(), offset);
            }
        } else {
            const float* from = x + item * channels * each + first;
            int64_t c = 0;
            for (; c + 4 <= channels; c += 4)
                found |= of_four(from + c * each, to + c, n, channels, each, factors + c, offset);
            for (; c < channels; ++c)
                found |= of_channel(from + c * each, to + c, n, channels, factors[c], offset);
        }
        if (found) nan = true;
    });
    return nan;
}

// out [batch, channels, places] of x [batch, places, channels], floats. places: addresses of x and out. sizes: batch,
// channels, places.
void channels_first(std::vector<uintptr_t> places, std::vector<int64_t> sizes, int threads) {
    const float* x = reinterpret_cast<const float*>(places.at(0));
    float* out = reinterpret_cast<float*>(places.at(1));
    const int64_t batch = sizes.at(0), channels = sizes.at(1), each = sizes.at(2);
    if (batch * channels * each <= kAlone) threads = 1;
    const int64_t blocks = (each + kPlaces - 1) / kPlaces;
    nb::gil_scoped_release unlocked;
    waterfill::in_parallel(threads, batch * blocks, [&](int64_t task) {
        const int64_t item = task / blocks, first = task % blocks * kPlaces, n = std::min(kPlaces, each - first);
        const float* from = x + (item * each + first) * channels;
        float* to = out + item * channels * each + first;
        for (int64_t begin = 0; begin < channels; begin += kChannels) {
            const int64_t count = std::min(kChannels, channels - begin);
            turned(from + begin, to + begin * each, n, count, channels, each);
        }
    });
}

void bind_inputs(nb::module_& m) {
    m.def("round_inputs", &round_inputs, "places"_a, "sizes"_a, "offset"_a, "last"_a, "threads"_a);
    m.def("channels_first", &channels_first, "places"_a, "sizes"_a, "threads"_a);
}
