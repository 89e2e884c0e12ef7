// The six ways to write words and to read them: coding/lossless/methods.py.
#pragma once

#include "model.h"

namespace waterfill {

enum Method { kConstant, kPlanes, kShort, kScaled, kMasked, kSigned };

struct Packed {
    Method method;
    Output out;
};

// The shortest way to write words.
Packed pack(const Words& words, const Fields& fields, size_t positions, Families& families);

// The words of a method, into `words`, which are the reader's; returns their kernel positions. Throws Refused.
size_t unpack(Input& src, uint64_t method, const Fields& fields, const Words& shape, uint8_t* words,
              Families& families);

// The parts of it that stand by themselves.
void write_planes(const Words& words, Output& out);
double least_planes(const Words& words);  // bytes that `write_planes` needs in any case
void read_planes(Input& src, const Words& shape, uint8_t* words);
void write_scaled(const Words& words, const Fields& fields, size_t positions, Families& families, Output& out);
size_t read_scaled(Input& src, Fields fields, const Words& shape, uint8_t* words, Families& families);

// As planes.spans: how many rows make about so many entries.
inline size_t rows_in(const Words& words, size_t entries) {
    return std::max<size_t>(1, entries / std::max<size_t>(1, words.cols));
}

constexpr size_t kStream = 1 << 20;  // about how many entries share a stream

struct Stream {
    const uint8_t* data;
    size_t bytes;
};

// The next stream, of so many lanes, its length before it. Throws Refused for one that no encoder leaves.
Stream read_stream(Input& src, int lanes);

// As rans.lanes_for: the lanes that so many bytes can afford.
int lanes_for(size_t payload_bytes);

}  // namespace waterfill
