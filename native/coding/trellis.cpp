// Parities along a trellis for waterfill/coding/trellis.py.
#include <algorithm>
#include <stdexcept>

#include "codes.h"

namespace nb = nanobind;
using namespace waterfill;

// out[i] = the parity, the lowest bit, of the state before symbol i; lane i mod `lanes` begins in state 0, and a
// symbol's lowest bit moves it: coding/trellis.py.
void trellis_parities(Array<const int8_t, 1> symbols, int lanes, Array<const uint8_t, 2> transition,
                      Array<uint8_t, 1> out) {
    constexpr int kMost = 64;
    const int64_t size = symbols.shape(0);
    const int64_t states = transition.shape(0);
    if (lanes < 1 || lanes > kMost || static_cast<int64_t>(out.shape(0)) != size || transition.shape(1) != 2 ||
        states < 1 || *std::max_element(transition.data(), transition.data() + 2 * states) >= states)
        throw std::invalid_argument("trellis_parities: the arrays do not fit together");
    const uint8_t* next = transition.data();
    const int8_t* symbol = symbols.data();
    uint8_t* parity = out.data();
    nb::gil_scoped_release release;
    uint8_t state[kMost] = {};
    for (int64_t at = 0; at < size; at += lanes) {
        const int here = static_cast<int>(std::min<int64_t>(lanes, size - at));
        for (int lane = 0; lane < here; ++lane) {
            parity[at + lane] = state[lane] & 1;
            state[lane] = next[state[lane] * 2 + (symbol[at + lane] & 1)];
        }
    }
}

void bind_trellis(nb::module_& m) {
    m.def("trellis_parities", &trellis_parities);
}
