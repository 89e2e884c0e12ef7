#include "coder_streams.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace waterfill {
namespace {

constexpr size_t kBlock = 1 << 14;  // symbols checked, then coded, while they are in the first-level cache
constexpr size_t kChunk = 1 << 20;  // bytes; the encoder's output grows by these, never moving what is written
static_assert(kBlock % kMaxLanes == 0, "a block must begin at lane 0");

const InstructionSet& find(const std::string& name, int lanes) {
    for (const InstructionSet* set : instruction_sets()) {
        if (name == set->name) return lanes < set->fewest_lanes ? kPortable : *set;
    }
    throw BadArgument("instruction set '" + name + "' is not one of this machine's: see instruction_sets()");
}

const uint16_t* advanced(const uint16_t* select, size_t by) { return select ? select + by : nullptr; }

}  // namespace

std::vector<const InstructionSet*> instruction_sets() {
    std::vector<const InstructionSet*> found;
    for (const InstructionSet* set : {&kPortable, &kAvx2, &kAvx512}) {
        if (set->available()) found.push_back(set);
    }
    return found;
}

void Tables::set_machine(const uint8_t* transition, const uint16_t* offset, size_t states) {
    next.resize(2 * states);
    for (size_t i = 0; i < next.size(); ++i) next[i] = packed(transition[i], offset[transition[i]]);
    offsets.assign(offset, offset + states);
    std::sort(offsets.begin(), offsets.end());
    offsets.erase(std::unique(offsets.begin(), offsets.end()), offsets.end());
    first = packed(0, offset[0]);
}

void Tables::check(const uint16_t* select, size_t symbols) const {
    uint16_t largest = 0;
    for (size_t i = 0; select && i < symbols; ++i) largest = std::max(largest, select[i]);
    const size_t reached = largest + offsets.back();
    if (reached < count) return;
    throw BadArgument("select reaches table " + std::to_string(reached) + ", but there are only " +
                      std::to_string(count));
}

void lay_out(const uint16_t* freq, uint32_t* slots) {
    for (uint32_t symbol = 0, start = 0; symbol < 256; ++symbol) {
        for (uint32_t rank = 0; rank < freq[symbol] && start < kTotal; ++rank, ++start) {
            slots[start] = symbol | uint32_t(freq[symbol] - 1) << 8 | rank << 20;
        }
    }
}

StreamDecoder::StreamDecoder(const uint8_t* data, size_t bytes, Tables tables, int lanes, const std::string& isa,
                             const uint32_t* slots)
    : tables_(std::move(tables)), slots_(slots ? nullptr : new uint32_t[tables_.count << kTableBits]),
      seen_(slots ? 0 : tables_.count), unseen_(seen_.size()), end_(data + bytes), isa_(find(isa, lanes)) {
    run_.word = data + 4 * size_t(lanes);
    run_.slots = slots ? slots : slots_.get();
    run_.next = tables_.next.empty() ? nullptr : tables_.next.data();
    run_.lanes = lanes;
    for (int lane = 0; lane < lanes; ++lane, data += 4) run_.state[lane] = load_word(data) | load_word(data + 2) << 16;
}

bool StreamDecoder::decode(const uint16_t* select, int8_t* symbols, size_t count) {
    std::fill_n(run_.machine, kMaxLanes, tables_.first);
    for (size_t at = 0; at < count; at += kBlock) {
        const size_t block = std::min(kBlock, count - at);
        tables_.check(advanced(select, at), block);
        if (unseen_) lay_out_selected(advanced(select, at), block);
        if (!decode_block(advanced(select, at), symbols + at, block)) return false;
    }
    return true;
}

bool StreamDecoder::finished() const {
    const auto home = [](uint32_t state) { return state == kStateFloor; };
    return run_.word == end_ && std::all_of(run_.state, run_.state + run_.lanes, home);
}

void StreamDecoder::lay_out_selected(const uint16_t* select, size_t count) {
    for (size_t i = 0; i < (select ? count : 1); ++i) {
        const size_t table = select ? select[i] : 0;
        if (seen_[table]) continue;
        seen_[table] = 1;
        --unseen_;
        for (const uint32_t offset : tables_.offsets) {
            lay_out(tables_.freq + (table + offset) * 256, slots_.get() + ((table + offset) << kTableBits));
        }
    }
}

bool StreamDecoder::decode_block(const uint16_t* select, int8_t* symbols, size_t count) {
    const size_t lanes = run_.lanes;
    while (const size_t groups = std::min(count, words_left()) / lanes) {  // as many as cannot run out of words
        isa_.decode(run_, select, symbols, groups);
        select = advanced(select, groups * lanes);
        symbols += groups * lanes;
        count -= groups * lanes;
    }
    for (size_t i = 0; i < count; ++i) {
        if (!decode_one(i % lanes, select ? select[i] : 0, symbols[i])) return false;
    }
    return true;
}

bool StreamDecoder::decode_one(size_t lane, size_t table, int8_t& symbol) {
    uint32_t& state = run_.state[lane];
    const size_t moved = table + (run_.machine[lane] >> kOffsetShift);
    const uint32_t entry = run_.slots[moved << kTableBits | (state & (kTotal - 1))];
    state = advance(state, entry);
    if (state < kStateFloor) {
        if (words_left() == 0) return false;
        state = state << 16 | load_word(run_.word);
        run_.word += 2;
    }
    if (run_.next) run_.machine[lane] = run_.next[(run_.machine[lane] & kRowMask) | (entry & 1)];
    symbol = int8_t(entry);
    return true;
}

StreamEncoder::StreamEncoder(Tables tables, int lanes, const std::string& isa)
    : tables_(std::move(tables)), entries_(tables_.count * 256), isa_(find(isa, lanes)) {
    uint32_t start = 0;
    for (size_t i = 0; i < entries_.size(); ++i) {
        if (i % 256 == 0) start = 0;
        entries_[i] = tables_.freq[i] | start << 16;
        start += tables_.freq[i];
    }
    run_.entries = entries_.data();
    run_.lanes = lanes;
    std::fill_n(run_.state, lanes, kStateFloor);
}

bool StreamEncoder::encode(const uint16_t* select, const int8_t* symbols, size_t count) {
    std::vector<uint32_t> states = lane_states(symbols, count);
    std::vector<uint16_t> moved(states.empty() ? 0 : std::min(kBlock, count));
    for (size_t block = (count + kBlock - 1) / kBlock; block-- > 0;) {
        const size_t at = block * kBlock, size = std::min(kBlock, count - at);
        const size_t whole = size - size % run_.lanes;
        const uint16_t* tables = advanced(select, at);
        tables_.check(tables, size);
        if (!states.empty()) {
            apply_machine(&states[block * run_.lanes], tables, symbols + at, size, moved.data());
            tables = moved.data();
        }
        make_room(at + size);
        EncodeRun tail = run_;  // the symbols of an incomplete group, as a group of fewer lanes
        tail.lanes = int(size - whole);
        if (!kPortable.encode(tail, symbols + at + whole, advanced(tables, whole), tail.lanes ? 1 : 0)) return false;
        tail.lanes = run_.lanes;
        run_ = tail;
        if (!isa_.encode(run_, symbols + at, tables, whole / run_.lanes)) return false;
        chunks_.back().first = run_.word;
    }
    return true;
}

// A machine runs forwards and the coder backwards: the machine's lane states at the beginning of every block
// [blocks, lanes] let each block find its tables by itself. Empty when there is no machine.
std::vector<uint32_t> StreamEncoder::lane_states(const int8_t* symbols, size_t count) const {
    std::vector<uint32_t> states;
    if (tables_.next.empty()) return states;
    uint32_t now[kMaxLanes];
    std::fill_n(now, kMaxLanes, tables_.first);
    for (size_t at = 0; at < count; at += kBlock) {
        states.insert(states.end(), now, now + run_.lanes);
        apply_machine(now, nullptr, symbols + at, std::min(kBlock, count - at), nullptr);
    }
    return states;
}

// Runs the machine over one block: `states` [lanes] moves on, `moved` (unless null) receives the tables of the symbols.
void StreamEncoder::apply_machine(uint32_t* states, const uint16_t* select, const int8_t* symbols, size_t count,
                                  uint16_t* moved) const {
    for (size_t group = 0; group < count; group += run_.lanes) {
        const size_t end = std::min(count, group + run_.lanes);
        for (size_t i = group; i < end; ++i) {
            uint32_t& state = states[i - group];
            if (moved) moved[i] = uint16_t((select ? select[i] : 0) + (state >> kOffsetShift));
            state = tables_.next[(state & kRowMask) | (symbols[i] & 1)];
        }
    }
}

// Opens another chunk unless one more block surely fits; no larger than so many symbols need.
void StreamEncoder::make_room(size_t symbols) {
    if (!chunks_.empty() && size_t(run_.word - chunks_.back().memory.get()) >= 2 * kBlock + kScratchBytes) return;
    const size_t bytes = std::min(kChunk, 2 * std::max(symbols, kBlock) + kScratchBytes);
    std::unique_ptr<uint8_t[]> memory(new uint8_t[bytes]);
    run_.word = memory.get() + bytes;
    chunks_.push_back({std::move(memory), run_.word, run_.word});
}

size_t StreamEncoder::size() const {
    size_t total = 4 * size_t(run_.lanes);
    for (const Chunk& chunk : chunks_) total += size_t(chunk.end - chunk.first);
    return total;
}

void StreamEncoder::copy_to(uint8_t* to) const {
    for (int lane = 0; lane < run_.lanes; ++lane, to += 4) {
        store_word(to, run_.state[lane]);
        store_word(to + 2, run_.state[lane] >> 16);
    }
    for (auto chunk = chunks_.rbegin(); chunk != chunks_.rend(); ++chunk) {
        const size_t written = size_t(chunk->end - chunk->first);
        std::memcpy(to, chunk->first, written);
        to += written;
    }
}

}  // namespace waterfill
