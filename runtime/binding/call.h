// A call of a compiled function whose guards hold, without a line of Python: signature, guards, arrays, run, results.
//
// Invariant: whatever is not exactly as described makes `call` return NotImplemented before anything has changed, and
// Python takes the long way. All pointers to Python objects are borrowed from the description, which whoever holds this
// keeps alive; so the garbage collector sees every reference.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "arguments.h"
#include "guards.h"
#include "objects.h"

namespace pg_call {

struct Layout {
    PyTypeObject *tensor, *storage;
    Py_ssize_t tensor_storage, spec, array, payload, payload_version, view, requires_grad, grad, edge, edge_version;
    Py_ssize_t data, version, shape, dtype;

    Layout(const py::handle &tensor_type, const py::handle &storage_type, const py::handle &spec_type)
        : tensor(reinterpret_cast<PyTypeObject *>(tensor_type.ptr())), storage(reinterpret_cast<PyTypeObject *>(storage_type.ptr())),
          tensor_storage(slot_offset(tensor_type, "storage")), spec(slot_offset(tensor_type, "spec")),
          array(slot_offset(tensor_type, "_array")), payload(slot_offset(tensor_type, "_payload")),
          payload_version(slot_offset(tensor_type, "_payload_version")), view(slot_offset(tensor_type, "_view")),
          requires_grad(slot_offset(tensor_type, "_requires_grad")), grad(slot_offset(tensor_type, "_grad")),
          edge(slot_offset(tensor_type, "_edge")), edge_version(slot_offset(tensor_type, "_edge_version")),
          data(slot_offset(storage_type, "data")), version(slot_offset(storage_type, "version")),
          shape(slot_offset(spec_type, "shape")), dtype(slot_offset(spec_type, "dtype")) {}
};

// ---- What a call is checked against. --------------------------------------------------------------------------------

struct Argument {
    PyObject *shape, *dtype, *requires_grad;
    int type_number;  // NumPy's
    std::vector<py::ssize_t> extents;
};

struct GuardedTensor {
    PyObject *tensor, *storage, *requires_grad;
};

struct GuardedGradient {
    PyObject *tensor;  // null: that of an argument
    std::size_t argument;
    bool is_none;
};

// A number of a dict, or (index ≥ 0) of a tuple in it.
struct Scalar {
    PyObject *owner, *key;
    py::ssize_t index;
};

struct Result {
    py::dtype dtype;
    std::vector<py::ssize_t> shape;
    PyObject *spec;
};

struct Gradient {
    PyObject *owner;  // null: an argument
    std::size_t argument;
    py::ssize_t output;
    PyObject *tensor;
};

// ---- The call. ------------------------------------------------------------------------------------------------------

class Call {
public:
    Call(const py::dict &d)
        : layout_(d["tensor"], d["storage"], d["spec"]), lock_acquire_(pointer(d, "acquire")), lock_release_(pointer(d, "release")),
          context_(pointer(d, "context")), eager_(pointer(d, "eager")), is_grad_enabled_(none_to_null(d["is_grad_enabled"])),
          number_(reinterpret_cast<PyTypeObject *>(pointer(d, "number"))), config_(pointer(d, "config")),
          generation_(pointer(d, "generation")), blocks_(pointer(d, "blocks")), thread_(PyThread_get_thread_ident()),
          finish_(pointer(d, "finish")), numbers_(static_cast<double *>(array_data(d["numbers"]))),
          positional_(d["positional"]), named_(d["named"]), unchanged_(d), has_threads_(py::cast<bool>(d["has_threads"])) {
        for (const py::handle block : d["open_blocks"]) open_blocks_.push_back(block.ptr());
        for (const py::handle item : d["arguments"]) {
            const auto t = py::cast<py::tuple>(item);
            Argument argument = {t[0].ptr(), t[1].ptr(), t[2].ptr(), py::cast<py::dtype>(t[3]).num(), {}};
            for (const py::handle extent : t[0]) argument.extents.push_back(py::cast<py::ssize_t>(extent));
            arguments_.push_back(std::move(argument));
        }
        if (positional_.tensors() + named_.tensors() != arguments_.size()) throw py::value_error("the arguments' form has other tensors");
        for (const py::handle item : d["tensors"]) {
            const auto t = py::cast<py::tuple>(item);
            tensors_.push_back({t[0].ptr(), t[1].ptr(), t[2].ptr()});
        }
        for (const py::handle item : d["gradients"]) {
            const auto t = py::cast<py::tuple>(item);
            gradients_.push_back({none_to_null(t[0]), argument(t[1]), py::cast<bool>(t[2])});
        }
        for (const py::handle item : d["slots"]) slots_.push_back(item.ptr());
        for (const py::handle item : d["places"]) {
            const auto t = py::cast<py::tuple>(item);
            places_.emplace_back(py::cast<std::size_t>(t[0]), py::cast<std::size_t>(t[1]));
        }
        for (const py::handle item : d["scalars"]) {
            const auto t = py::cast<py::tuple>(item);
            scalars_.push_back({t[0].ptr(), t[1].ptr(), py::cast<py::ssize_t>(t[2])});
        }
        for (const py::handle item : d["results"]) {
            const auto t = py::cast<py::tuple>(item);
            Result result = {py::cast<py::dtype>(t[1]), {}, t[2].ptr()};
            for (const py::handle extent : t[0]) result.shape.push_back(py::cast<py::ssize_t>(extent));
            results_.push_back(std::move(result));
        }
        for (const py::handle item : d["written"]) written_.push_back(item.ptr());
        for (const py::handle item : d["owners"]) owners_.push_back(PyLong_AsVoidPtr(item.ptr()));
        sorted_written_.assign(written_.begin(), written_.end());
        for (std::vector<void *> *objects : {&sorted_written_, &owners_}) std::sort(objects->begin(), objects->end(), std::less<>());
        for (const py::handle item : d["actions"]) {
            const auto t = py::cast<py::tuple>(item);
            actions_.push_back({none_to_null(t[0]), argument(t[1]), py::cast<py::ssize_t>(t[2]), t[3].ptr()});
        }
        for (const char *name : {"PEQUEGRAD_STANCE", "PEQUEGRAD_NUM_THREADS", "OMP_NUM_THREADS", "PEQUEGRAD_DEBUG_NANS"}) {
            environment_.emplace_back(name, value_of(name));
        }
        cores_ = has_threads_ ? cores() : 0;
    }

    // `run(arrays, count)` runs the step on arrays that it keeps alive; it returns None, or what `fail` raises an exception of.
    template <class Run, class Fail>
    py::object operator()(PyObject *positional, PyObject *named, const Run &run, const Fail &fail) {
        const py::object not_here = py::reinterpret_borrow<py::object>(Py_NotImplemented);
        Given given(arguments_.size());
        if (!is_usual() || !read_arguments(positional, named, given) || !guards_hold(given)) return not_here;
        const py::object is_locked = called(lock_acquire_, Py_False);
        if (is_locked.ptr() != Py_True) return not_here;
        struct Release {
            PyObject *release;
            ~Release() { Py_XDECREF(PyObject_CallNoArgs(release)); }
        } release{lock_release_};
        if (!read_scalars()) return not_here;
        for (std::size_t i = 0; i < arguments_.size(); ++i)
            if (!is_contiguous(given.array(i))) given.replace_array(i, array_of(given.array(i)));
        Objects passed(slots_.size() + results_.size());
        std::copy(slots_.begin(), slots_.end(), passed.data());
        for (const auto &place : places_) passed[place.first] = given.array(place.second);
        std::vector<py::object> made;
        for (std::size_t i = 0; i < results_.size(); ++i) {
            made.push_back(empty(results_[i]));
            passed[slots_.size() + i] = made.back().ptr();
        }
        const py::object failure = run(passed.data(), slots_.size() + results_.size());
        if (!failure.is_none()) fail(failure);
        raise_versions();
        for (std::size_t i = 0; i < results_.size(); ++i) made[i] = wrapped(made[i], results_[i].spec);
        for (const Gradient &action : actions_) {
            PyObject *const owner = action.owner != nullptr ? action.owner : given.object(action.argument);
            if (!is_tensor(owner)) continue;  // an array: the tensor around it would be gone by now
            set_slot(owner, layout_.grad, action.output >= 0 ? made[static_cast<std::size_t>(action.output)].ptr() : action.tensor);
        }
        if (finish_ == Py_None) return made[0];
        py::list all;
        for (const py::object &tensor : made) all.append(tensor);
        return called(finish_, all.ptr());
    }

private:
    static PyObject *pointer(const py::dict &d, const char *name) { return py::object(d[name]).ptr(); }
    // Of one that belongs to another tensor there is none, and nobody asks.
    static std::size_t argument(const py::handle &index) {
        const auto given = py::cast<py::ssize_t>(index);
        return given < 0 ? 0 : static_cast<std::size_t>(given);
    }
    static void *array_data(const py::handle &array) { return py::cast<py::array>(array).mutable_data(); }
    static std::string value_of(const char *name) {
        const char *const value = std::getenv(name);
        return value != nullptr ? value : "";
    }
    static int cores() {
#if defined(__linux__)
        cpu_set_t set;
        return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
#else
        return 0;
#endif
    }
    // A NumPy number as an array, or an array's elements side by side.
    static py::object array_of(PyObject *object) {
        using py::detail::npy_api;
        PyObject *const array = npy_api::get().PyArray_FromAny_(object, nullptr, 0, 0, npy_api::NPY_ARRAY_C_CONTIGUOUS_, nullptr);
        if (array == nullptr) throw py::error_already_set();
        return py::reinterpret_steal<py::object>(array);
    }
    // Straight from NumPy: py::array works out strides that NumPy knows.
    static py::object empty(const Result &result) {
        const auto &numpy = py::detail::npy_api::get();
        Py_INCREF(result.dtype.ptr());  // which the array takes
        PyObject *const array = numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, result.dtype.ptr(), static_cast<int>(result.shape.size()),
                                                            result.shape.data(), nullptr, nullptr, 0, nullptr);
        if (array == nullptr) throw py::error_already_set();
        return py::reinterpret_steal<py::object>(array);
    }
    static bool is_among(const std::vector<void *> &sorted, void *object) {
        return std::binary_search(sorted.begin(), sorted.end(), object, std::less<>());
    }
    bool is_tensor(PyObject *object) const { return PyObject_TypeCheck(object, layout_.tensor) != 0; }

    // The same blocks of settings are open, and, since they are a thread's own, in the same thread.
    bool are_blocks_usual() const {
        const std::size_t count = open_blocks_.size();
        if (static_cast<std::size_t>(PyList_GET_SIZE(blocks_)) != count) return false;
        for (std::size_t i = 0; i < count; ++i)
            if (PyList_GET_ITEM(blocks_, static_cast<py::ssize_t>(i)) != open_blocks_[i]) return false;
        return count == 0 || PyThread_get_thread_ident() == thread_;
    }

    // Stance and threads are what they were, nothing is traced, and gradients are on or off as they were, if that matters.
    bool is_usual() const {
        static PyObject *const interpreter = interned("interpreter"), *const enabled = interned("is_grad_enabled");
        static PyObject *const generation = interned("generation");
        if (!are_blocks_usual() || attribute(config_, generation).ptr() != generation_) return false;
        for (const auto &variable : environment_) {
            const char *const now = std::getenv(variable.first);
            if (variable.second != (now != nullptr ? now : "")) return false;
        }
        if (has_threads_ && cores() != cores_) return false;
        if (attribute(context_, interpreter).ptr() != eager_) return false;
        return is_grad_enabled_ == nullptr || attribute(context_, enabled).ptr() == is_grad_enabled_;
    }

    // Takes the arguments apart; false where one is not as expected, or lies where the step writes.
    bool read_arguments(PyObject *positional, PyObject *named, Given &given) const {
        if (!positional_.takes(positional, given) || !named_.takes(named, given) || !given.are_distinct()) return false;
        for (std::size_t i = 0; i < arguments_.size(); ++i) {
            PyObject *const object = given.object(i);
            const Argument &expected = arguments_[i];
            PyObject *array = object;
            py::object made;
            if (is_tensor(object)) {
                array = slot(object, layout_.array);
                if (!is_like(object, expected) || is_among(sorted_written_, slot(object, layout_.tensor_storage))) return false;
            } else if (expected.requires_grad != Py_False) {
                return false;
            } else if (PyObject_TypeCheck(object, number_) != 0) {
                made = array_of(object);
                array = made.ptr();
            }
            if (array == nullptr || !is_usable(array, expected)) return false;
            given.add_array(array);
        }
        return true;
    }

    bool is_like(PyObject *tensor, const Argument &expected) const {
        if (slot(tensor, layout_.requires_grad) != expected.requires_grad) return false;
        if (slot(tensor, layout_.view) != Py_None) {  // whose history a write to its base would renew
            PyObject *const storage = slot(tensor, layout_.tensor_storage);
            if (PyObject_RichCompareBool(slot(tensor, layout_.edge_version), slot(storage, layout_.version), Py_EQ) != 1) return false;
        }
        PyObject *const spec = slot(tensor, layout_.spec);
        return slot(spec, layout_.dtype) == expected.dtype
               && PyObject_RichCompareBool(slot(spec, layout_.shape), expected.shape, Py_EQ) == 1;
    }

    static bool is_contiguous(PyObject *array) {
        return (py::detail::array_proxy(array)->flags & py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_) != 0;
    }

    bool is_usable(PyObject *object, const Argument &expected) const {
        using py::detail::npy_api;
        if (Py_TYPE(object) != npy_api::get().PyArray_Type_) return false;
        const auto *array = py::detail::array_proxy(object);
        if ((array->flags & npy_api::NPY_ARRAY_ALIGNED_) == 0 || array->nd != static_cast<int>(expected.extents.size())) return false;
        for (std::size_t axis = 0; axis < expected.extents.size(); ++axis) {
            if (array->dimensions[axis] != expected.extents[axis]) return false;
        }
        const auto descr = py::reinterpret_borrow<py::dtype>(array->descr);
        if (descr.num() != expected.type_number || descr.byteorder() == '>') return false;
        return !is_among(owners_, array->base != nullptr ? array->base : object);
    }

    bool guards_hold(Given &given) const {
        for (const GuardedTensor &guard : tensors_) {
            if (slot(guard.tensor, layout_.tensor_storage) != guard.storage) return false;
            if (slot(guard.tensor, layout_.requires_grad) != guard.requires_grad) return false;
        }
        for (const GuardedGradient &guard : gradients_) {
            PyObject *const tensor = guard.tensor != nullptr ? guard.tensor : given.object(guard.argument);
            const bool is_none = !is_tensor(tensor) || slot(tensor, layout_.grad) == Py_None;
            if (is_none != guard.is_none) return false;
        }
        return unchanged_.hold();
    }

    bool read_scalars() {
        for (std::size_t i = 0; i < scalars_.size(); ++i) {
            PyObject *value = PyDict_GetItem(scalars_[i].owner, scalars_[i].key);
            if (value != nullptr && scalars_[i].index >= 0) {
                const bool has_it = PyTuple_CheckExact(value) && scalars_[i].index < PyTuple_GET_SIZE(value);
                value = has_it ? PyTuple_GET_ITEM(value, scalars_[i].index) : nullptr;
            }
            if (value == nullptr || (!PyFloat_CheckExact(value) && !PyLong_CheckExact(value))) return false;
            const double number = PyFloat_AsDouble(value);
            if (number == -1.0 && PyErr_Occurred() != nullptr) {
                PyErr_Clear();
                return false;
            }
            numbers_[i] = number;
        }
        return true;
    }

    // Storages that are written together mostly share one number: it is raised once for all that follow each other.
    void raise_versions() const {
        py::object before, now;
        for (PyObject *const storage : written_) {
            PyObject *const version = slot(storage, layout_.version);
            if (version != before.ptr()) {
                before = py::reinterpret_borrow<py::object>(version);
                now = py::reinterpret_steal<py::object>(PyNumber_Add(version, one()));
                if (!now) throw py::error_already_set();
            }
            set_slot(storage, layout_.version, now.ptr());
        }
    }

    static PyObject *one() {
        static PyObject *const number = PyLong_FromLong(1);
        return number;
    }
    static PyObject *zero() {
        static PyObject *const number = PyLong_FromLong(0);
        return number;
    }

    py::object wrapped(const py::object &array, PyObject *spec) const {
        const py::object storage = made_of(layout_.storage), tensor = made_of(layout_.tensor);
        set_slot(storage.ptr(), layout_.data, array.ptr());
        set_slot(storage.ptr(), layout_.version, zero());
        PyObject *const t = tensor.ptr();
        set_slot(t, layout_.tensor_storage, storage.ptr());
        set_slot(t, layout_.spec, spec);
        set_slot(t, layout_.array, array.ptr());
        set_slot(t, layout_.payload, array.ptr());
        set_slot(t, layout_.payload_version, zero());
        set_slot(t, layout_.view, Py_None);
        set_slot(t, layout_.requires_grad, Py_False);
        set_slot(t, layout_.grad, Py_None);
        set_slot(t, layout_.edge, Py_None);
        set_slot(t, layout_.edge_version, zero());
        return tensor;
    }
    static py::object made_of(PyTypeObject *type) {
        PyObject *const object = type->tp_alloc(type, 0);
        if (object == nullptr) throw py::error_already_set();
        return py::reinterpret_steal<py::object>(object);
    }

    Layout layout_;
    PyObject *lock_acquire_, *lock_release_, *context_, *eager_, *is_grad_enabled_;
    PyTypeObject *number_;
    PyObject *config_, *generation_, *blocks_;
    unsigned long thread_;
    std::vector<PyObject *> open_blocks_;
    PyObject *finish_;
    double *numbers_;
    std::vector<Argument> arguments_;
    std::vector<GuardedTensor> tensors_;
    std::vector<GuardedGradient> gradients_;
    Form positional_, named_;
    Guards unchanged_;
    std::vector<PyObject *> slots_, written_;
    std::vector<std::pair<std::size_t, std::size_t>> places_;
    std::vector<Scalar> scalars_;
    std::vector<Result> results_;
    std::vector<Gradient> actions_;
    std::vector<void *> sorted_written_, owners_;  // by address
    std::vector<std::pair<const char *, std::string>> environment_;
    bool has_threads_;  // a step of one thread does not ask the system, which takes a while, for its cores
    int cores_ = 0;
};

}  // namespace pg_call
