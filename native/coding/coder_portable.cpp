// The coder's loops in plain C++: any machine, any number of lanes, with or without a lane machine.
#include "coder.h"

namespace waterfill {
namespace {

template <bool Machine>
void decode_groups(DecodeRun& run, const uint16_t* select, int8_t* symbols, size_t groups) {
    const int lanes = run.lanes;
    const uint8_t* word = run.word;
    for (size_t group = 0; group < groups; ++group) {
        for (int lane = 0; lane < lanes; ++lane) {
            size_t table = select ? select[lane] : 0;
            if (Machine) table += run.machine[lane] >> kOffsetShift;
            const uint32_t entry = run.slots[table << kTableBits | (run.state[lane] & (kTotal - 1))];
            const uint32_t state = advance(run.state[lane], entry);
            const uint32_t refill = state < kStateFloor;  // arithmetic instead of a branch nobody can predict
            run.state[lane] = state << 16 * refill | (load_word(word) & (0 - refill));
            word += 2 * refill;
            symbols[lane] = int8_t(entry);
            if (Machine) run.machine[lane] = run.next[(run.machine[lane] & kRowMask) | (entry & 1)];
        }
        symbols += lanes;
        if (select) select += lanes;
    }
    run.word = word;
}

void decode(DecodeRun& run, const uint16_t* select, int8_t* symbols, size_t groups) {
    (run.next ? decode_groups<true> : decode_groups<false>)(run, select, symbols, groups);
}

bool encode(EncodeRun& run, const int8_t* symbols, const uint16_t* select, size_t groups) {
    const int lanes = run.lanes;
    uint8_t* word = run.word;
    for (size_t group = groups; group-- > 0;) {
        for (int lane = lanes; lane-- > 0;) {
            const size_t at = group * lanes + lane;
            const uint32_t entry = run.entries[size_t(select ? select[at] : 0) << 8 | uint8_t(symbols[at])];
            const uint32_t freq = entry & 0xFFFF, start = entry >> 16;
            if (freq == 0) return false;
            uint32_t state = run.state[lane];
            const uint32_t full = state >> kRenormShift >= freq;
            store_word(word - 2, state);  // kept only if the state is full: arithmetic again
            word -= 2 * full;
            state >>= 16 * full;
            run.state[lane] = (state / freq << kTableBits) + state % freq + start;
        }
    }
    run.word = word;
    return true;
}

bool available() { return true; }

}  // namespace

const InstructionSet kPortable{"portable", 1, available, decode, encode};

}  // namespace waterfill
