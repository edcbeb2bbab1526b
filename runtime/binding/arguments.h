// What the arguments of a call must be: containers, in them tensors or arrays, and Python values.
//
// Invariant: no code of the user's runs, and nothing changes. Types, keys and values are borrowed from the description of a call,
// which whoever holds this keeps alive.
#pragma once
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "objects.h"

namespace pg_call {

// The distinct tensors or arrays of a call, and the memory of each, held until the call is over: containers may lose them meanwhile.
class Given {
public:
    explicit Given(std::size_t count) : held_(2 * count), count_(count) {}
    ~Given() {
        for (std::size_t i = 0; i < object_count_; ++i) Py_DECREF(held_[i]);
        for (std::size_t i = count_; i < count_ + array_count_; ++i) Py_DECREF(held_[i]);
    }
    Given(const Given &) = delete;
    Given &operator=(const Given &) = delete;

    void add_object(PyObject *object) { held_[object_count_++] = Py_NewRef(object); }
    void add_array(PyObject *array) { held_[count_ + array_count_++] = Py_NewRef(array); }
    void replace_array(std::size_t index, py::object array) {
        Py_DECREF(held_[count_ + index]);
        held_[count_ + index] = array.release().ptr();
    }
    PyObject *object(std::size_t index) { return held_[index]; }
    PyObject *array(std::size_t index) { return held_[count_ + index]; }

    bool are_distinct() {
        PyObject *const *const objects = held_.data();
        if (object_count_ <= few_objects) {
            for (std::size_t i = 1; i < object_count_; ++i)
                if (std::find(objects, objects + i, objects[i]) != objects + i) return false;
            return true;
        }
        std::vector<PyObject *> sorted(objects, objects + object_count_);
        std::sort(sorted.begin(), sorted.end(), std::less<>());
        return std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end();
    }

private:
    static constexpr std::size_t few_objects = 16;
    Objects held_;  // all objects, then all arrays
    std::size_t count_, object_count_ = 0, array_count_ = 0;
};

// What a value must be, all the way down. calling.py makes them.
class Form {
public:
    explicit Form(const py::handle &description) {
        const auto parts = py::cast<py::tuple>(description);
        const auto kind = py::cast<std::string>(parts[0]);
        if (kind == "tensor" || kind == "again") {
            kind_ = kind == "tensor" ? Kind::tensor : Kind::again;
            place_ = py::cast<std::size_t>(parts[1]);
        } else if (kind == "same" || kind == "equal") {
            kind_ = kind == "same" ? Kind::same : Kind::equal;
            value_ = parts[1].ptr();
        } else {
            kind_ = kind == "mapping" ? Kind::mapping : Kind::sequence;
            value_ = parts[1].ptr();
            for (const py::handle key : parts[2]) keys_.push_back(key.ptr());
            for (const py::handle item : parts[3]) items_.emplace_back(item);
        }
    }

    // How many tensors there are in it, each counted once.
    std::size_t tensors() const {
        std::size_t count = kind_ == Kind::tensor ? 1 : 0;
        for (const Form &item : items_) count += item.tensors();
        return count;
    }

    // Whether a value is so; adds its tensors to those given, in order.
    bool takes(PyObject *value, Given &given) const {
        switch (kind_) {
        case Kind::tensor:
            given.add_object(value);
            return true;
        case Kind::again:
            return given.object(place_) == value;
        case Kind::same:
            return value == value_;
        case Kind::equal:
            return are_equal(value, value_);
        case Kind::sequence:
            return takes_sequence(value, given);
        default:
            return takes_mapping(value, given);
        }
    }

private:
    enum class Kind { tensor, again, same, equal, sequence, mapping };

    // A list, a tuple or a named tuple.
    bool takes_sequence(PyObject *value, Given &given) const {
        if (reinterpret_cast<PyObject *>(Py_TYPE(value)) != value_ || static_cast<std::size_t>(Py_SIZE(value)) != items_.size()) return false;
        PyObject *const *const values = PySequence_Fast_ITEMS(value);
        for (std::size_t i = 0; i < items_.size(); ++i) {
            if (items_[i].kind_ == Kind::tensor) given.add_object(values[i]);
            else if (!items_[i].takes(values[i], given)) return false;
        }
        return true;
    }

    // A dict, its keys in this order.
    bool takes_mapping(PyObject *value, Given &given) const {
        if (!PyDict_CheckExact(value) || static_cast<std::size_t>(PyDict_Size(value)) != items_.size()) return false;
        PyObject *key = nullptr, *item = nullptr;
        std::size_t i = 0;
        for (py::ssize_t at = 0; PyDict_Next(value, &at, &key, &item) != 0; ++i)
            if (!are_equal(key, keys_[i]) || !items_[i].takes(item, given)) return false;
        return true;
    }

    // Of the same type, exactly str, bytes, int or float; floats bit by bit, which tells 0.0 from -0.0.
    static bool are_equal(PyObject *value, PyObject *expected) {
        if (value == expected) return true;
        if (Py_TYPE(value) != Py_TYPE(expected)) return false;
        if (!PyFloat_CheckExact(value)) return PyObject_RichCompareBool(value, expected, Py_EQ) == 1;
        const double a = PyFloat_AS_DOUBLE(value), b = PyFloat_AS_DOUBLE(expected);
        return std::memcmp(&a, &b, sizeof a) == 0;
    }

    Kind kind_;
    std::size_t place_ = 0;
    PyObject *value_ = nullptr;  // or a container's type
    std::vector<PyObject *> keys_;
    std::vector<Form> items_;
};

}  // namespace pg_call
