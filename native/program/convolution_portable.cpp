// int8 convolutions, the readable way: every instruction set finds the same bits.
#include <algorithm>
#include <cmath>

#include "for_this_machine.h"
#include "program.h"

namespace waterfill {
namespace {

// Sums of a block of outputs at one place.
ALWAYS_INLINE void sums_of(const Convolution& of, const int8_t* codes, const uint8_t* from, int32_t (&sums)[kOuts]) {
    for (int64_t ky = 0; ky < of.height; ++ky)
        for (int64_t kx = 0; kx < of.width; ++kx) {
            const uint8_t* at = from + ky * of.dilation[0] * of.from.row() + kx * of.dilation[1] * of.from.stride;
            for (int64_t quad = 0; quad < of.quads; ++quad, at += kQuad, codes += kQuadBytes)
                for (int o = 0; o < kOuts; ++o)
                    for (int i = 0; i < kQuad; ++i) sums[o] += at[i] * codes[kQuad * o + i];
        }
}

ALWAYS_INLINE void store(const Convolution& of, int64_t first, const int32_t (&sums)[kOuts], uint8_t* to) {
    const int64_t count = std::min<int64_t>(kOuts, of.outs - first);
    for (int64_t o = 0; o < count; ++o) {
        float y = static_cast<float>(sums[o] - of.shifts[first + o]) * of.scales[first + o] + of.bias[first + o];
        if (of.relu) y = y > 0.0f ? y : 0.0f;
        if (of.to.floats) {
            reinterpret_cast<float*>(to)[first + o] = y;
        } else {
            const float clipped = std::min(std::max(y, -kClipped), kClipped);
            const int32_t q = static_cast<int32_t>(std::nearbyint(clipped)) + of.zero;
            to[first + o] = static_cast<uint8_t>(std::min(std::max(q, 0), 255));
        }
    }
}

FOR_THIS_MACHINE void one(const Convolution& of, int64_t block, const uint8_t* from, uint8_t* to) {
    int32_t sums[kOuts] = {};
    sums_of(of, of.codes.data() + block * of.block_bytes(), from, sums);
    store(of, block * kOuts, sums, to);
}

void run(const Convolution& of, const uint8_t* from, uint8_t* to) {
    for (int64_t block = 0; block < of.blocks(); ++block)
        in_runs(of, from, to, 1, [&](int64_t, const uint8_t* at, uint8_t* made) { one(of, block, at, made); });
}

}  // namespace

const ConvolutionSet kConvolutionPortable = {"portable", [] { return true; }, run};

}  // namespace waterfill
