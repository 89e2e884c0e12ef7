// The choice of one code by distortion + price * bits: what choose.cpp (any order of entries) and feedback.cpp (column
// by column) share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "for_this_machine.h"

namespace waterfill {

// Sixteen numbers, which compilers that know how keep in registers.
#if defined(__GNUC__)
template <class Number>
struct Sixteen {
    typedef Number type __attribute__((vector_size(16 * sizeof(Number))));
};
template <class Number>
using Lanes = typename Sixteen<Number>::type;
#else
template <class Number>
struct Lanes {
    Number at[16];
};
template <class Number>
Lanes<Number> operator*(Number a, const Lanes<Number>& b) {
    Lanes<Number> made;
    for (int i = 0; i < 16; ++i) made.at[i] = a * b.at[i];
    return made;
}
template <class Number>
void operator+=(Lanes<Number>& a, const Lanes<Number>& b) {
    for (int i = 0; i < 16; ++i) a.at[i] += b.at[i];
}
#endif

// By reference, as vectors that are passed would depend on the machine that is compiled for.
template <class Number>
ALWAYS_INLINE void load(const Number* from, Lanes<Number>& to) {
    std::memcpy(&to, from, sizeof to);
}

template <class Number>
ALWAYS_INLINE void add(const Lanes<Number>& sum, Number* to) {
    Lanes<Number> there;
    std::memcpy(&there, to, sizeof there);
    there += sum;
    std::memcpy(to, &there, sizeof there);
}

struct Entry {
    const float* prices;  // [256], of the entry's scale and phase
    int shift;
    int32_t whole;  // the mean's nearest integer
    bool mirrored;

    float bits(int32_t code) const {
        int32_t e = mirrored ? whole - code : code - whole;
        if (shift) e = (e + (1 << (shift - 1))) >> shift;
        return prices[(e < -127 || e > 127) ? 128 : (e & 255)] + static_cast<float>(shift);
    }
};

// Prices [scales, phases, 256] in bits, and how an entry finds its own.
struct PriceTables {
    const float* prices;
    int scales;
    int phases;

    // Of scale index `k` and a mean in eighths of a step.
    Entry entry(int k, int32_t mean) const {
        const int32_t whole = (mean + 4) >> 3;
        int phase = mean - whole * 8, shift = 0;
        const bool mirrored = phase < 0;
        if (k >= scales) {
            shift = (k - scales + 8) >> 3;
            k -= 8 * shift;
            phase = 0;
        }
        return {prices + (int64_t{std::max(k, 0)} * phases + std::abs(phase)) * 256, shift, whole, mirrored};
    }
};

// std::floor is a function call on machines older than SSE 4.1, which the portable build must run on.
inline int32_t floor_of(float value) {
    const int32_t cut = static_cast<int32_t>(value);
    return cut - (value < static_cast<float>(cut));
}

// The choice under a predicted mean (in eighths of a step) or beyond the tables.
inline int32_t nearest_two_or_mean(float value, float weight, const Entry& entry) {
    int32_t best = floor_of(value);
    float least = INFINITY;
    for (const int32_t code : {best, best + 1, entry.whole}) {
        const float gap = value - static_cast<float>(code);
        if (code == entry.whole && std::abs(gap) >= 3.0f) continue;
        const float total = weight * gap * gap + entry.bits(code);
        if (total < least) least = total, best = code;
    }
    return best;
}

// The choice where the mean is zero, no code escapes and the scale has a table: without a branch, so that a loop over
// entries is vectorized. The entry's bits begin at table[at].
inline int32_t nearest_two_or_zero(float value, float weight, const float* table, int32_t at) {
    const int32_t cut = static_cast<int32_t>(value), low = cut - (value < static_cast<float>(cut) ? 1 : 0);
    const float below = value - static_cast<float>(low), above = value - static_cast<float>(low + 1);
    const float at_low = weight * below * below + table[at + (low & 255)];
    const float at_high = weight * above * above + table[at + ((low + 1) & 255)];
    const float at_zero = weight * value * value + table[at];
    const int32_t best = at_high < at_low ? low + 1 : low;
    const float least = at_high < at_low ? at_high : at_low;
    return (at_zero < least) & (value < 3.0f) & (value > -3.0f) ? 0 : best;
}

// Whether `nearest_two_or_zero` may be used for values [size] with scale indices `base` + more [size].
inline bool is_plain(const float* value, const int32_t* more, int64_t size, int32_t base, int scales) {
    int32_t far = 0, widest = INT32_MIN;  // integers, so that the loop is vectorized
    for (int64_t i = 0; i < size; ++i) {
        far |= !(std::abs(value[i]) < 126.0f);
        widest = std::max(widest, more[i]);
    }
    return !far && base + widest < scales;
}

}  // namespace waterfill
