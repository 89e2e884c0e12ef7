// Codes into the fields of blocks, and back; waterfill/runtime/layout.py is the specification.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "codes.h"
#include "for_this_machine.h"

namespace nb = nanobind;
using namespace waterfill;

namespace {

// The codes of a block into their fields, a line of bytes at a time.
template <int bits>
ALWAYS_INLINE void pack_block(const uint8_t* __restrict codes, uint8_t* __restrict block) {
    constexpr int lower = lower_bits(bits), upper = upper_bits(bits), cols = block_cols(bits);
    std::memset(block, 0, block_bytes(bits));
    for (int line = 0; line < cols / 32; ++line) {
        const Place place = lower_place(bits, 32 * line);
        for (int j = 0; j < 32; ++j)
            block[place.byte + j] |= static_cast<uint8_t>((codes[32 * line + j] & ((1 << lower) - 1)) << place.shift);
    }
    for (int line = 0; upper > 0 && line < cols / 16; ++line) {
        const Place place = upper_place(bits, 16 * line);
        for (int j = 0; j < 16; ++j)
            block[place.byte + j] |= static_cast<uint8_t>(codes[16 * line + j] >> lower << place.shift);
    }
}

// `cols` stored codes, padded with zeros to whole blocks, into the bytes of a row.
template <int bits>
FOR_THIS_MACHINE void pack_row(const uint8_t* __restrict codes, int64_t cols, uint8_t* __restrict packed) {
    for (int64_t begin = 0; begin < cols; begin += block_cols(bits), packed += block_bytes(bits))
        pack_block<bits>(codes + begin, packed);
}

using PackRow = void (*)(const uint8_t*, int64_t, uint8_t*);

PackRow pack_row_of(int bits) {
    switch (bits) {
        case 2: return [](const uint8_t* c, int64_t n, uint8_t* p) { pack_row<2>(c, n, p); };
        case 3: return [](const uint8_t* c, int64_t n, uint8_t* p) { pack_row<3>(c, n, p); };
        case 4: return [](const uint8_t* c, int64_t n, uint8_t* p) { pack_row<4>(c, n, p); };
        case 5: return [](const uint8_t* c, int64_t n, uint8_t* p) { pack_row<5>(c, n, p); };
        case 6: return [](const uint8_t* c, int64_t n, uint8_t* p) { pack_row<6>(c, n, p); };
        case 8: return [](const uint8_t* c, int64_t n, uint8_t* p) { pack_row<8>(c, n, p); };
        default: throw std::invalid_argument("no codes of so many bits");
    }
}

FOR_THIS_MACHINE
void unpack_block(const uint8_t* __restrict block, int bits, uint8_t* __restrict codes) {
    const int lower = lower_bits(bits), upper = upper_bits(bits), cols = block_cols(bits);
    for (int line = 0; line < cols / 32; ++line) {
        const Place place = lower_place(bits, 32 * line);
        for (int j = 0; j < 32; ++j) codes[32 * line + j] = block[place.byte + j] >> place.shift & ((1 << lower) - 1);
    }
    for (int line = 0; upper > 0 && line < cols / 16; ++line) {
        const Place place = upper_place(bits, 16 * line);
        for (int j = 0; j < 16; ++j)
            codes[16 * line + j] |= (block[place.byte + j] >> place.shift & ((1 << upper) - 1)) << lower;
    }
}

void check_packed(size_t rows, int64_t cols, int bits, size_t packed_rows, int64_t bytes) {
    if (rows != packed_rows || bytes != (cols + block_cols(bits) - 1) / block_cols(bits) * block_bytes(bits))
        throw std::invalid_argument("codes and their packed form do not fit together");
}

// Codes as they are stored, those beyond the width clipped.
template <class Code>
FOR_THIS_MACHINE void stored(const Code* __restrict codes, int64_t count, int bits, uint8_t* __restrict out) {
    const Code least = static_cast<Code>(-(1 << (bits - 1))), most = static_cast<Code>(-least - 1);
    const uint8_t half = static_cast<uint8_t>(1 << (bits - 1));
    for (int64_t i = 0; i < count; ++i) {
        const Code above = codes[i] > least ? codes[i] : least, code = above < most ? above : most;
        out[i] = static_cast<uint8_t>(static_cast<uint8_t>(code) + half);
    }
}

// Whether one of kBlock codes is beyond the width.
template <class Code>
FOR_THIS_MACHINE bool any_beyond(const Code* __restrict codes, int bits) {
    const Code most = static_cast<Code>((1 << (bits - 1)) - 1);
    Code found = 0;
    for (int i = 0; i < kBlock; ++i) {
        const Code folded = static_cast<Code>(codes[i] ^ (codes[i] < 0 ? -1 : 0));
        found |= static_cast<Code>(folded > most);
    }
    return found != 0;
}

// How many codes are beyond each of the widths 2, 3, 4, 5, 6 and 8, added to `counts`.
template <class Code>
FOR_THIS_MACHINE void count_beyond(const Code* __restrict codes, int64_t count, int64_t* __restrict counts) {
    for (int64_t begin = 0; begin < count; begin += 127) {  // of which a code as small as a byte holds the count
        const int64_t end = begin + 127 < count ? begin + 127 : count;
        Code found[6] = {};
        for (int64_t i = begin; i < end; ++i) {
            const Code folded = static_cast<Code>(codes[i] ^ (codes[i] < 0 ? -1 : 0));
            found[0] = static_cast<Code>(found[0] + (folded > 1));
            found[1] = static_cast<Code>(found[1] + (folded > 3));
            found[2] = static_cast<Code>(found[2] + (folded > 7));
            found[3] = static_cast<Code>(found[3] + (folded > 15));
            found[4] = static_cast<Code>(found[4] + (folded > 31));
            found[5] = static_cast<Code>(found[5] + (folded > 127));
        }
        for (int w = 0; w < 6; ++w) counts[w] += found[w];
    }
}

template <class Number>
using Matrix = nb::ndarray<Number, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Row = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

}  // namespace

// Codes [rows, cols] into `packed` [rows, row bytes], each plus 2^(bits - 1); those beyond are clipped.
template <class Code>
void pack_codes(Matrix<const Code> codes, int bits, Matrix<uint8_t> packed) {
    const int64_t cols = codes.shape(1), bytes = packed.shape(1);
    check_packed(codes.shape(0), cols, bits, packed.shape(0), bytes);
    const PackRow pack_row = pack_row_of(bits);
    nb::gil_scoped_release unlocked;
    std::vector<uint8_t> row((cols + kBlock - 1) / kBlock * kBlock, 0);
    for (size_t r = 0; r < codes.shape(0); ++r) {
        stored(codes.data() + r * cols, cols, bits, row.data());
        pack_row(row.data(), cols, packed.data() + r * bytes);
    }
}

// How many codes are beyond each of the widths 2, 3, 4, 5, 6 and 8.
template <class Code>
std::vector<int64_t> codes_beyond(Matrix<const Code> codes) {
    const int64_t count = codes.shape(0) * codes.shape(1), each = 1 << 20;
    std::vector<int64_t> counts(6, 0);
    nb::gil_scoped_release unlocked;
    for (int64_t i = 0; i < count; i += each)
        count_beyond(codes.data() + i, std::min(each, count - i), counts.data());
    return counts;
}

// What is missing from codes that were clipped, row by row: starts [rows + 1], and as many columns and values as there
// are codes beyond the width.
template <class Code>
void clipped_codes(Matrix<const Code> codes, int bits, Row starts, Row where, Row values) {
    const int64_t rows = codes.shape(0), cols = codes.shape(1), most = where.shape(0);
    if (static_cast<int64_t>(starts.shape(0)) != rows + 1 || static_cast<int64_t>(values.shape(0)) != most)
        throw std::invalid_argument("codes and their corrections do not fit together");
    nb::gil_scoped_release unlocked;
    const int half = 1 << (bits - 1);
    int64_t found = 0;
    starts.data()[0] = 0;
    for (int64_t r = 0; r < rows; ++r) {
        const Code* row = codes.data() + r * cols;
        for (int64_t c = 0; c < cols; ++c) {
            if (c % kBlock == 0 && c + kBlock <= cols && !any_beyond(row + c, bits)) {
                c += kBlock - 1;
                continue;
            }
            if (row[c] >= -half && row[c] < half) continue;
            if (found == most) throw std::invalid_argument("more codes are beyond the width than were counted");
            where.data()[found] = static_cast<int32_t>(c);
            values.data()[found++] = row[c] < 0 ? row[c] + half : row[c] - (half - 1);
        }
        starts.data()[r + 1] = static_cast<int32_t>(found);
    }
}

// The reverse: `packed` [rows, row bytes] into codes [rows, cols].
void unpack_codes(Matrix<const uint8_t> packed, int bits, Matrix<uint8_t> codes) {
    const int64_t cols = codes.shape(1), bytes = packed.shape(1);
    check_packed(codes.shape(0), cols, bits, packed.shape(0), bytes);
    nb::gil_scoped_release unlocked;
    uint8_t found[kBlock];
    for (size_t r = 0; r < codes.shape(0); ++r)
        for (int64_t begin = 0; begin < cols; begin += block_cols(bits)) {
            unpack_block(packed.data() + r * bytes + begin / block_cols(bits) * block_bytes(bits), bits, found);
            std::memcpy(codes.data() + r * cols + begin, found, std::min<int64_t>(block_cols(bits), cols - begin));
        }
}

void bind_packing(nb::module_& m) {
    m.def("pack_codes", &pack_codes<int8_t>, nb::arg().noconvert(), nb::arg(), nb::arg().noconvert());
    m.def("pack_codes", &pack_codes<int16_t>, nb::arg().noconvert(), nb::arg(), nb::arg().noconvert());
    m.def("codes_beyond", &codes_beyond<int8_t>, nb::arg().noconvert());
    m.def("codes_beyond", &codes_beyond<int16_t>, nb::arg().noconvert());
    m.def("clipped_codes", &clipped_codes<int8_t>, nb::arg().noconvert(), nb::arg(), nb::arg(), nb::arg(), nb::arg());
    m.def("clipped_codes", &clipped_codes<int16_t>, nb::arg().noconvert(), nb::arg(), nb::arg(), nb::arg(), nb::arg());
    m.def("unpack_codes", &unpack_codes);
}
