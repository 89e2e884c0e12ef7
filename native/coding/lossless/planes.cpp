// Bytes of equal rank of all words, under histograms: coding/lossless/planes.py.
#include <cmath>

#include "coding/coder.h"
#include "coding/coder_streams.h"
#include "methods.h"

namespace waterfill {
namespace {

enum Mode { kRaw, kOne, kCoded };
constexpr double kSideBits = 120;  // about what a coded plane spends besides its codes and 8 bits for each frequency

using Counts = std::array<int64_t, 256>;

struct Plane {
    std::vector<uint8_t> bytes;
    Counts counts{};
    Mode mode = kRaw;
};

Mode mode_of(const Counts& counts, size_t total) {
    int used = 0;
    double codes = 0;
    for (const int64_t count : counts) {
        if (!count) continue;
        ++used;
        codes += double(count) * std::log2(double(count) / double(total));
    }
    if (used == 1) return kOne;
    return 8 * double(total) + codes > kSideBits + 8 * used ? kCoded : kRaw;
}

Plane plane_of(const Words& words, int rank) {
    Plane made;
    made.bytes.resize(words.entries());
    const uint8_t* from = words.data + rank;
    for (size_t i = 0; i < made.bytes.size(); ++i, from += words.size) ++made.counts[made.bytes[i] = *from];
    made.mode = mode_of(made.counts, made.bytes.size());
    return made;
}

int lanes(size_t entries) { return lanes_for(entries / 2); }

Tables table_of(const Table& freq) { return {freq.data(), 1, {}, {0}, 0}; }

void write_coded(const Plane& plane, Output& out) {
    const size_t rarest = size_t(std::min_element(plane.counts.begin(), plane.counts.end()) - plane.counts.begin());
    const uint8_t shift = uint8_t(rarest - size_t(kEscape)), escape = uint8_t(kEscape);
    Counts rolled;
    for (size_t i = 0; i < 256; ++i) rolled[i] = plane.counts[uint8_t(i + shift)];
    const Table freq = normalize(rolled);
    std::vector<uint8_t> symbols(plane.bytes.size()), escapes;
    for (size_t i = 0; i < symbols.size(); ++i) {
        symbols[i] = uint8_t(plane.bytes[i] - shift);
        if (freq[symbols[i]] && symbols[i] != escape) continue;
        symbols[i] = escape;
        escapes.push_back(plane.bytes[i]);
    }
    out.raw(&shift, 1);
    write_table(freq, out);
    StreamEncoder encoder(table_of(freq), lanes(symbols.size()), instruction_sets().back()->name);
    if (!encoder.encode(nullptr, reinterpret_cast<const int8_t*>(symbols.data()), symbols.size())) throw Refused();
    out.uint(encoder.size());
    encoder.copy_to(out.room(encoder.size()));
    out.uint(escapes.size());
    out.raw(escapes.data(), escapes.size());
}

void read_coded(Input& src, std::vector<uint8_t>& plane) {
    const uint8_t shift = *src.raw(1), escape = uint8_t(kEscape);
    const Table freq = read_table(src);
    const int width = lanes(plane.size());
    const Stream stream = read_stream(src, width);
    StreamDecoder decoder(stream.data, stream.bytes, table_of(freq), width, instruction_sets().back()->name);
    if (!decoder.decode(nullptr, reinterpret_cast<int8_t*>(plane.data()), plane.size()) || !decoder.finished()) {
        throw Refused();
    }
    size_t left = src.uint(plane.size());
    const uint8_t* values = src.raw(left);
    for (uint8_t& byte : plane) {
        if (byte != escape) {
            byte = uint8_t(byte + shift);
        } else {
            if (left-- == 0) throw Refused();
            byte = *values++;
        }
    }
    if (left) throw Refused();
}

}  // namespace

void write_planes(const Words& words, Output& out) {
    const size_t step = rows_in(words, kStream);
    for (size_t row = 0; row < words.rows; row += step) {
        const Words chunk = words.part(row, std::min(step, words.rows - row));
        std::vector<Plane> planes;
        uint64_t modes = 0, place = 1;
        for (int rank = 0; rank < words.size; ++rank, place *= 3) {
            planes.push_back(plane_of(chunk, rank));
            modes += place * planes.back().mode;
        }
        out.uint(modes);
        for (const Plane& plane : planes) {
            if (plane.mode == kCoded) {
                write_coded(plane, out);
            } else {
                out.raw(plane.bytes.data(), plane.mode == kOne ? 1 : plane.bytes.size());
            }
        }
    }
}

void read_planes(Input& src, const Words& shape, uint8_t* words) {
    const size_t step = rows_in(shape, kStream);
    uint64_t most = 1;
    for (int rank = 0; rank < shape.size; ++rank) most *= 3;
    std::vector<uint8_t> plane;
    for (size_t row = 0; row < shape.rows; row += step) {
        plane.resize(std::min(step, shape.rows - row) * shape.cols);
        uint64_t modes = src.uint(most - 1);
        for (int rank = 0; rank < shape.size; ++rank, modes /= 3) {
            const Mode mode = Mode(modes % 3);
            const uint8_t* from = plane.data();
            if (mode == kCoded) {
                read_coded(src, plane);
            } else {
                from = src.raw(mode == kOne ? 1 : plane.size());
            }
            uint8_t* to = words + row * shape.cols * shape.size + rank;
            const size_t by = mode == kOne ? 0 : 1;
            for (size_t i = 0; i < plane.size(); ++i, to += shape.size) *to = from[i * by];
        }
    }
}

}  // namespace waterfill
