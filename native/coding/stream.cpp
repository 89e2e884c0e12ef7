// Numbers and Rice coded vectors: coding/stream.py and coding/rice.py.
#include "stream.h"

#include <algorithm>

namespace waterfill {
namespace {

constexpr int kLong = 24;        // so many ones stand for any quotient from there on
constexpr int kParameters = 24;  // the parameter lies below this
constexpr int kWhole = 32;       // bits of an entry whose quotient is long

uint64_t zigzag(int64_t value) { return (uint64_t(value) << 1) ^ uint64_t(value >> 63); }
int64_t unzigzag(uint64_t value) { return int64_t(value >> 1) ^ -int64_t(value & 1); }

int leading_ones(uint64_t value) {
    int count = 0;
    for (; count < 64 && value >> 63; value <<= 1) ++count;
    return count;
}

// The first bit in the highest place.
class BitWriter {
public:
    explicit BitWriter(std::vector<uint8_t>& to) : to_(to) {}

    void put(uint64_t value, int width) {  // below 2^width; up to 32 bits
        held_ = held_ << width | value;
        for (count_ += width; count_ >= 8; count_ -= 8) to_.push_back(uint8_t(held_ >> (count_ - 8)));
    }

    void finish() {
        if (count_) put(0, 8 - count_);
    }

private:
    std::vector<uint8_t>& to_;
    uint64_t held_ = 0;
    int count_ = 0;
};

uint64_t rice_bits(const std::vector<uint32_t>& folded, int k) {
    uint64_t bits = 0;
    for (const uint32_t value : folded) {
        const uint32_t quotient = value >> k;
        bits += quotient < kLong ? quotient + 1 + k : kLong + 1 + kWhole;
    }
    return bits;
}

int best_parameter(const std::vector<uint32_t>& folded) {
    int best = 0;
    uint64_t least = UINT64_MAX;
    for (int k = 0; k < kParameters; ++k) {
        const uint64_t bits = rice_bits(folded, k);
        if (bits < least) best = k, least = bits;
    }
    return best;
}

}  // namespace

const uint8_t* Input::raw(uint64_t count) {
    if (count > size_ - at_) throw Refused();
    at_ += count;
    return data_ + at_ - count;
}

uint64_t Input::uint(uint64_t limit) {
    uint64_t value = 0;
    for (int shift = 0; shift < 63; shift += 7) {
        const uint64_t byte = *raw(1);
        if (byte == 0 && shift) throw Refused();
        value |= (byte & 127) << shift;
        if (byte >= 128) continue;
        if (value > limit) throw Refused();
        return value;
    }
    throw Refused();
}

void Input::claim(uint64_t entries) {
    if (entries > room_ - claimed_) throw Refused();
    claimed_ += entries;
}

// The bits from bit `at` on, the first in the highest place: 57 or more of them, ones after the end of the data.
uint64_t Input::bits(uint64_t at) const {
    uint64_t found = 0;
    const size_t byte = at / 8;
    for (size_t i = byte; i < byte + 8; ++i) found = found << 8 | (i < size_ ? data_[i] : 0xFF);
    return found << at % 8;
}

std::vector<int64_t> Input::ints(uint64_t count) {
    claim(count);
    std::vector<int64_t> values(count);
    if (!count) return values;
    const int64_t center = unzigzag(uint((uint64_t(1) << 33) - 1));
    const int k = int(uint(kParameters - 1));
    uint64_t at = 8 * uint64_t(at_), whole = 0;
    for (int64_t& value : values) {
        const int quotient = leading_ones(bits(at));
        if (quotient > kLong) throw Refused();
        value = quotient;
        whole += quotient == kLong;
        at += quotient + 1;
    }
    const uint64_t low = (count - whole) * k, end = at + low + whole * kWhole;
    if (end > 8 * uint64_t(size_)) throw Refused();
    uint64_t at_whole = at + low;
    for (int64_t& value : values) {
        uint64_t folded;
        if (value == kLong) {
            folded = bits(at_whole) >> (64 - kWhole);
            at_whole += kWhole;
        } else {
            folded = uint64_t(value) << k | (k ? bits(at) >> (64 - k) : 0);
            at += k;
        }
        value = unzigzag(folded) + center;
    }
    at_ = size_t((end + 7) / 8);
    return values;
}

void Output::uint(uint64_t value) {
    for (; value >= 128; value >>= 7) bytes_.push_back(uint8_t((value & 127) | 128));
    bytes_.push_back(uint8_t(value));
}

void Output::ints(const std::vector<int64_t>& values) {
    claimed_ += values.size();
    if (values.empty()) return;
    std::vector<int64_t> sorted = values;
    const auto middle = sorted.begin() + (sorted.size() - 1) / 2;
    std::nth_element(sorted.begin(), middle, sorted.end());
    std::vector<uint32_t> folded(values.size());
    for (size_t i = 0; i < values.size(); ++i) folded[i] = uint32_t(zigzag(values[i] - *middle));
    const int k = best_parameter(folded);
    uint(zigzag(*middle));
    uint(k);
    BitWriter bits(bytes_);
    for (const uint32_t value : folded) {
        const int quotient = int(std::min<uint32_t>(value >> k, kLong));
        bits.put(((uint64_t(1) << quotient) - 1) << 1, quotient + 1);
    }
    for (const uint32_t value : folded) {
        if (value >> k < kLong) bits.put(value & ((uint64_t(1) << k) - 1), k);
    }
    for (const uint32_t value : folded) {
        if (value >> k >= kLong) bits.put(value, kWhole);
    }
    bits.finish();
}

}  // namespace waterfill
