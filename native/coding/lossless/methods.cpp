#include "methods.h"

#include "coding/coder.h"

namespace waterfill {
namespace {

constexpr size_t kTriedAllWays = 4096;  // words
constexpr size_t kWordsSampled = 1 << 17;
constexpr uint64_t kMethods = 8;

bool all_equal(const Words& words) {
    for (size_t at = words.size, end = words.entries() * words.size; at < end; at += words.size) {
        if (std::memcmp(words.data, words.data + at, words.size)) return false;
    }
    return true;
}

void write_constant(const Words& words, const Fields& fields, Output& out) {
    uint8_t word[16] = {};
    size_t length = words.entries() ? words.size : 0;
    if (length && fields.floats()) {
        const uint32_t value = words.one(0) >> fields.dropped();
        for (size_t b = 0; b < length; ++b) word[b] = uint8_t(value >> 8 * b);
    } else if (length) {
        std::memcpy(word, words.data, length);
    }
    while (length && !word[length - 1]) --length;
    out.uint(length);
    out.raw(word, length);
}

void read_constant(Input& src, const Fields& fields, const Words& shape, uint8_t* words) {
    const size_t length = src.uint(shape.size);
    const uint8_t* found = src.raw(length);
    uint8_t word[16] = {};
    std::copy(found, found + length, word);
    if (fields.floats()) {
        uint32_t value = 0;
        for (int b = 0; b < shape.size; ++b) value |= uint32_t(word[b]) << 8 * b;
        if (uint64_t(value) >> (fields.bits - fields.dropped())) throw Refused();
        value <<= fields.dropped();
        for (int b = 0; b < shape.size; ++b) word[b] = uint8_t(value >> 8 * b);
    }
    for (size_t i = 0; i < shape.entries(); ++i, words += shape.size) std::memcpy(words, word, shape.size);
}

// Short, and with signs Signed.
void write_magnitudes(const Words& words, const Fields& fields, bool signs, Output& out) {
    std::vector<int64_t> values(words.entries());
    for (size_t i = 0; i < values.size(); ++i) values[i] = fields.magnitude(words.one(i));
    out.ints(values);
    if (!signs) return;
    uint8_t* bits = out.room((values.size() + 7) / 8);
    for (size_t i = 0; i < values.size(); ++i) bits[i / 8] |= uint8_t(words.one(i) >> (fields.bits - 1) << (7 - i % 8));
}

void read_magnitudes(Input& src, const Fields& fields, bool signs, const Words& shape, uint8_t* words) {
    const std::vector<int64_t> values = src.ints(shape.entries());
    const uint8_t* bits = signs ? src.raw((values.size() + 7) / 8) : nullptr;
    for (size_t i = 0; i < values.size(); ++i, words += shape.size) {
        if (values[i] < 0 || values[i] >> (fields.exponent + fields.mantissa)) throw Refused();
        uint32_t word = uint32_t(values[i]) << fields.dropped();
        if (bits) word |= uint32_t(bits[i / 8] >> (7 - i % 8) & 1) << (fields.bits - 1);
        std::memcpy(words, &word, shape.size);
    }
}

size_t nonzero(const Words& words) {
    size_t count = 0;
    uint32_t block[kBlock];
    for (size_t at = 0; at < words.entries(); at += kBlock) {
        const size_t run = std::min(kBlock, words.entries() - at);
        const uint32_t* word = words.take(at, run, block);
        for (size_t i = 0; i < run; ++i) count += word[i] != 0;
    }
    return count;
}

void write_masked(const Words& words, const Fields& fields, Families& families, Output& out) {
    std::vector<uint8_t> used(words.entries()), rest;
    for (size_t i = 0; i < used.size(); ++i) {
        used[i] = words.one(i) != 0;
        if (used[i]) rest.insert(rest.end(), words.data + i * words.size, words.data + (i + 1) * words.size);
    }
    write_planes({used.data(), words.rows, words.cols, 1}, out);
    const Words values{rest.data(), 1, rest.size() / words.size, words.size};
    const Packed inner = pack(values, fields, 1, families);
    out.uint(inner.method);
    out.join(inner.out);
}

void read_masked(Input& src, const Fields& fields, const Words& shape, uint8_t* words, Families& families) {
    std::vector<uint8_t> used(shape.entries());
    read_planes(src, {nullptr, shape.rows, shape.cols, 1}, used.data());
    size_t count = 0;
    for (const uint8_t one : used) {
        if (one > 1) throw Refused();
        count += one;
    }
    const uint64_t method = src.uint(kMethods);
    if (method == kMasked) throw Refused();
    std::vector<uint8_t> values(count * shape.size);
    unpack(src, method, fields, {nullptr, 1, count, shape.size}, values.data(), families);
    const uint8_t* next = values.data();
    for (size_t i = 0; i < used.size(); ++i, words += shape.size) {
        if (used[i]) {
            std::memcpy(words, next, shape.size);
            next += shape.size;
        } else {
            std::memset(words, 0, shape.size);
        }
    }
}

void write(Method method, const Words& words, const Fields& fields, size_t positions, Families& families, Output& out) {
    switch (method) {
        case kConstant: return write_constant(words, fields, out);
        case kPlanes: return write_planes(words, out);
        case kScaled: return write_scaled(words, fields, positions, families, out);
        case kMasked: return write_masked(words, fields, families, out);
        case kShort: return write_magnitudes(words, fields, false, out);
        case kSigned: return write_magnitudes(words, fields, true, out);
    }
}

Packed packed(Method method, const Words& words, const Fields& fields, size_t positions, Families& families) {
    Packed made{method, {}};
    write(method, words, fields, positions, families, made.out);
    return made;
}

// Every so many rows, one after the other.
std::vector<uint8_t> sampled(const Words& words, size_t stride) {
    std::vector<uint8_t> made;
    for (size_t row = 0; row < words.rows; row += stride) made.insert(made.end(), words.row(row), words.row(row + 1));
    return made;
}

}  // namespace

int lanes_for(size_t payload_bytes) {
    int lanes = 1;
    while (lanes < 64 && 2 * size_t(lanes) <= payload_bytes / 1000) lanes *= 2;
    return lanes;
}

Stream read_stream(Input& src, int lanes) {
    const size_t bytes = src.uint(uint64_t(1) << 40);
    const uint8_t* data = src.raw(bytes);
    if (bytes < 4 * size_t(lanes) || bytes % 2) throw Refused();
    for (int lane = 0; lane < lanes; ++lane) {
        if (load_word(data + 4 * lane + 2) == 0) throw Refused();  // below the lowest state
    }
    return {data, bytes};
}

Packed pack(const Words& words, const Fields& fields, size_t positions, Families& families) {
    if (all_equal(words)) return packed(kConstant, words, fields, positions, families);
    if (!fields.floats()) return packed(kPlanes, words, fields, positions, families);
    const size_t stride = std::max<size_t>(1, words.entries() / kWordsSampled);
    const std::vector<uint8_t> rows = stride > 1 ? sampled(words, stride) : std::vector<uint8_t>();
    Words sample = words;
    if (stride > 1) sample = {rows.data(), (words.rows + stride - 1) / stride, words.cols, words.size};
    std::vector<Method> others;
    if (words.entries() <= kTriedAllWays) others.push_back(fields.sign ? kSigned : kShort);
    if (nonzero(sample) < sample.entries() * 63 / 64) others.push_back(kMasked);
    Packed best = packed(kScaled, sample, fields, positions, families);
    if (least_planes(sample) <= double(best.out.bytes().size())) {
        Packed planes = packed(kPlanes, sample, fields, positions, families);  // of equal ones the first
        if (planes.out.bytes().size() <= best.out.bytes().size()) best = std::move(planes);
    }
    for (const Method method : others) {
        Packed other = packed(method, sample, fields, positions, families);
        if (other.out.bytes().size() < best.out.bytes().size()) best = std::move(other);
    }
    if (sample.entries() == words.entries()) return best;
    return packed(best.method, words, fields, positions, families);
}

size_t unpack(Input& src, uint64_t method, const Fields& fields, const Words& shape, uint8_t* words,
              Families& families) {
    if (!fields.floats() && method > kPlanes) throw Refused();
    switch (method) {
        case kConstant: read_constant(src, fields, shape, words); return 1;
        case kPlanes: read_planes(src, shape, words); return 1;
        case kShort: read_magnitudes(src, fields, false, shape, words); return 1;
        case kSigned: read_magnitudes(src, fields, true, shape, words); return 1;
        case kScaled: return read_scaled(src, fields, shape, words, families);
        case kMasked: read_masked(src, fields, shape, words, families); return 1;
        default: throw Refused();
    }
}

}  // namespace waterfill
