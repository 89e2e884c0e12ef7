// A layer of a decoder like Llama's for one token, in two calls, between which the caller's cache takes the new keys
// and values: norm, queries, keys and values, turned by the position; then attention, the norm and what is behind it.
// Everything but the products with matrices is float32 in an order that no machine changes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#include "for_this_machine.h"
#include "pool.h"
#include "sum.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace waterfill;

namespace {

// Matrices, each a sum as in `SumProduct`, in the form that calls take again and again.
struct Matrices {
    std::vector<std::vector<Record>> sums;
};

constexpr size_t kInputs = 3, kOutputs = 4;  // matrices of each call
constexpr int64_t kLanes = 16;        // sums of so many numbers run side by side
constexpr int64_t kTogether = 256;    // values of tokens that are added up before they are added to the others
constexpr int64_t kAlone = 1 << 18;   // entries of keys up to which heads are not shared out

// Sum of a[i] * b[i].
ALWAYS_INLINE float dot(const float* __restrict a, const float* __restrict b, int64_t n) {
    float sums[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int64_t k = 0; k < kLanes; ++k) sums[k] += a[i + k] * b[i + k];
    float sum = 0;
    for (; i < n; ++i) sum += a[i] * b[i];
    for (float some : sums) sum += some;
    return sum;
}

// e^x to about 2 units in the last place, 0 below -87; with the same operations everywhere, unlike that of the system,
// and without branches, so that loops of it are vectorized.
ALWAYS_INLINE float exponential(float x) {
    constexpr float kLog2 = 1.44269504f, kHigh = 0.693359375f, kLow = -2.12194440e-4f, kRound = 12582912.0f;
    constexpr float kLeast = 1.7e-38f;  // more than e^-87
    const float number = std::min(std::max(-87.0f, x), 88.0f);   // not NaN
    const float carried = std::min(std::max(x, -87.0f), 88.0f);  // NaN if x is
    const float whole = (number * kLog2 + kRound) - kRound;
    const float r = (carried - whole * kHigh) - whole * kLow;
    float y = 1.0f / 5040;
    y = y * r + 1.0f / 720;
    y = y * r + 1.0f / 120;
    y = y * r + 1.0f / 24;
    y = y * r + 1.0f / 6;
    y = y * r + 0.5f;
    y = y * r + 1.0f;
    y = y * r + 1.0f;
    const int32_t bits = (static_cast<int32_t>(whole) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return std::max(y * power - kLeast, 0.0f);
}

// weight * x / sqrt(mean of squares + eps)
FOR_THIS_MACHINE void norm(const float* __restrict x, const float* __restrict weight, int64_t n, double eps,
                           float* __restrict y) {
    const double mean = static_cast<double>(dot(x, x, n)) / static_cast<double>(n);
    const float factor = static_cast<float>(1.0 / std::sqrt(mean + eps));
    for (int64_t i = 0; i < n; ++i) y[i] = weight[i] * (x[i] * factor);
}

FOR_THIS_MACHINE void add(float* __restrict y, const float* __restrict x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

// Every head of x [heads, n] turned by the angles of a position, its two halves being the coordinates of planes.
FOR_THIS_MACHINE void turn(float* __restrict x, int64_t heads, int64_t n, const float* __restrict cos,
                           const float* __restrict sin) {
    const int64_t half = n / 2;
    for (int64_t h = 0; h < heads; ++h, x += n)
        for (int64_t i = 0; i < half; ++i) {
            const float a = x[i], b = x[half + i];
            x[i] = a * cos[i] - b * sin[i];
            x[half + i] = b * cos[half + i] + a * sin[half + i];
        }
}

// a * sigmoid(a) * b, into a.
FOR_THIS_MACHINE void gated(float* __restrict a, const float* __restrict b, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        const float x = a[i];
        a[i] = x * (exponential(std::min(x, 0.0f)) / (1.0f + exponential(-std::fabs(x)))) * b[i];
    }
}

// The sum of n weights, in lanes of float64.
ALWAYS_INLINE double total(const float* __restrict weights, int64_t n) {
    double sums[kLanes] = {}, sum = 0;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int64_t k = 0; k < kLanes; ++k) sums[k] += weights[i + k];
    for (; i < n; ++i) sum += weights[i];
    for (double some : sums) sum += some;
    return sum;
}

// One head: out [n] = softmax(scale * keys q) values, of keys and values [time, n]. weights, part: room for `time` and
// n numbers. Values are added up some hundred at a time, so that errors do not grow with the length of a text.
FOR_THIS_MACHINE void attend(const float* __restrict q, const float* __restrict keys, const float* __restrict values,
                             int64_t time, int64_t n, float scale, float* __restrict weights, float* __restrict part,
                             float* __restrict out) {
    float most = -INFINITY;
    for (int64_t t = 0; t < time; ++t) {
        weights[t] = scale * dot(q, keys + t * n, n);
        most = std::max(most, weights[t]);
    }
    for (int64_t t = 0; t < time; ++t) weights[t] = exponential(weights[t] - most);
    const double sum = total(weights, time);
    std::fill(out, out + n, 0.0f);
    for (int64_t begin = 0; begin < time; begin += kTogether) {
        const int64_t end = std::min(time, begin + kTogether);
        std::fill(part, part + n, 0.0f);
        for (int64_t t = begin; t < end; ++t) {
            const float weight = weights[t];
            const float* __restrict value = values + t * n;
            for (int64_t i = 0; i < n; ++i) part[i] += weight * value[i];
        }
        for (int64_t i = 0; i < n; ++i) out[i] += part[i];
    }
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(out[i] / sum);
}

// y [rows] = x times a sum of matrices, plus a bias unless that is null.
void linear(const std::vector<Record>& records, const float* x, const float* bias, int threads, float* y) {
    static thread_local SumProduct sum;
    sum.run(records, x, threads, y, "");
    if (bias != nullptr) add(y, bias, records[0].second[0]);
}

float* to(uintptr_t address) { return reinterpret_cast<float*>(address); }

}  // namespace

// Queries, keys and values of one token. places: addresses of x [width], the weight of the norm, cosines and sines
// [head], and of queries, keys and values, which are written; biases: theirs, or 0. matrices: theirs, first. sizes:
// width, head. All is float32 and contiguous, and has been checked by the caller.
void decoder_inputs(std::vector<uintptr_t> places, std::vector<uintptr_t> biases, const Matrices& matrices,
                    std::vector<int64_t> sizes, double eps, int threads) {
    const auto& records = matrices.sums;
    const int64_t width = sizes.at(0), head = sizes.at(1);
    const float *cos = at<float>(places.at(2)), *sin = at<float>(places.at(3));
    nb::gil_scoped_release unlocked;
    static thread_local std::vector<float> x;
    x.resize(width);
    norm(at<float>(places[0]), at<float>(places[1]), width, eps, x.data());
    for (size_t i = 0; i < kInputs; ++i) {
        float* y = to(places.at(4 + i));
        linear(records.at(i), x.data(), at<float>(biases.at(i)), threads, y);
        if (i < 2) turn(y, records[i][0].second[0] / head, head, cos, sin);
    }
}

// The rest of the layer. places: addresses of x [width], queries [heads, head], keys and values [heads, time, head],
// the weight of the second norm, and the output [width], which is written; biases: of the output of attention, gate, up
// and down, or 0; matrices: theirs, behind those of the inputs. sizes: width, heads, heads of keys, head, time.
void decoder_outputs(std::vector<uintptr_t> places, std::vector<uintptr_t> biases, const Matrices& matrices,
                     std::vector<int64_t> sizes, double eps, double scale, int threads) {
    const std::vector<Record>* records = matrices.sums.data() + kInputs;
    const int64_t width = sizes.at(0), heads = sizes.at(1), shared = heads / sizes.at(2), head = sizes.at(3);
    const int64_t time = sizes.at(4), inner = records[1].at(0).second.at(0);
    const float *x = at<float>(places.at(0)), *q = at<float>(places.at(1));
    const float *keys = at<float>(places.at(2)), *values = at<float>(places.at(3));
    float* out = to(places.at(5));
    nb::gil_scoped_release unlocked;
    static thread_local std::vector<float> kept;
    kept.resize(heads * (time + 2 * head) + width + 2 * inner);
    float *weights = kept.data(), *seen = weights + heads * time, *parts = seen + heads * head;
    float* normed = parts + heads * head;
    float *gate = normed + width, *up = gate + inner;
    in_parallel(sizes[2] * time * head <= kAlone ? 1 : threads, heads, [&](int64_t h) {
        const int64_t begin = h / shared * time * head;
        attend(q + h * head, keys + begin, values + begin, time, head, static_cast<float>(scale), weights + h * time,
               parts + h * head, seen + h * head);
    });

    linear(records[0], seen, at<float>(biases.at(0)), threads, out);
    add(out, x, width);
    norm(out, at<float>(places.at(4)), width, eps, normed);
    linear(records[1], normed, at<float>(biases.at(1)), threads, gate);
    linear(records[2], normed, at<float>(biases.at(2)), threads, up);
    gated(gate, up, inner);
    linear(records[3], gate, at<float>(biases.at(3)), threads, normed);
    add(out, normed, width);
    if (heads * time > kKept) kept = {};
}

void bind_decoder(nb::module_& m) {
    nb::class_<Matrices>(m, "Matrices").def("__init__", [](Matrices* made, std::vector<std::vector<Record>> sums) {
        if (sums.size() != kInputs + kOutputs) throw std::invalid_argument("Matrices: not those of a layer");
        new (made) Matrices{std::move(sums)};
    });
    m.def("decoder_inputs", &decoder_inputs, "places"_a, "biases"_a, "matrices"_a, "sizes"_a, "eps"_a, "threads"_a);
    m.def("decoder_outputs", &decoder_outputs, "places"_a, "biases"_a, "matrices"_a, "sizes"_a, "eps"_a, "scale"_a,
          "threads"_a);
}
