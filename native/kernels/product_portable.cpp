// Products with small codes, the readable way: every instruction set finds the same integers.
#include "codes.h"

namespace waterfill {
namespace {

// The code at a place of a block, as it lies there: from 0 to 2^bits - 1.
template <int Bits>
inline int code_at(const uint8_t* block, int place) {
    if (Bits == 8) return block[place];
    if (Bits == 4) return block[place % 32] >> (4 * (place / 32)) & 15;
    const int low = block[place % 32] >> (2 * (place / 32)) & 3;
    return Bits == 2 ? low : low | (block[32 + place % 16] >> (place / 16) & 1) << 2;
}

template <int Bits>
void dot(const CodeMatrix& matrix, const Inputs& inputs, int64_t row, int64_t item, int64_t first, int64_t last,
         int64_t* totals) {
    const uint8_t* codes = matrix.codes + row * matrix.row_bytes();
    const int16_t* whole = inputs.whole + item * inputs.padded;
    int64_t total = 0;
    for (int64_t block = first; block < last; ++block)
        for (int place = 0; place < block_cols(Bits); ++place)
            total += code_at<Bits>(codes + block * block_bytes(Bits), place) * whole[block * block_cols(Bits) + place];
    totals[0] += total;
}

void tiles(int bits, int, Tile (&found)[4]) {
    const Dot dots[] = {dot<2>, dot<3>, dot<4>, dot<8>};
    for (Tile& tile : found) tile = {1, 1, dots[bits == 8 ? 3 : bits - 2]};
}

}  // namespace

const ProductSet kProductPortable = {"portable", [] { return true; }, tiles};

}  // namespace waterfill
