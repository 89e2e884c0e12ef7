// A network of int8 convolutions in one call: the way from layer to layer through PyTorch takes longer than a layer of
// one input. waterfill/runtime/fused/program.py says which steps there are and where values lie.
#include "program.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "for_this_machine.h"
#include "pool.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace waterfill;

namespace {

constexpr size_t kValueSizes = 8;
constexpr int64_t kBeyond = 64;  // bytes behind a value that are read, and mean nothing

const ConvolutionSet* const kSets[] = {&kConvolutionVnni, &kConvolutionAvx2, &kConvolutionPortable};

const ConvolutionSet& convolution_set(const std::string& name) {
    for (const ConvolutionSet* set : kSets)
        if (set->available() && (name.empty() || name == set->name)) return *set;
    throw std::invalid_argument("no instruction set " + name + " on this machine");
}

// Where the values of one item of a batch are.
struct Memory {
    uint8_t* own;
    const std::vector<uintptr_t>& given;
    int64_t item;

    uint8_t* at(const Value& value) const {
        uint8_t* begin = value.where >= 0 ? own + value.where
                                          : reinterpret_cast<uint8_t*>(given[-1 - value.where]) + item * value.size();
        return begin + (value.floats ? 4 : 1) * value.first();
    }
    float* floats(const Value& value) const { return reinterpret_cast<float*>(at(value)); }
};

// Pixels from one up to before another of a line, where they are bytes.
void fill_line(const Value& value, uint8_t* line, int64_t begin, int64_t end, int fill) {
    if (value.count == value.stride)
        std::memset(line + begin * value.stride, fill, (end - begin) * value.stride);
    else
        for (int64_t x = begin; x < end; ++x) std::memset(line + x * value.stride, fill, value.count);
}

// Everything around a value.
void fill_border(const Value& value, uint8_t* first, int fill) {
    if (value.border == 0) return;
    const int64_t right = value.width + value.border;
    for (int64_t y = -value.border; y < value.height + value.border; ++y) {
        uint8_t* line = first + y * value.row();
        const bool inside = y >= 0 && y < value.height;
        fill_line(value, line, -value.border, inside ? 0 : right, fill);
        if (inside) fill_line(value, line, value.width, right, fill);
    }
}

// Calls work(where x is, where y is, numbers in a row) for every pixel, or for every line where all lie in a row.
template <class Work, class X>
void in_lines(const Value& a, const Value& b, X* x, uint8_t* y, const Work& work) {
    const bool whole = a.count == a.stride && b.count == b.stride;
    const int64_t each = whole ? a.width : 1;
    for (int64_t row = 0; row < a.height; ++row)
        for (int64_t col = 0; col < a.width; col += each)
            work(x + row * a.row() + col * a.stride, y + row * b.row() + col * b.stride, each * a.count);
}

// As `round_inputs` rounds them; whether one is NaN.
FOR_THIS_MACHINE bool round_floats(const float* __restrict x, const float* __restrict factors, float offset,
                                   int64_t count, uint8_t* __restrict out) {
    int nan = 0;
    for (int64_t c = 0; c < count; ++c) {
        nan |= x[c] != x[c];
        const float q = std::min(std::max(0.0f, x[c] * factors[c] + offset), 255.0f);
        out[c] = static_cast<uint8_t>(static_cast<int32_t>(q));
    }
    return nan != 0;
}

FOR_THIS_MACHINE void add_floats(const float* __restrict a, const float* __restrict b, int64_t count, bool relu,
                                 float* __restrict y) {
    if (relu)
        for (int64_t i = 0; i < count; ++i) {
            const float sum = a[i] + b[i];
            y[i] = sum < 0.0f ? 0.0f : sum;  // NaN stays
        }
    else
        for (int64_t i = 0; i < count; ++i) y[i] = a[i] + b[i];
}

FOR_THIS_MACHINE void at_least(const uint8_t* __restrict x, uint8_t least, int64_t count, uint8_t* __restrict y) {
    for (int64_t i = 0; i < count; ++i) y[i] = std::max(x[i], least);
}

// The largest of a window, y [count]; what lies outside of the image does not count.
void pool_pixel(const Value& from, const uint8_t* x, const int64_t (&window)[4], int64_t count, uint8_t* y) {
    std::memset(y, 0, count);
    for (int64_t row = std::max<int64_t>(0, window[0]); row < std::min(from.height, window[1]); ++row)
        for (int64_t col = std::max<int64_t>(0, window[2]); col < std::min(from.width, window[3]); ++col) {
            const uint8_t* own = x + row * from.row() + col * from.stride;
            for (int64_t c = 0; c < count; ++c) y[c] = std::max(y[c], own[c]);
        }
}

// The codes in the order of `Convolution`, and what their sums have for the zero of the inputs.
void take_codes(Convolution& of, const int8_t* codes, int64_t ins, int32_t zero) {
    of.codes.assign(of.blocks() * of.block_bytes(), 0);
    of.shifts.assign(of.blocks() * kOuts, 0);
    const int64_t taps = of.height * of.width;
    for (int64_t o = 0; o < of.outs; ++o)
        for (int64_t i = 0; i < ins; ++i)
            for (int64_t tap = 0; tap < taps; ++tap) {
                const int8_t code = codes[(o * ins + i) * taps + tap];
                const int64_t quad = (o / kOuts * taps + tap) * of.quads + i / kQuad;
                of.codes[quad * kQuadBytes + o % kOuts * kQuad + i % kQuad] = code;
                of.shifts[o] += zero * code;
                of.largest = std::max(of.largest, std::abs(static_cast<int32_t>(code)));
            }
}

// Steps, one after the other, with memory of their own for what lies between.
class Program {
public:
    Program(std::vector<std::vector<int64_t>> values, int64_t bytes, const std::string& isa)
        : set_(convolution_set(isa)), bytes_(bytes) {
        for (const auto& v : values) {
            if (v.size() != kValueSizes) throw std::invalid_argument("no value of a program");
            values_.push_back({v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7] != 0});
        }
    }

    // factors: address of one for each channel.
    void round(int from, int to, uintptr_t factors, int zero) {
        const Value a = values_.at(from), b = values_.at(to);
        const float* first = reinterpret_cast<const float*>(factors);
        std::vector<float> line;  // the factors of all pixels
        for (int64_t x = 0; x < a.width; ++x) line.insert(line.end(), first, first + a.count);
        steps_.push_back([=, line = std::move(line)](const Memory& memory) {
            uint8_t* to = memory.at(b);
            bool nan = false;
            fill_border(b, to, zero);
            in_lines(a, b, memory.floats(a), to, [&](const float* x, uint8_t* y, int64_t count) {
                nan |= round_floats(x, line.data(), static_cast<float>(zero) + 0.5f, count, y);
            });
            return nan;
        });
    }

    // places: addresses of codes [outs, ins, height, width], scales [outs] and bias [outs] or 0. sizes: outs, height
    // and width of the kernel, stride, padding and dilation, two each, the zeros of inputs and outputs, whether relu.
    void convolve(int from, int to, std::vector<uintptr_t> places, std::vector<int64_t> sizes) {
        Convolution of{};
        of.from = values_.at(from), of.to = values_.at(to);
        of.outs = sizes.at(0), of.height = sizes.at(1), of.width = sizes.at(2);
        of.quads = (of.from.count + kQuad - 1) / kQuad;
        for (int i = 0; i < 2; ++i) {
            of.stride[i] = sizes.at(3 + i);
            of.padding[i] = sizes.at(5 + i);
            of.dilation[i] = sizes.at(7 + i);
        }
        const int32_t zero = static_cast<int32_t>(sizes.at(9));
        of.zero = static_cast<int32_t>(sizes.at(10));
        of.relu = sizes.at(11) != 0;
        take_codes(of, reinterpret_cast<const int8_t*>(places.at(0)), of.from.count, zero);
        const float *scales = reinterpret_cast<const float*>(places.at(1)),
                    *bias = reinterpret_cast<const float*>(places.at(2));
        of.scales.assign(of.blocks() * kOuts, 0.0f);
        of.bias.assign(of.blocks() * kOuts, 0.0f);
        std::copy(scales, scales + of.outs, of.scales.begin());
        if (bias != nullptr) std::copy(bias, bias + of.outs, of.bias.begin());
        steps_.push_back([of = std::move(of), run = set_.run](const Memory& memory) {
            uint8_t* to = memory.at(of.to);
            if (!of.to.floats) fill_border(of.to, to, of.zero);
            run(of, memory.at(of.from), to);
            return false;
        });
    }

    void add(int first, int second, int to, bool relu) {
        const Value a = values_.at(first), b = values_.at(second), c = values_.at(to);
        steps_.push_back([=](const Memory& memory) {
            add_floats(memory.floats(a), memory.floats(b), a.height * a.row(), relu, memory.floats(c));
            return false;
        });
    }

    // Floats of every so many pixels, two numbers, from a channel on; zeros in the channels that are left.
    void spread(int from, int to, std::vector<int64_t> steps, int64_t channel) {
        const Value a = values_.at(from), b = values_.at(to);
        const int64_t down = steps.at(0), right = steps.at(1);
        steps_.push_back([=](const Memory& memory) {
            const float* x = memory.floats(a);
            float* y = memory.floats(b);
            if (b.count > a.count) std::memset(y, 0, b.height * b.row() * sizeof(float));
            for (int64_t row = 0; row < b.height; ++row)
                for (int64_t col = 0; col < b.width; ++col)
                    std::memcpy(y + row * b.row() + col * b.stride + channel,
                                x + row * down * a.row() + col * right * a.stride, a.count * sizeof(float));
            return false;
        });
    }

    // sizes: of the window, its stride and its padding, two each.
    void pool(int from, int to, std::vector<int64_t> sizes, int zero) {
        const Value a = values_.at(from), b = values_.at(to);
        sizes.at(5);
        steps_.push_back([=](const Memory& memory) {
            const uint8_t* x = memory.at(a);
            uint8_t* y = memory.at(b);
            fill_border(b, y, zero);
            for (int64_t row = 0; row < b.height; ++row)
                for (int64_t col = 0; col < b.width; ++col) {
                    const int64_t top = row * sizes[2] - sizes[4], left = col * sizes[3] - sizes[5];
                    const int64_t window[] = {top, top + sizes[0], left, left + sizes[1]};
                    pool_pixel(a, x, window, b.count, y + row * b.row() + col * b.stride);
                }
            return false;
        });
    }

    // No number below `zero`.
    void relu(int from, int to, int zero) {
        const Value a = values_.at(from), b = values_.at(to);
        steps_.push_back([=](const Memory& memory) {
            uint8_t* to = memory.at(b);
            fill_border(b, to, zero);
            in_lines(a, b, memory.at(a), to, [&](const uint8_t* x, uint8_t* y, int64_t count) {
                at_least(x, static_cast<uint8_t>(zero), count, y);
            });
            return false;
        });
    }

    // given: addresses of the tensors of the caller. Whether an input was NaN; outputs then mean nothing.
    bool run(const std::vector<uintptr_t>& given, int64_t batch, int threads) const {
        nb::gil_scoped_release unlocked;
        std::atomic<bool> nan{false};
        in_parallel(threads, batch, [&](int64_t item) {
            static thread_local std::vector<uint8_t> own;
            if (static_cast<int64_t>(own.size()) < bytes_ + kBeyond) own.resize(bytes_ + kBeyond);
            const Memory memory{own.data(), given, item};
            for (const auto& step : steps_)
                if (step(memory)) nan = true;
        });
        return nan;
    }

private:
    const ConvolutionSet& set_;
    int64_t bytes_;
    std::vector<Value> values_;
    std::vector<std::function<bool(const Memory&)>> steps_;
};

std::vector<std::string> convolution_sets() {
    std::vector<std::string> names;
    for (const ConvolutionSet* set : kSets)
        if (set->available()) names.emplace_back(set->name);
    return names;
}

}  // namespace

void bind_program(nb::module_& m) {
    m.def("convolution_sets", &convolution_sets);
    nb::class_<Program>(m, "Program")
        .def(nb::init<std::vector<std::vector<int64_t>>, int64_t, const std::string&>(), "values"_a, "bytes"_a,
             "isa"_a = "")
        .def("round", &Program::round, "source"_a, "to"_a, "factors"_a, "zero"_a)
        .def("convolve", &Program::convolve, "source"_a, "to"_a, "places"_a, "sizes"_a)
        .def("add", &Program::add, "first"_a, "second"_a, "to"_a, "relu"_a)
        .def("spread", &Program::spread, "source"_a, "to"_a, "steps"_a, "channel"_a)
        .def("pool", &Program::pool, "source"_a, "to"_a, "sizes"_a, "zero"_a)
        .def("relu", &Program::relu, "source"_a, "to"_a, "zero"_a)
        .def("run", &Program::run, "given"_a, "batch"_a, "threads"_a);
}
