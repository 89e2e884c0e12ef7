// A rANS stream as a whole: tables laid out for the loops, blocks of symbols, checks, buffers. Plain C++, no Python.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "coder.h"

namespace waterfill {

std::vector<const InstructionSet*> instruction_sets();  // those of this machine, from the slowest to the fastest

struct BadArgument : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// The tables: frequencies [tables, 256], each summing to 4096, and the lane machine that moves between them: a symbol's
// table is select + offset of the lane's state. Without a machine `next` is empty and the only offset is 0.
struct Tables {
    const uint16_t* freq;
    size_t count;
    std::vector<uint32_t> next;       // [states, 2], packed
    std::vector<uint32_t> offsets;    // the distinct ones, ascending
    uint32_t first;                   // the packed state that every segment begins in

    // `transition` [states, 2], below `states`, and `offset` [states].
    void set_machine(const uint8_t* transition, const uint16_t* offset, size_t states);
    void check(const uint16_t* select, size_t symbols) const;  // throws BadArgument if a symbol's table may not exist
};

// The decoder's entries [4096] of a table [256].
void lay_out(const uint16_t* freq, uint32_t* slots);

class StreamDecoder {
public:
    // `data` holds at least the lanes' states; it and the frequencies must outlive the decoder. `slots` [tables, 4096]:
    // all tables as they are laid out, if they are already.
    StreamDecoder(const uint8_t* data, size_t bytes, Tables tables, int lanes, const std::string& isa,
                  const uint32_t* slots = nullptr);
    StreamDecoder(const StreamDecoder&) = delete;

    // One segment; `select` may be null. False when the words ran out.
    bool decode(const uint16_t* select, int8_t* symbols, size_t count);

    // Whether the stream is used up, to the byte, and every lane is back where the encoder began.
    bool finished() const;

private:
    size_t words_left() const { return size_t(end_ - run_.word) / 2; }
    void lay_out_selected(const uint16_t* select, size_t count);
    bool decode_block(const uint16_t* select, int8_t* symbols, size_t count);
    bool decode_one(size_t lane, size_t table, int8_t& symbol);

    Tables tables_;
    std::unique_ptr<uint32_t[]> slots_;  // [tables, 4096]; a table is laid out the first time it is selected
    std::vector<uint8_t> seen_;          // whether a value of select was met
    size_t unseen_;
    const uint8_t* end_;
    DecodeRun run_{};
    const InstructionSet& isa_;
};

class StreamEncoder {
public:
    StreamEncoder(Tables tables, int lanes, const std::string& isa);
    StreamEncoder(const StreamEncoder&) = delete;

    // One segment, the last segment first; `select` may be null. False when a symbol has frequency 0 in its table.
    bool encode(const uint16_t* select, const int8_t* symbols, size_t count);

    size_t size() const;              // bytes
    void copy_to(uint8_t* to) const;  // the finished stream

private:
    struct Chunk {
        std::unique_ptr<uint8_t[]> memory;  // filled from its end
        uint8_t *first, *end;
    };

    void make_room(size_t symbols);
    std::vector<uint32_t> lane_states(const int8_t* symbols, size_t count) const;
    void apply_machine(uint32_t* states, const uint16_t* select, const int8_t* symbols, size_t count,
                       uint16_t* moved) const;

    Tables tables_;
    std::vector<uint32_t> entries_;  // [tables, 256]
    std::vector<Chunk> chunks_;      // the last words first
    EncodeRun run_{};
    const InstructionSet& isa_;
};

}  // namespace waterfill
