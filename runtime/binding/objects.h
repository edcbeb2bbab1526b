// Python objects as they lie in memory: slots by their place, attributes, calls, a few objects on the stack.
//
// Invariant: what is returned as PyObject * is borrowed.
#pragma once
#include <pybind11/pybind11.h>
#include <structmember.h>

#include <string>
#include <vector>

namespace pg_call {

namespace py = pybind11;

inline Py_ssize_t slot_offset(const py::handle &type, const char *name) {
    const py::object member = py::reinterpret_borrow<py::object>(type.attr("__dict__")[name]);
    if (Py_TYPE(member.ptr()) != &PyMemberDescr_Type) throw py::type_error(std::string(name) + " is no slot");
    return reinterpret_cast<PyMemberDescrObject *>(member.ptr())->d_member->offset;
}

inline PyObject *&slot(PyObject *object, Py_ssize_t offset) {
    return *reinterpret_cast<PyObject **>(reinterpret_cast<char *>(object) + offset);
}

inline void set_slot(PyObject *object, Py_ssize_t offset, PyObject *value) {
    PyObject *&place = slot(object, offset);
    PyObject *const before = place;
    Py_INCREF(value);
    place = value;
    Py_XDECREF(before);
}

inline py::object called(PyObject *function, PyObject *argument) {
    PyObject *const result = PyObject_CallOneArg(function, argument);
    if (result == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
}

inline py::object attribute(PyObject *object, PyObject *name) {
    PyObject *const result = PyObject_GetAttr(object, name);
    if (result == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
}

inline PyObject *interned(const char *text) { return PyUnicode_InternFromString(text); }

inline PyObject *none_to_null(const py::handle &object) { return object.is_none() ? nullptr : object.ptr(); }

// Borrowed, without a look at the heap where there are few.
class Objects {
public:
    explicit Objects(std::size_t count) {
        if (count > usual_count) {
            many_.resize(count);
            objects_ = many_.data();
        }
    }
    Objects(const Objects &) = delete;
    Objects &operator=(const Objects &) = delete;
    PyObject *&operator[](std::size_t index) { return objects_[index]; }
    PyObject **data() { return objects_; }

private:
    static constexpr std::size_t usual_count = 64;
    PyObject *few_[usual_count];
    std::vector<PyObject *> many_;
    PyObject **objects_ = few_;
};

}  // namespace pg_call
