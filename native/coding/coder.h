// Interleaved rANS: what the loops of every instruction set share. The format is told in coding/rans_reference.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace waterfill {

constexpr int kTableBits = 12;
constexpr uint32_t kTotal = 1u << kTableBits;  // the frequencies of a table sum to this
constexpr uint32_t kStateFloor = 1u << 16;     // a state lives in [2^16, 2^32)
constexpr int kRenormShift = 32 - kTableBits;  // a state at or above freq << 20 gives up a word, then takes a symbol
constexpr int kMaxLanes = 64;

// An entry of the decoder's slot table: symbol in bits 0..7, freq - 1 in bits 8..19, slot - start in bits 20..31.
// An entry of the encoder's symbol table: freq in bits 0..15, start in bits 16..31.

struct DecodeRun {
    const uint8_t* word;               // next unread word; may be unaligned
    const uint32_t* slots;             // [tables, 4096]
    const uint32_t* next;              // lane machine [states, 2], or null when there is none; see `packed`
    int lanes;
    uint32_t state[kMaxLanes];
    uint32_t machine[kMaxLanes];       // machine state of every lane, packed
};

struct EncodeRun {
    uint8_t* word;                     // last written word; words are written towards lower addresses
    const uint32_t* entries;           // [tables, 256]
    int lanes;
    uint32_t state[kMaxLanes];
};

// A machine state as the loops hold it: how far it moves a symbol's table, above the place of its row in `next`.
constexpr int kOffsetShift = 9;
constexpr uint32_t kRowMask = (1u << kOffsetShift) - 1;
inline uint32_t packed(uint32_t state, uint32_t offset) { return offset << kOffsetShift | state << 1; }

// Whole groups of `lanes` symbols. `select` may be null: every symbol uses table 0 (plus its machine state's offset).
// The caller guarantees `lanes * groups` readable words, and valid table numbers.
using DecodeGroups = void (*)(DecodeRun& run, const uint16_t* select, int8_t* symbols, size_t groups);

// Whole groups, last to first. False when a symbol has frequency 0 in its table; the words written are then worthless.
// The caller guarantees room for `lanes * groups` words, and valid table numbers. Loops may scribble below `run.word`:
// kScratchBytes more must be writable there.
using EncodeGroups = bool (*)(EncodeRun& run, const int8_t* symbols, const uint16_t* select, size_t groups);
constexpr size_t kScratchBytes = 64;

struct InstructionSet {
    const char* name;
    int fewest_lanes;                  // streams with fewer lanes are left to the portable loops
    bool (*available)();
    DecodeGroups decode;
    EncodeGroups encode;
};

extern const InstructionSet kPortable, kAvx2, kAvx512;

#if defined(__x86_64__) && defined(__GNUC__)
#define WATERFILL_X86 1
#endif

inline uint32_t load_word(const uint8_t* at) { return at[0] | uint32_t(at[1]) << 8; }

inline void store_word(uint8_t* at, uint32_t word) {
    at[0] = uint8_t(word);
    at[1] = uint8_t(word >> 8);
}

// The state after the symbol of `entry` is taken off, before renormalization.
inline uint32_t advance(uint32_t state, uint32_t entry) {
    return ((entry >> 8 & (kTotal - 1)) + 1) * (state >> kTableBits) + (entry >> 20);
}

}  // namespace waterfill
