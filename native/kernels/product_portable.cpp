// Products with small codes, the readable way: every instruction set finds the same integers.
#include "codes.h"

namespace waterfill {
namespace {

template <int Bits>
void dot(const CodeMatrix& matrix, const Inputs& inputs, int64_t row, int64_t item, int64_t first, int64_t last,
         int64_t* totals) {
    const uint8_t* codes = matrix.codes + row * matrix.row_bytes();
    int64_t total = 0;
    for (int64_t block = first; block < last; ++block)
        for (int place = 0; place < block_cols(Bits); ++place)
            total += code_at(Bits, codes + block * block_bytes(Bits), place) *
                     inputs.whole(item, block * block_cols(Bits) + place);
    totals[0] += total;
}

void tiles(int bits, int, Tile (&found)[4]) {
    const Dot dots[] = {dot<2>, dot<3>, dot<4>, dot<5>, dot<6>, nullptr, dot<8>};
    for (Tile& tile : found) tile = {1, 1, dots[bits - 2]};
}

}  // namespace

const ProductSet kProductPortable = {"portable", [] { return true; }, nullptr, nullptr, tiles};

}  // namespace waterfill
