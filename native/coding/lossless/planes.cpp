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
    Counts counts{};
    Mode mode = kRaw;
    double entropy = 0;  // bits of all bytes
    double repeats = 0;  // sum of the probabilities of all bytes
};

using Histograms = std::vector<std::array<uint32_t, 256>>;

template <int Size>
void count(const Words& words, Histograms& counts) {
    const uint8_t* from = words.data;
    for (size_t i = 0; i < words.entries(); ++i, from += Size) {
        for (int rank = 0; rank < Size; ++rank) ++counts[size_t(rank) + (i % 2) * Size][from[rank]];
    }
}

// The planes of words, each byte counted.
std::vector<Plane> planes_of(const Words& words) {
    // Two tables for each plane, by turns: the same count twice in a row would wait for itself.
    Histograms counts(2 * size_t(words.size));
    switch (words.size) {
        case 1: count<1>(words, counts); break;
        case 2: count<2>(words, counts); break;
        case 4: count<4>(words, counts); break;
        default:
            for (size_t i = 0; i < words.entries() * words.size; ++i) ++counts[i % words.size][words.data[i]];
    }
    std::vector<Plane> made(words.size);
    const double total = double(words.entries());
    for (int rank = 0; rank < words.size; ++rank) {
        Plane& plane = made[rank];
        int used = 0;
        for (int byte = 0; byte < 256; ++byte) {
            const int64_t count = plane.counts[byte] = int64_t(counts[rank][byte]) + counts[words.size + rank][byte];
            if (!count) continue;
            ++used;
            plane.entropy -= double(count) * std::log2(double(count) / total);
            plane.repeats += double(count) * (double(count) / total);
        }
        plane.mode = used == 1 ? kOne : 8 * total - plane.entropy > kSideBits + 8 * used ? kCoded : kRaw;
    }
    return made;
}

std::vector<uint8_t> bytes_of(const Words& words, int rank) {
    std::vector<uint8_t> made(words.entries());
    const uint8_t* from = words.data + rank;
    for (size_t i = 0; i < made.size(); ++i, from += words.size) made[i] = *from;
    return made;
}

template <class Each>
void each_chunk(const Words& words, Each&& each) {
    const size_t step = rows_in(words, kStream);
    for (size_t row = 0; row < words.rows; row += step) each(words.part(row, std::min(step, words.rows - row)));
}

int lanes(size_t entries) { return lanes_for(entries / 2); }

Tables table_of(const Table& freq) { return {freq.data(), 1, {}, {0}, 0}; }

void write_coded(const Plane& plane, const std::vector<uint8_t>& bytes, Output& out) {
    const size_t rarest = size_t(std::min_element(plane.counts.begin(), plane.counts.end()) - plane.counts.begin());
    const uint8_t shift = uint8_t(rarest - size_t(kEscape)), escape = uint8_t(kEscape);
    Counts rolled;
    for (size_t i = 0; i < 256; ++i) rolled[i] = plane.counts[uint8_t(i + shift)];
    const Table freq = normalize(rolled);
    std::vector<uint8_t> symbols(bytes.size()), escapes;
    for (size_t i = 0; i < symbols.size(); ++i) {
        symbols[i] = uint8_t(bytes[i] - shift);
        if (freq[symbols[i]] && symbols[i] != escape) continue;
        symbols[i] = escape;
        escapes.push_back(bytes[i]);
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
    each_chunk(words, [&](const Words& chunk) {
        const std::vector<Plane> planes = planes_of(chunk);
        uint64_t modes = 0;
        for (int rank = words.size; rank-- > 0;) modes = 3 * modes + planes[rank].mode;
        out.uint(modes);
        for (int rank = 0; rank < words.size; ++rank) {
            if (planes[rank].mode == kOne) {
                out.raw(chunk.data + rank, 1);
                continue;
            }
            const std::vector<uint8_t> bytes = bytes_of(chunk, rank);
            if (planes[rank].mode == kCoded) {
                write_coded(planes[rank], bytes, out);
            } else {
                out.raw(bytes.data(), bytes.size());
            }
        }
    });
}

double least_planes(const Words& words) {
    double bits = 0;
    each_chunk(words, [&](const Words& chunk) {
        for (const Plane& plane : planes_of(chunk)) {
            const double entries = double(chunk.entries());
            // a state is 16 frequencies or more: rounding it saves log2(e) / 16 (1 - p) bits of a symbol at most
            const double saved = 0.1 * (entries - plane.repeats) + 0.001 * entries;
            if (plane.mode == kCoded) bits += plane.entropy - saved;
            if (plane.mode == kRaw) bits += 8 * entries;
        }
    });
    return bits / 8;
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
