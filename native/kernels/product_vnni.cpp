// Products with small codes for AVX-512 VNNI: four products and their sum in one instruction.
#include "codes.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define TARGET __attribute__((target("avx2,avx512f,avx512bw,avx512vl,avx512vnni")))

#include <immintrin.h>

namespace waterfill {
namespace {

template <int Bits>
struct Sums {
    static constexpr int64_t kHeld = int64_t{1} << 40;  // blocks: kMostCols columns of 255 * 128 fit into 32 bits
    __m256i all;

    TARGET inline Sums() : all(_mm256_setzero_si256()) {}
    TARGET inline void add(__m256i codes, __m256i inputs) { all = _mm256_dpbusd_epi32(all, codes, inputs); }
    TARGET inline __m256i whole() const { return all; }
};

}  // namespace
}  // namespace waterfill

#include "product_x86.h"

namespace waterfill {
namespace {

void tiles(int bits, int bytes, Tile (&found)[4]) {
    bytes == 2 ? tiles_of<2>(bits, found) : tiles_of<1>(bits, found);
}

FourRows rows_of(int bits, int bytes) { return bytes == 2 ? four_rows_of<2>(bits) : four_rows_of<1>(bits); }

bool available() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

}  // namespace

const ProductSet kProductVnni = {"vnni", available, rows_of, tiles};

}  // namespace waterfill
#else
namespace waterfill {
const ProductSet kProductVnni = {"vnni", [] { return false; }, nullptr, nullptr};
}
#endif
