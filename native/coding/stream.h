// The verbs of coding/stream.py that need no densities: numbers, Rice coded vectors and bytes as they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace waterfill {

// Thrown for bytes that no writer would have written. The reference, which reads them again, says what is wrong.
struct Refused {};

// stream.Reader, on part of its bytes. `room` is how many entries may still be claimed.
class Input {
public:
    Input(const uint8_t* data, size_t size, size_t at, uint64_t room) : data_(data), size_(size), at_(at), room_(room) {
        if (at > size) throw Refused();
    }

    const uint8_t* raw(uint64_t count);
    uint64_t uint(uint64_t limit);
    void claim(uint64_t entries);
    std::vector<int64_t> ints(uint64_t count);

    size_t at() const { return at_; }
    uint64_t claimed() const { return claimed_; }

private:
    uint64_t bits(uint64_t at) const;

    const uint8_t* data_;
    size_t size_, at_;
    uint64_t room_, claimed_ = 0;
};

// stream.Writer.
class Output {
public:
    void raw(const uint8_t* data, size_t count) { bytes_.insert(bytes_.end(), data, data + count); }
    void uint(uint64_t value);
    void ints(const std::vector<int64_t>& values);  // within 32 bits

    void join(const Output& other) {
        raw(other.bytes_.data(), other.bytes_.size());
        claimed_ += other.claimed_;
    }

    // So many more bytes, zeros, to be filled.
    uint8_t* room(size_t count) {
        bytes_.resize(bytes_.size() + count);
        return bytes_.data() + bytes_.size() - count;
    }

    const std::vector<uint8_t>& bytes() const { return bytes_; }
    uint64_t claimed() const { return claimed_; }

private:
    std::vector<uint8_t> bytes_;
    uint64_t claimed_ = 0;
};

}  // namespace waterfill
