// Lossless words for Python, many matrices in one call: `pack` and `unpack` of coding/lossless/words.py.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "methods.h"
#include "tasks.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace waterfill;

namespace {

template <class Byte>
using Octets = nb::ndarray<Byte, nb::ndim<2>, nb::c_contig, nb::device::cpu>;  // [rows, bytes of a row]
using Blob = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Fields of words of `size` bytes that are floats if they have an exponent.
Fields fields_of(int size, int exponent, int mantissa) {
    const bool floats = (size == 2 || size == 4) && exponent > 0 && exponent <= 8 && mantissa >= 0 && mantissa <= 23 &&
                        1 + exponent + mantissa <= 8 * size;
    if (size < 1 || size > 16 || (exponent && !floats)) {
        throw std::invalid_argument("no word has such fields");
    }
    return {8 * size, exponent, mantissa, true};
}

Words words_of(const uint8_t* data, size_t rows, size_t row_bytes, int size) {
    if (row_bytes % size || !rows || !row_bytes) throw std::invalid_argument("rows of whole words are wanted");
    return {data, rows, row_bytes / size, size};
}

struct ToPack {
    Octets<const uint8_t> octets;  // kept alive
    Words words;
    Fields fields;
    size_t positions;
    Packed packed;

    explicit ToPack(nb::handle task)
        : octets(nb::cast<Octets<const uint8_t>>(task[0])), positions(nb::cast<size_t>(task[4])) {
        const int size = nb::cast<int>(task[1]);
        fields = fields_of(size, nb::cast<int>(task[2]), nb::cast<int>(task[3]));
        words = words_of(octets.data(), octets.shape(0), octets.shape(1), size);
        if (!positions || words.cols % positions) throw std::invalid_argument("positions must divide the columns");
    }

    // Mantissa bits that no word has and a sign that no word has cost nothing.
    void run(Families& families) {
        if (fields.floats()) {
            uint32_t used = 0, block[kBlock];
            for (size_t at = 0; at < words.entries(); at += kBlock) {
                const size_t count = std::min(kBlock, words.entries() - at);
                const uint32_t* word = words.take(at, count, block);
                for (size_t i = 0; i < count; ++i) used |= word[i];
            }
            fields.sign = used >> (fields.exponent + fields.mantissa);
            for (; fields.mantissa && !(used & 1); used >>= 1) --fields.mantissa;
        }
        packed = pack(words, fields, positions, families);
    }

    nb::tuple result() const {
        const auto& bytes = packed.out.bytes();
        return nb::make_tuple(fields.mantissa, int(packed.method), nb::bytes(bytes.data(), bytes.size()),
                              packed.out.claimed());
    }
};

struct ToUnpack {
    Blob blob;                 // kept alive
    Octets<uint8_t> octets;
    size_t at;
    uint64_t room, method;
    Fields fields;
    Words shape;
    bool refused = false;
    uint64_t claimed = 0;
    size_t positions = 1;

    explicit ToUnpack(nb::handle task)
        : blob(nb::cast<Blob>(task[0])), octets(nb::cast<Octets<uint8_t>>(task[7])), at(nb::cast<size_t>(task[1])),
          room(nb::cast<uint64_t>(task[2])), method(nb::cast<uint64_t>(task[3])) {
        const int size = nb::cast<int>(task[4]);
        fields = fields_of(size, nb::cast<int>(task[5]), nb::cast<int>(task[6]));
        shape = words_of(nullptr, octets.shape(0), octets.shape(1), size);
    }

    void run(Families& families) {
        try {
            Input src(blob.data(), blob.size(), at, room);
            positions = unpack(src, method, fields, shape, octets.data(), families);
            at = src.at();
            claimed = src.claimed();
        } catch (const Refused&) {
            refused = true;
        }
    }

    nb::object result() const {
        return refused ? nb::none() : nb::object(nb::make_tuple(at, claimed, positions));
    }
};

// One result for each task, all found without the interpreter.
template <class Task>
nb::list run(Families& families, const nb::list& given, int threads) {
    std::vector<Task> tasks;
    std::vector<size_t> work;
    for (nb::handle one : given) {
        tasks.emplace_back(one);
        work.push_back(tasks.back().octets.size());
    }
    {
        nb::gil_scoped_release unlocked;
        run_tasks(work, threads, [&](size_t i) { tasks[i].run(families); });
    }
    nb::list results;
    for (const Task& task : tasks) results.append(task.result());
    return results;
}

}  // namespace

void bind_lossless(nb::module_& m) {
    nb::class_<Families>(m, "Families", "The densities of magnitudes; see coding/lossless/magnitude.py.")
        .def(nb::init<std::vector<std::vector<int64_t>>, std::vector<int64_t>>(), "survival"_a, "octave"_a)
        .def("tables", [](Families& families, int shape, int top) {
            if (shape < 0 || shape >= families.shapes() || top < 0 || top >= kTops) throw nb::index_error();
            const uint16_t* tables = families.tables(shape, top);
            return nb::bytes(tables, size_t(kPhases) * kSymbols * sizeof(uint16_t));
        }, "shape"_a, "top"_a);
    m.def("pack_words", run<ToPack>, "families"_a, "tasks"_a, "threads"_a,
          "Task: octets [rows, bytes], bytes of a word, exponent, mantissa, positions. "
          "Result: mantissa, method, bytes, entries claimed.");
    m.def("unpack_words", run<ToUnpack>, "families"_a, "tasks"_a, "threads"_a,
          "Task: blob, place in it, entries that may be claimed, method, bytes of a word, exponent, mantissa, octets "
          "[rows, bytes] to be filled. Result: place after it, entries claimed, positions; or None for damage.");
}
