// Whether all that user code read while it was traced is still the same objects.
//
// Invariant: no code of the user's runs, and nothing changes. Objects are borrowed from the description of a call, which whoever
// holds this keeps alive.
#pragma once
#include <pybind11/pybind11.h>

#include <string>
#include <utility>
#include <vector>

#include "objects.h"

namespace pg_call {

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

// An optimizer, and the snapshot that lists what was in it.
struct GuardedOptimizer {
    Expected optimizer;
    PyObject *snapshot;
};

class Guards {
public:
    explicit Guards(const py::dict &d)
        : guards_(py::object(d["guards"]).ptr()), changes_(py::object(d["changes"]).ptr()), missing_(py::object(d["missing"]).ptr()) {
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
        for (const py::handle item : d["optimizers"]) {
            const auto t = py::cast<py::tuple>(item);
            optimizers_.push_back({expected(t[0]), t[1].ptr()});
        }
        for (const py::handle item : d["checks"]) checks_.push_back(item.ptr());
    }

    bool hold() const {
        static PyObject *const count = interned("count"), *const seen = interned("_seen");
        if (changes_ != Py_None) {
            const py::object now = attribute(changes_, count), then = attribute(guards_, seen);
            if (PyObject_RichCompareBool(now.ptr(), then.ptr(), Py_EQ) != 1) return false;
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
        for (const GuardedOptimizer &guard : optimizers_) {
            if (!is_as_before(guard)) return false;
        }
        for (PyObject *const check : checks_) {
            PyObject *const found = PyObject_CallNoArgs(check);
            if (found == nullptr) throw py::error_already_set();
            Py_DECREF(found);
            if (found != Py_None) return false;
        }
        return true;
    }

private:
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
    static bool is_as_before(const GuardedOptimizer &guard) {
        static PyObject *const members = interned("_members"), *const raw = interned("_raw");
        static PyObject *const groups = interned("param_groups"), *const params = interned("params"), *const state = interned("state");
        PyObject *const optimizer = referent(guard.optimizer);
        if (optimizer == nullptr) return false;
        PyObject *const fields = dict_of(optimizer), *const listed = dict_of(guard.snapshot);
        if (fields == nullptr || listed == nullptr) return false;
        PyObject *const same_members_of = PyDict_GetItem(listed, members), *const same_raw_of = PyDict_GetItem(listed, raw);
        PyObject *const all_groups = PyDict_GetItem(fields, groups), *const all_state = PyDict_GetItem(fields, state);
        if (same_members_of == nullptr || same_raw_of == nullptr || all_groups == nullptr || all_state == nullptr) return false;
        Sequence same_members(same_members_of), same_raw(same_raw_of);
        if (!PyList_Check(all_groups) || !PyDict_Check(all_state)) return false;
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
        for (py::ssize_t at = 0; PyDict_Next(all_state, &at, &key, &value) != 0;) {
            if (!PyDict_Check(value) || !same_members.next_is(key) || !same_members.next_are_values_of(value)) return false;
        }
        return same_raw.next_are_values_of(fields) && same_members.is_done() && same_raw.is_done();
    }

    class Sequence {
    public:
        explicit Sequence(PyObject *list) : list_(py::reinterpret_borrow<py::object>(list)) {}
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

    PyObject *guards_, *changes_, *missing_;
    std::vector<GuardedRead> reads_;
    std::vector<GuardedMember> members_;
    std::vector<GuardedFunction> functions_;
    std::vector<GuardedOptimizer> optimizers_;
    std::vector<PyObject *> checks_;
};

}  // namespace pg_call
