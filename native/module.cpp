// The compiled core, `waterfill._native`: integers, floats and bytes, nothing of models.
//
// A file X.cpp that has something for Python defines `void bind_X(nanobind::module_& m)`, at the beginning of a
// line. CMake collects those names into WATERFILL_BINDINGS, so a new file needs no edit here or anywhere else.

#include <nanobind/nanobind.h>

#define BIND(name) void bind_##name(nanobind::module_& m);
WATERFILL_BINDINGS
#undef BIND

NB_MODULE(_native, m) {
    m.doc() = "The compiled core of waterfill: every function here equals a readable reference in Python.";
#define BIND(name) bind_##name(m);
    WATERFILL_BINDINGS
#undef BIND
}
