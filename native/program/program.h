// A network of int8 convolutions in one call, for a batch of one: what its steps share.
#pragma once

#include <cstdint>
#include <vector>

namespace waterfill {

// What lies between two steps, [height, width, channels], channels last: bytes, or floats. A border of `border` pixels
// around bytes lets convolutions read beyond the edges. Of the `stride` channels of a pixel `count` are its own, from
// `channel` on. where: bytes from the beginning of the memory, or -1 - i for the i-th tensor of the caller.
struct Value {
    int64_t where, height, width, stride, border, channel, count;
    bool floats;

    int64_t row() const { return (width + 2 * border) * stride; }
    int64_t first() const { return border * row() + border * stride + channel; }  // that is not in the border
    int64_t size() const { return (floats ? 4 : 1) * (height + 2 * border) * row(); }
};

constexpr int kOuts = 16;   // outputs of a block of codes: a register of 512 bits holds their sums
constexpr int kQuad = 4;    // channels that one instruction multiplies
constexpr int kQuadBytes = kOuts * kQuad;

// codes: [blocks, height, width, quads, kOuts, kQuad], zeros where there are no channels or outputs. An output is
// (sum - shifts) * scales + bias, each [blocks * kOuts].
struct Convolution {
    Value from, to;
    int64_t outs, quads, height, width, stride[2], padding[2], dilation[2];
    int32_t zero;  // of outputs that are rounded to bytes
    int32_t largest;  // magnitude of a code
    bool relu;
    std::vector<int8_t> codes;
    std::vector<int32_t> shifts;
    std::vector<float> scales, bias;

    int64_t blocks() const { return (outs + kOuts - 1) / kOuts; }
    int64_t block_bytes() const { return height * width * quads * kQuadBytes; }
};

constexpr float kClipped = 65536.0f;  // outputs beyond are 255 in any case, and fit into integers

// from, to: what lies at the first pixels that are not in a border.
struct ConvolutionSet {
    const char* name;
    bool (*available)();
    void (*run)(const Convolution& of, const uint8_t* from, uint8_t* to);
};

extern const ConvolutionSet kConvolutionPortable, kConvolutionAvx2, kConvolutionVnni;

// Calls work(places, where inputs of the first one begin, where its outputs do) for runs of at most `most` places of
// every line, which are of like lengths.
template <class Work>
void in_runs(const Convolution& of, const uint8_t* from, uint8_t* to, int64_t most, const Work& work) {
    const int64_t unit = of.to.floats ? sizeof(float) : 1, width = of.to.width;
    const int64_t runs = (width + most - 1) / most, each = (width + runs - 1) / runs;
    for (int64_t y = 0; y < of.to.height; ++y)
        for (int64_t x = 0, places; x < width; x += places) {
            places = width - x < each ? width - x : each;
            const uint8_t* at = from + (y * of.stride[0] - of.padding[0]) * of.from.row() +
                                (x * of.stride[1] - of.padding[1]) * of.from.stride;
            work(places, at, to + unit * (y * of.to.row() + x * of.to.stride));
        }
}

}  // namespace waterfill
