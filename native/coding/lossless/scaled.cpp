// Words under the density of their magnitudes: methods.Scaled of coding/lossless/methods.py.
#include "coding/coder.h"
#include "coding/coder_streams.h"
#include "methods.h"

namespace waterfill {
namespace {

constexpr size_t kPiece = 1 << 17;  // entries that are decoded at a time

int lanes(size_t entries, const Fields& fields) { return lanes_for(entries * (3 + fields.raw()) / 8); }

// The same table for every phase.
std::vector<uint16_t> repeated(const Table& table) {
    std::vector<uint16_t> made;
    for (int phase = 0; phase < kPhases; ++phase) made.insert(made.end(), table.begin(), table.end());
    return made;
}

Tables tables_of(const uint16_t* freq) { return {freq, size_t(kPhases), {}, {0}, 0}; }

struct Escape {
    size_t at;
    uint32_t value;
};

// A chunk of rows, coded from its last piece to its first.
void write_chunk(const Words& words, size_t row, const Fields& fields, const Scales& scales, const uint16_t* freq,
                 Output& out) {
    const size_t step = rows_in(words, kPiece), pieces = (words.rows + step - 1) / step;
    const size_t most = std::min(step, words.rows) * words.cols;
    std::vector<int8_t> symbols(most);
    std::vector<uint16_t> select(most), escapes;
    const size_t whole = fields.packed(most);
    std::vector<uint8_t> raw((pieces - 1) * whole + fields.packed((words.rows - (pieces - 1) * step) * words.cols));
    StreamEncoder encoder(tables_of(freq), lanes(words.entries(), fields), instruction_sets().back()->name);
    for (size_t piece = pieces; piece-- > 0;) {
        const Words part = words.part(piece * step, std::min(step, words.rows - piece * step));
        uint8_t* bits = raw.data() + piece * whole;
        split(part, fields, scales, row + piece * step, freq, symbols.data(), select.data(), bits);
        if (!encoder.encode(select.data(), symbols.data(), part.entries())) throw Refused();
        for (size_t i = part.entries(); i-- > 0;) {
            if (symbols[i] == kEscape) escapes.push_back(uint16_t(top_bits(fields, part.one(i))));
        }
    }
    out.uint(encoder.size());
    encoder.copy_to(out.room(encoder.size()));
    out.uint(escapes.size());
    uint8_t* to = out.room(2 * escapes.size());
    for (size_t i = escapes.size(); i-- > 0; to += 2) store_word(to, escapes[i]);
    out.raw(raw.data(), raw.size());
}

void read_chunk(Input& src, const Words& shape, size_t row, const Fields& fields, const Scales& scales,
                const uint16_t* freq, const uint32_t* slots, uint8_t* words) {
    const int width = lanes(shape.entries(), fields);
    const Stream stream = read_stream(src, width);
    StreamDecoder decoder(stream.data, stream.bytes, tables_of(freq), width, instruction_sets().back()->name, slots);
    size_t escapes = src.uint(shape.entries());
    const uint8_t* values = src.raw(2 * escapes);
    for (size_t i = 0; i < escapes; ++i) {
        if (load_word(values + 2 * i) >> fields.symbol()) throw Refused();
    }
    const size_t step = rows_in(shape, kPiece), most = std::min(step, shape.rows) * shape.cols;
    std::vector<int8_t> symbols(most);
    std::vector<uint16_t> select(most);
    for (size_t first = 0; first < shape.rows; first += step) {
        const size_t entries = std::min(step, shape.rows - first) * shape.cols;
        select_tables(scales, row + first, entries, select.data());
        if (!decoder.decode(select.data(), symbols.data(), entries)) throw Refused();
        uint8_t* to = words + first * shape.cols * shape.size;
        merge(symbols.data(), src.raw(fields.packed(entries)), fields, scales, row + first, entries, to);
        for (const int8_t *at = symbols.data(), *end = at + entries; at < end; ++at) {
            at = static_cast<const int8_t*>(std::memchr(at, uint8_t(kEscape), size_t(end - at)));
            if (!at) break;
            if (escapes-- == 0) throw Refused();
            patch(to, size_t(at - symbols.data()), load_word(values), fields);
            values += 2;
        }
    }
    if (escapes || !decoder.finished()) throw Refused();
}

}  // namespace

void write_scaled(const Words& words, const Fields& fields, size_t positions, Families& families, Output& out) {
    const Model model = fit(words, fields, positions, families);
    model.write(out, families, fields.sign);
    const Scales scales = model.scales(words.rows, words.cols);
    const bool known = model.shape < families.shapes();
    const std::vector<uint16_t> own = known ? std::vector<uint16_t>() : repeated(model.freq);
    const uint16_t* freq = known ? families.tables(model.shape, fields.top()) : own.data();
    const size_t step = rows_in(words, kStream);
    for (size_t row = 0; row < words.rows; row += step) {
        write_chunk(words.part(row, std::min(step, words.rows - row)), row, fields, scales, freq, out);
    }
}

size_t read_scaled(Input& src, Fields fields, const Words& shape, uint8_t* words, Families& families) {
    const Model model = Model::read(src, families, shape.rows, shape.cols, fields.sign);
    const Scales scales = model.scales(shape.rows, shape.cols);
    const bool known = model.shape < families.shapes();
    const std::vector<uint16_t> own = known ? std::vector<uint16_t>() : repeated(model.freq);
    const uint16_t* freq = known ? families.tables(model.shape, fields.top()) : own.data();
    const uint32_t* slots = known ? families.slots(model.shape, fields.top()) : nullptr;
    const size_t step = rows_in(shape, kStream);
    for (size_t row = 0; row < shape.rows; row += step) {
        const size_t count = std::min(step, shape.rows - row);
        uint8_t* to = words + row * shape.cols * shape.size;
        read_chunk(src, {nullptr, count, shape.cols, shape.size}, row, fields, scales, freq, slots, to);
    }
    return model.has_channels ? model.positions.size() : 1;
}

}  // namespace waterfill
