#include "model.h"

#include <cstdlib>

#include "coding/coder.h"

namespace waterfill {
namespace {

constexpr int64_t kLargest = 1 << 13;  // of the base, and half of it of a factor

std::vector<int64_t> small(Input& src, size_t count) {
    std::vector<int64_t> values = src.ints(count);
    for (const int64_t value : values) {
        if (value >= kLargest / 2 || value <= -kLargest / 2) throw Refused();
    }
    return values;
}

}  // namespace

Scales Model::scales(size_t of_rows, size_t of_cols) const {
    Scales made{std::vector<int16_t>(of_rows, int16_t(base)), std::vector<int16_t>(of_cols, 0)};
    if (has_rows) {
        for (size_t i = 0; i < of_rows; ++i) made.first[i] = int16_t(base + 2 * rows[i]);
    }
    if (has_channels) {
        size_t at = 0;
        for (const int64_t channel : channels) {
            for (const int64_t position : positions) made.second[at++] = int16_t(2 * channel + position);
        }
    }
    return made;
}

void Model::write(Output& out, const Families& families, bool sign) const {
    out.uint(uint64_t(shape | int(has_rows) << 4 | int(has_channels) << 5 | int(sign) << 6));
    out.uint(uint64_t(base));
    if (has_rows) out.ints(rows);
    if (has_channels) {
        out.uint(positions.size());
        out.ints(positions);
        out.ints(channels);
    }
    if (shape == families.shapes()) write_table(freq, out);
}

Model Model::read(Input& src, const Families& families, size_t of_rows, size_t of_cols, bool& sign) {
    Model made;
    const int flags = int(src.uint(127));
    made.base = int64_t(src.uint(kLargest));
    made.shape = flags & 15;
    made.has_rows = flags & 16;
    made.has_channels = flags & 32;
    sign = flags & 64;
    if (made.has_rows) made.rows = small(src, of_rows);
    if (made.has_channels) {
        const size_t count = src.uint(of_cols);
        if (count == 0 || of_cols % count) throw Refused();
        made.positions = small(src, count);
        made.channels = small(src, of_cols / count);
    }
    if (made.shape > families.shapes()) throw Refused();
    if (made.shape == families.shapes()) made.freq = read_table(src);
    return made;
}

void write_table(const Table& freq, Output& out) {
    int first = -127, last = 127;
    while (first < 127 && !freq[first & 255]) ++first;
    while (last > -127 && !freq[last & 255]) --last;
    if (first > last) first = last = -127;  // none is in use
    std::vector<int64_t> values;
    for (int symbol = first; symbol <= last; ++symbol) values.push_back(freq[symbol & 255]);
    out.uint(uint64_t(first + 127));
    out.uint(uint64_t(last - first));
    out.ints(values);
}

Table read_table(Input& src) {
    const uint64_t first = src.uint(254);
    const std::vector<int64_t> values = src.ints(src.uint(254 - first) + 1);
    Table freq{};
    int64_t left = kTotal;
    for (size_t i = 0; i < values.size(); ++i) {
        if (values[i] < 0 || values[i] > left) throw Refused();
        left -= values[i];
        freq[(first + i - 127) & 255] = uint16_t(values[i]);
    }
    freq[uint8_t(kEscape)] = uint16_t(left);
    return freq;
}

}  // namespace waterfill
