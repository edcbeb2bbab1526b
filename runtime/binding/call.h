// A call of a compiled function whose guards hold, without a line of Python: signature, guards, arrays, run, results.
//
// Invariant: whatever is not exactly as described makes `call` return NotImplemented before anything has changed, and
// Python takes the long way. All pointers to Python objects are borrowed from the description, which whoever holds this
// keeps alive; so the garbage collector sees every reference.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <structmember.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace pg_call {

namespace py = pybind11;

// ---- Slots of Python objects, by their place. -----------------------------------------------------------------------

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
    py::ssize_t argument;
    bool is_none;
};

// Where a value is read from, and what it must be: an object, or what a weak reference refers to.
struct Expected {
    PyObject *object;
    bool is_weak;

    bool is(PyObject *value) const {
        if (!is_weak) return value == object;
#if PY_VERSION_HEX >= 0x030D0000
        PyObject *now = nullptr;
        const bool is_alive = PyWeakref_GetRef(object, &now) > 0;
        Py_XDECREF(now);
        return is_alive && now == value;
#else
        return value != Py_None && PyWeakref_GetObject(object) == value;
#endif
    }
};

// Borrowed: the object lives at least as long as the weak reference says so, under the GIL. Null where it is gone.
inline PyObject *referent(const Expected &reference) {
    if (!reference.is_weak) return reference.object;
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *now = nullptr;
    if (PyWeakref_GetRef(reference.object, &now) <= 0) return nullptr;
    Py_DECREF(now);
    return now;
#else
    PyObject *const now = PyWeakref_GetObject(reference.object);
    return now != Py_None ? now : nullptr;
#endif
}

// A dict and a key, a cell, or an object.
struct Root {
    Expected holder;
    PyObject *name;

    PyObject *value() const {
        if (name != nullptr) return PyDict_GetItem(holder.object, name);
        return PyCell_Check(holder.object) ? PyCell_GET(holder.object) : referent(holder);
    }
    bool is_name() const { return name != nullptr || PyCell_Check(holder.object); }
};

// One step from an object to another, without the user's code. trace/identities.py makes them.
struct Step {
    enum class Kind { item, dict, attribute, slot, method, of_class } kind;
    PyObject *key;
    Expected type, member;  // the owner's class, and what that has under the name of an attribute, a slot or a method
    bool falls_back;        // to that, where the owner itself has nothing
};

// What a value must be: one object, or a container of these very keys and items; of a set, these keys.
struct Identities {
    PyTypeObject *container;  // null: one object
    Expected object;
    std::vector<Identities> keys, items;

    bool are(PyObject *value) const {
        if (container == nullptr) return object.is(value);
        if (Py_TYPE(value) != container) return false;
        if (PyList_Check(value) || PyTuple_Check(value)) {
            PyObject *const *const values = PySequence_Fast_ITEMS(value);
            const auto size = static_cast<std::size_t>(Py_SIZE(value));
            if (size != items.size()) return false;
            for (std::size_t i = 0; i < size; ++i) {
                if (!items[i].are(values[i])) return false;
            }
            return true;
        }
        if (PyAnySet_Check(value)) {
            if (static_cast<std::size_t>(PySet_GET_SIZE(value)) != keys.size()) return false;
            if (keys.empty()) return true;
            // In its own order, which only a change of the set changes: equal is not enough, for 1 == 1.0 == True.
            const py::object iterator = py::reinterpret_steal<py::object>(PyObject_GetIter(value));
            for (const Identities &key : keys) {
                const py::object item = py::reinterpret_steal<py::object>(PyIter_Next(iterator.ptr()));
                if (!item || !key.are(item.ptr())) return false;
            }
            return true;
        }
        if (static_cast<std::size_t>(PyDict_Size(value)) != items.size()) return false;
        PyObject *key = nullptr, *item = nullptr;
        std::size_t i = 0;
        for (Py_ssize_t at = 0; PyDict_Next(value, &at, &key, &item) != 0; ++i) {
            if (!keys[i].are(key) || !items[i].are(item)) return false;
        }
        return true;
    }
};

struct GuardedRead {
    Root root;
    std::vector<Step> steps;
    Identities expected;
};

struct GuardedMember {
    Expected kind;
    PyObject *name;
    Expected member;
};

struct GuardedFunction {
    Expected function;
    PyObject *code, *defaults;
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
    py::ssize_t argument, output;
    PyObject *tensor;
};

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

// ---- The call. ------------------------------------------------------------------------------------------------------

class Call {
public:
    Call(const py::dict &d)
        : layout_(d["tensor"], d["storage"], d["spec"]), lock_acquire_(pointer(d, "acquire")), lock_release_(pointer(d, "release")),
          context_(pointer(d, "context")), eager_(pointer(d, "eager")), is_grad_enabled_(pointer(d, "is_grad_enabled")),
          config_(pointer(d, "config")), generation_(pointer(d, "generation")), blocks_(pointer(d, "blocks")), guards_(pointer(d, "guards")),
          changes_(pointer(d, "changes")), missing_(pointer(d, "missing")), finish_(pointer(d, "finish")), numbers_(static_cast<double *>(array_data(d["numbers"]))),
          has_threads_(py::cast<bool>(d["has_threads"])) {
        for (const py::handle item : d["arguments"]) {
            const auto t = py::cast<py::tuple>(item);
            Argument argument = {t[0].ptr(), t[1].ptr(), t[2].ptr(), py::cast<py::dtype>(t[3]).num(), {}};
            for (const py::handle extent : t[0]) argument.extents.push_back(py::cast<py::ssize_t>(extent));
            arguments_.push_back(std::move(argument));
        }
        for (const py::handle item : d["tensors"]) {
            const auto t = py::cast<py::tuple>(item);
            tensors_.push_back({t[0].ptr(), t[1].ptr(), t[2].ptr()});
        }
        for (const py::handle item : d["gradients"]) {
            const auto t = py::cast<py::tuple>(item);
            gradients_.push_back({none_to_null(t[0]), py::cast<py::ssize_t>(t[1]), py::cast<bool>(t[2])});
        }
        for (const py::handle item : d["reads"]) {
            const auto t = py::cast<py::tuple>(item);
            GuardedRead read = {root(t[0]), {}, identities(t[2])};
            for (const py::handle part : t[1]) read.steps.push_back(step(py::cast<py::tuple>(part)));
            reads_.push_back(std::move(read));
        }
        for (const py::handle item : d["members"]) {
            const auto t = py::cast<py::tuple>(item);
            members_.push_back({expected(t[0]), t[1].ptr(), expected(t[2])});
        }
        for (const py::handle item : d["functions"]) {
            const auto t = py::cast<py::tuple>(item);
            functions_.push_back({expected(t[0]), t[1].ptr(), none_to_null(t[2])});
        }
        for (const py::handle item : d["optimizers"]) optimizers_.push_back(item.ptr());
        for (const py::handle item : d["checks"]) checks_.push_back(item.ptr());
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
        for (const py::handle item : d["written"]) written_.insert(item.ptr());
        for (const py::handle item : d["written"]) written_list_.push_back(item.ptr());
        for (const py::handle item : d["owners"]) owners_.insert(PyLong_AsVoidPtr(item.ptr()));
        for (const py::handle item : d["actions"]) {
            const auto t = py::cast<py::tuple>(item);
            actions_.push_back({none_to_null(t[0]), py::cast<py::ssize_t>(t[1]), py::cast<py::ssize_t>(t[2]), t[3].ptr()});
        }
        for (const char *name : {"PEQUEGRAD_STANCE", "PEQUEGRAD_NUM_THREADS", "OMP_NUM_THREADS", "PEQUEGRAD_DEBUG_NANS"}) {
            environment_.emplace_back(name, value_of(name));
        }
        cores_ = has_threads_ ? cores() : 0;
    }

    // `run(arrays, count)` runs the step on arrays that it keeps alive; it returns None, or what `fail` raises an exception of.
    template <class Run, class Fail>
    py::object operator()(const py::tuple &arguments, const Run &run, const Fail &fail) {
        const py::object not_here = py::reinterpret_borrow<py::object>(Py_NotImplemented);
        Objects given(arguments_.size());
        if (!is_usual() || !read_arguments(arguments, given) || !guards_hold(arguments)) return not_here;
        const py::object is_locked = called(lock_acquire_, Py_False);
        if (is_locked.ptr() != Py_True) return not_here;
        struct Release {
            PyObject *release;
            ~Release() { Py_XDECREF(PyObject_CallNoArgs(release)); }
        } release{lock_release_};
        if (!read_scalars()) return not_here;
        Objects passed(slots_.size() + results_.size());
        std::copy(slots_.begin(), slots_.end(), passed.data());
        for (const auto &place : places_) passed[place.first] = given[place.second];
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
            PyObject *const owner = action.owner != nullptr ? action.owner : PyTuple_GET_ITEM(arguments.ptr(), action.argument);
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
    static PyObject *none_to_null(const py::handle &object) { return object.is_none() ? nullptr : object.ptr(); }
    static void *array_data(const py::handle &array) { return py::cast<py::array>(array).mutable_data(); }
    static Expected expected(const py::handle &object) { return {object.ptr(), PyWeakref_CheckRef(object.ptr()) != 0}; }
    static Root root(const py::handle &object) {
        const auto pair = py::cast<py::tuple>(object);
        return {expected(pair[0]), none_to_null(pair[1])};
    }
    static Step step(const py::tuple &parts) {
        const auto kind = py::cast<std::string>(parts[0]);
        const Expected none = {nullptr, false};
        const Expected type = expected(parts[1]);
        if (kind == "dict") return {Step::Kind::dict, nullptr, type, none, false};
        if (kind == "item") return {Step::Kind::item, parts[2].ptr(), type, none, false};
        if (kind == "class") return {Step::Kind::of_class, parts[2].ptr(), type, none, false};
        if (kind == "slot") return {Step::Kind::slot, parts[2].ptr(), type, expected(parts[3]), false};
        if (kind == "method") return {Step::Kind::method, parts[2].ptr(), type, expected(parts[3]), false};
        return {Step::Kind::attribute, parts[2].ptr(), type, expected(parts[3]), py::cast<bool>(parts[4])};
    }
    static Identities identities(const py::handle &object) {
        const auto parts = py::cast<py::tuple>(object);
        if (parts[0].is_none()) return {nullptr, expected(parts[1]), {}, {}};
        Identities found = {reinterpret_cast<PyTypeObject *>(parts[0].ptr()), {nullptr, false}, {}, {}};
        for (const py::handle key : parts[1]) found.keys.push_back(identities(key));
        for (const py::handle item : parts[2]) found.items.push_back(identities(item));
        return found;
    }
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
    // Straight from NumPy: py::array works out strides that NumPy knows.
    static py::object empty(const Result &result) {
        const auto &numpy = py::detail::npy_api::get();
        Py_INCREF(result.dtype.ptr());  // which the array takes
        PyObject *const array = numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, result.dtype.ptr(), static_cast<int>(result.shape.size()),
                                                            result.shape.data(), nullptr, nullptr, 0, nullptr);
        if (array == nullptr) throw py::error_already_set();
        return py::reinterpret_steal<py::object>(array);
    }
    static py::object called(PyObject *function, PyObject *argument) {
        PyObject *const result = PyObject_CallOneArg(function, argument);
        if (result == nullptr) throw py::error_already_set();
        return py::reinterpret_steal<py::object>(result);
    }
    static py::object attribute(PyObject *object, PyObject *name) {
        PyObject *const result = PyObject_GetAttr(object, name);
        if (result == nullptr) throw py::error_already_set();
        return py::reinterpret_steal<py::object>(result);
    }
    static PyObject *interned(const char *text) { return PyUnicode_InternFromString(text); }
    bool is_tensor(PyObject *object) const { return PyObject_TypeCheck(object, layout_.tensor) != 0; }

    // Stance and threads are what they were, nothing is traced, and gradients are on or off as they were.
    bool is_usual() const {
        static PyObject *const interpreter = interned("interpreter"), *const enabled = interned("is_grad_enabled");
        static PyObject *const generation = interned("generation");
        if (PyList_GET_SIZE(blocks_) != 0 || attribute(config_, generation).ptr() != generation_) return false;
        for (const auto &variable : environment_) {
            const char *const now = std::getenv(variable.first);
            if (variable.second != (now != nullptr ? now : "")) return false;
        }
        if (has_threads_ && cores() != cores_) return false;
        return attribute(context_, interpreter).ptr() == eager_ && attribute(context_, enabled).ptr() == is_grad_enabled_;
    }

    // Fills `given` with the arguments' arrays; false where one is not as expected, or lies where the step writes.
    bool read_arguments(const py::tuple &arguments, Objects &given) const {
        if (arguments.size() != arguments_.size()) return false;
        for (std::size_t i = 0; i < arguments_.size(); ++i) {
            PyObject *const object = PyTuple_GET_ITEM(arguments.ptr(), static_cast<py::ssize_t>(i));
            for (std::size_t j = 0; j < i; ++j) {
                if (PyTuple_GET_ITEM(arguments.ptr(), static_cast<py::ssize_t>(j)) == object) return false;
            }
            const Argument &expected = arguments_[i];
            PyObject *array = object;
            if (is_tensor(object)) {
                array = slot(object, layout_.array);
                if (!is_like(object, expected) || written_.count(slot(object, layout_.tensor_storage)) != 0) return false;
            } else if (expected.requires_grad != Py_False) {
                return false;
            }
            if (array == nullptr || !is_usable(array, expected)) return false;
            given[i] = array;
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

    bool is_usable(PyObject *object, const Argument &expected) const {
        using py::detail::npy_api;
        if (Py_TYPE(object) != npy_api::get().PyArray_Type_) return false;
        const auto *array = py::detail::array_proxy(object);
        constexpr int wanted = npy_api::NPY_ARRAY_C_CONTIGUOUS_ | npy_api::NPY_ARRAY_ALIGNED_;
        if ((array->flags & wanted) != wanted || array->nd != static_cast<int>(expected.extents.size())) return false;
        for (std::size_t axis = 0; axis < expected.extents.size(); ++axis) {
            if (array->dimensions[axis] != expected.extents[axis]) return false;
        }
        const auto descr = py::reinterpret_borrow<py::dtype>(array->descr);
        if (descr.num() != expected.type_number || descr.byteorder() == '>') return false;
        return owners_.count(array->base != nullptr ? array->base : object) == 0;
    }

    bool guards_hold(const py::tuple &arguments) const {
        static PyObject *const count = interned("count"), *const seen = interned("_seen");
        if (changes_ != Py_None) {
            const py::object now = attribute(changes_, count), then = attribute(guards_, seen);
            if (PyObject_RichCompareBool(now.ptr(), then.ptr(), Py_EQ) != 1) return false;
        }
        for (const GuardedTensor &guard : tensors_) {
            if (slot(guard.tensor, layout_.tensor_storage) != guard.storage) return false;
            if (slot(guard.tensor, layout_.requires_grad) != guard.requires_grad) return false;
        }
        for (const GuardedGradient &guard : gradients_) {
            PyObject *const tensor = guard.tensor != nullptr ? guard.tensor : PyTuple_GET_ITEM(arguments.ptr(), guard.argument);
            const bool is_none = !is_tensor(tensor) || slot(tensor, layout_.grad) == Py_None;
            if (is_none != guard.is_none) return false;
        }
        for (const GuardedRead &guard : reads_) {
            if (!holds(guard)) return false;
        }
        for (const GuardedMember &guard : members_) {
            PyObject *const kind = referent(guard.kind);
            if (kind == nullptr) continue;  // gone, and with it all that could be called
            if (!guard.member.is(_PyType_Lookup(reinterpret_cast<PyTypeObject *>(kind), guard.name))) return false;
        }
        for (const GuardedFunction &guard : functions_) {
            PyObject *const function = referent(guard.function);
            if (function == nullptr) continue;
            if (PyFunction_GET_CODE(function) != guard.code || PyFunction_GET_DEFAULTS(function) != guard.defaults) return false;
        }
        for (PyObject *const snapshot : optimizers_) {
            if (!is_as_before(snapshot)) return false;
        }
        for (PyObject *const check : checks_) {
            PyObject *const found = PyObject_CallNoArgs(check);
            if (found == nullptr) throw py::error_already_set();
            Py_DECREF(found);
            if (found != Py_None) return false;
        }
        return true;
    }

    // Whether what user code read is still the same objects, at the same places.
    bool holds(const GuardedRead &guard) const {
        PyObject *value = guard.root.value();
        if (value == nullptr && !guard.root.is_name()) return false;
        for (const Step &step : guard.steps) {
            if (value == nullptr || !follow(step, value)) return false;
        }
        return guard.expected.are(or_missing(value));
    }

    PyObject *or_missing(PyObject *value) const { return value != nullptr ? value : missing_; }

    // Goes from `value` to what a step leads to, null where nothing is there; false where the way is another now. Whoever
    // holds the value holds what is in it, so that all stays borrowed.
    bool follow(const Step &step, PyObject *&value) const {
        PyTypeObject *const type = Py_TYPE(value);
        if (!step.type.is(reinterpret_cast<PyObject *>(type))) return false;
        switch (step.kind) {
        case Step::Kind::dict:
            value = dict_of(value);
            return value != nullptr;
        case Step::Kind::item:
            return follow_item(step.key, value);
        case Step::Kind::of_class:
            value = _PyType_Lookup(reinterpret_cast<PyTypeObject *>(value), step.key);
            return true;
        default:
            break;
        }
        PyObject *const member = _PyType_Lookup(type, step.key);
        if (!step.member.is(or_missing(member))) return false;
        if (step.kind == Step::Kind::method) {
            value = nullptr;  // nothing but the class has it
            return true;
        }
        if (step.kind == Step::Kind::slot) {
            const PyMemberDef *const definition = reinterpret_cast<PyMemberDescrObject *>(member)->d_member;
            if (definition->type != T_OBJECT_EX) return false;
            value = slot(value, definition->offset);
            return true;
        }
        PyObject *const state = dict_of(value);
        if (state == nullptr) return false;
        value = PyDict_GetItem(state, step.key);
        if (value == nullptr && step.falls_back) value = member;
        return true;
    }

    // Of a dict, a list or a tuple.
    static bool follow_item(PyObject *key, PyObject *&value) {
        if (PyDict_Check(value)) {
            value = PyDict_GetItem(value, key);
            return true;
        }
        if (!PyLong_CheckExact(key)) return false;
        const Py_ssize_t size = Py_SIZE(value), given = PyLong_AsSsize_t(key), index = given < 0 ? given + size : given;
        if (index < 0 || index >= size) {
            PyErr_Clear();
            return false;
        }
        value = PyList_CheckExact(value) ? PyList_GET_ITEM(value, index) : PyTuple_GET_ITEM(value, index);
        return true;
    }

    // Borrowed from the object; null where it has none.
    static PyObject *dict_of(PyObject *object) {
        static PyObject *const name = interned("__dict__");
        const py::object state = attribute(object, name);
        return PyDict_Check(state.ptr()) ? state.ptr() : nullptr;
    }

    // Whether all that an optimizer's snapshot lists is still the same objects, in the same order.
    static bool is_as_before(PyObject *snapshot) {
        static PyObject *const members = interned("_members"), *const raw = interned("_raw"), *const optimizer = interned("optimizer");
        static PyObject *const groups = interned("param_groups"), *const params = interned("params"), *const state = interned("state");
        static PyObject *const dict = interned("__dict__");
        const py::object target = attribute(snapshot, optimizer);
        if (target.is_none()) return false;
        Sequence same_members(attribute(snapshot, members)), same_raw(attribute(snapshot, raw));
        const py::object all_groups = attribute(target.ptr(), groups), all_state = attribute(target.ptr(), state);
        if (!PyList_Check(all_groups.ptr()) || !PyDict_Check(all_state.ptr())) return false;
        for (const py::handle group : py::reinterpret_borrow<py::list>(all_groups)) {
            if (!PyDict_Check(group.ptr()) || !same_members.next_is(group.ptr())) return false;
            PyObject *const parameters = PyDict_GetItem(group.ptr(), params);
            if (parameters == nullptr || !PyList_Check(parameters)) return false;
            for (py::ssize_t i = 0; i < PyList_GET_SIZE(parameters); ++i) {
                if (!same_members.next_is(PyList_GET_ITEM(parameters, i))) return false;
            }
            if (!same_raw.next_are_values_of(group.ptr())) return false;
        }
        PyObject *key = nullptr, *value = nullptr;
        for (py::ssize_t at = 0; PyDict_Next(all_state.ptr(), &at, &key, &value) != 0;) {
            if (!PyDict_Check(value) || !same_members.next_is(key) || !same_members.next_are_values_of(value)) return false;
        }
        const py::object fields = attribute(target.ptr(), dict);
        return same_raw.next_are_values_of(fields.ptr()) && same_members.is_done() && same_raw.is_done();
    }

    class Sequence {
    public:
        explicit Sequence(py::object list) : list_(std::move(list)) {}
        bool next_is(PyObject *object) {
            return PyList_Check(list_.ptr()) && at_ < PyList_GET_SIZE(list_.ptr()) && PyList_GET_ITEM(list_.ptr(), at_++) == object;
        }
        bool next_are_values_of(PyObject *dict) {
            PyObject *key = nullptr, *value = nullptr;
            for (py::ssize_t at = 0; PyDict_Next(dict, &at, &key, &value) != 0;) {
                if (!next_is(value)) return false;
            }
            return true;
        }
        bool is_done() const { return at_ == PyList_GET_SIZE(list_.ptr()); }

    private:
        py::object list_;
        py::ssize_t at_ = 0;
    };

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
        for (PyObject *const storage : written_list_) {
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
    PyObject *lock_acquire_, *lock_release_, *context_, *eager_, *is_grad_enabled_, *config_, *generation_, *blocks_, *guards_, *changes_, *missing_, *finish_;
    double *numbers_;
    std::vector<Argument> arguments_;
    std::vector<GuardedTensor> tensors_;
    std::vector<GuardedGradient> gradients_;
    std::vector<GuardedRead> reads_;
    std::vector<GuardedMember> members_;
    std::vector<GuardedFunction> functions_;
    std::vector<PyObject *> optimizers_, checks_, slots_, written_list_;
    std::vector<std::pair<std::size_t, std::size_t>> places_;
    std::vector<Scalar> scalars_;
    std::vector<Result> results_;
    std::vector<Gradient> actions_;
    std::unordered_set<PyObject *> written_;
    std::unordered_set<void *> owners_;
    std::vector<std::pair<const char *, std::string>> environment_;
    bool has_threads_;  // a step of one thread does not ask the system, which takes a while, for its cores
    int cores_ = 0;
};

}  // namespace pg_call
