// The coder's Python face. Arguments are checked in coding/rans.py; only what depends on the symbols is checked here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "coder_streams.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class Number>
using Vector = nb::ndarray<Number, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Frequencies = nb::ndarray<const uint16_t, nb::shape<-1, 256>, nb::c_contig, nb::device::cpu>;
using Transition = std::optional<nb::ndarray<const uint8_t, nb::shape<-1, 2>, nb::c_contig, nb::device::cpu>>;
using Offsets = std::optional<Vector<const uint16_t>>;
using Select = std::optional<Vector<const uint16_t>>;

waterfill::Tables tables(const Frequencies& freq, const Transition& transition, const Offsets& offset) {
    waterfill::Tables made{freq.data(), freq.shape(0), {}, {0}, 0};
    if (transition && offset) made.set_machine(transition->data(), offset->data(), offset->size());
    return made;
}

const uint16_t* pointer(const Select& select, size_t symbols) {
    if (select && select->size() != symbols) throw waterfill::BadArgument("select and symbols differ in length");
    return select ? select->data() : nullptr;
}

class Decoder {
public:
    Decoder(Vector<const uint8_t> data, Frequencies freq, int lanes, Transition transition, Offsets offset,
            const std::string& isa)
        : data_(data), freq_(freq), stream_(data.data(), data.size(), tables(freq, transition, offset), lanes, isa) {}

    bool decode_into(Vector<int8_t> symbols, Select select) {
        const uint16_t* tables = pointer(select, symbols.size());
        nb::gil_scoped_release unlocked;
        return stream_.decode(tables, symbols.data(), symbols.size());
    }

    bool finished() const { return stream_.finished(); }

private:
    Vector<const uint8_t> data_;  // kept alive for the stream
    Frequencies freq_;
    waterfill::StreamDecoder stream_;
};

class Encoder {
public:
    Encoder(Frequencies freq, int lanes, Transition transition, Offsets offset, const std::string& isa)
        : freq_(freq), stream_(tables(freq, transition, offset), lanes, isa) {}

    bool push(Vector<const int8_t> symbols, Select select) {
        const uint16_t* tables = pointer(select, symbols.size());
        nb::gil_scoped_release unlocked;
        return stream_.encode(tables, symbols.data(), symbols.size());
    }

    nb::bytes bytes() const {
        nb::object made = nb::steal(PyBytes_FromStringAndSize(nullptr, Py_ssize_t(stream_.size())));
        if (!made.is_valid()) throw nb::python_error();
        stream_.copy_to(reinterpret_cast<uint8_t*>(PyBytes_AsString(made.ptr())));
        return nb::borrow<nb::bytes>(made);
    }

private:
    Frequencies freq_;  // kept alive for the stream
    waterfill::StreamEncoder stream_;
};

std::vector<std::string> instruction_set_names() {
    std::vector<std::string> names;
    for (const waterfill::InstructionSet* set : waterfill::instruction_sets()) names.push_back(set->name);
    return names;
}

}  // namespace

void bind_coder(nb::module_& m) {
    m.def("instruction_sets", instruction_set_names, "Names of this machine's instruction sets, the fastest last.");
    nb::class_<Decoder>(m, "StreamDecoder", "coding.reference.StreamDecoder, compiled.")
        .def(nb::init<Vector<const uint8_t>, Frequencies, int, Transition, Offsets, const std::string&>(), "data"_a,
             "freq"_a, "lanes"_a, "transition"_a.none(), "offset"_a.none(), "isa"_a)
        .def("decode_into", &Decoder::decode_into, "symbols"_a, "select"_a.none())
        .def("finished", &Decoder::finished);
    nb::class_<Encoder>(m, "StreamEncoder", "coding.reference.StreamEncoder, compiled.")
        .def(nb::init<Frequencies, int, Transition, Offsets, const std::string&>(), "freq"_a, "lanes"_a,
             "transition"_a.none(), "offset"_a.none(), "isa"_a)
        .def("push", &Encoder::push, "symbols"_a, "select"_a.none())
        .def("bytes", &Encoder::bytes);
}
