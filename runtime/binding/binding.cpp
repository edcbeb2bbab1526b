// The Python module around one compiled step: pointers out of arrays, the arena, the thread pool, the GIL.
//
// Invariant: nothing here depends on a graph. It is compiled once per Python, pybind11 and compiler, and the object is
// linked with every step's object. All shared state changes under the GIL, so that os.fork() finds it whole.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include <pthread.h>
#include <sys/mman.h>

#include <pequegrad/interface.h>
#include <pequegrad/pool.h>

#include "call.h"

namespace py = pybind11;

namespace {

constexpr std::size_t arena_alignment = 64;  // a cache line, and the widest vector
constexpr std::size_t usual_argument_count = 64;
constexpr const char *pool_capsule_name = "pequegrad.pool.1";  // the number changes with the layout of ProcessPool

// ---- The pool: one per process, made by the first step module and handed to the others in a capsule. -------------

struct ProcessPool {
    std::mutex lock;  // one parallel step at a time: two would fight for the same cores
    pg_pool *pool = nullptr;
    // The maker's own code: pool.h keeps a list of pools in each module, and only the maker's list has this one.
    const pg_pool *(*of_size)(ProcessPool &shared, int workers) = nullptr;
};

ProcessPool *process_pool = nullptr;  // this module's view of it
ProcessPool *forkable_pool = nullptr;  // set in the module that made it

// A child may have inherited the lock from a thread that it does not have. The pool sees to its own threads.
void renew_lock_in_child() { new (&forkable_pool->lock) std::mutex; }

int serial_size(void *) { return 1; }
void serial_run(void *, int, void (*task)(void *, int), void *context) { task(context, 0); }
void serial_barrier(void *, int, int) {}
const pg_pool serial_pool = {nullptr, serial_size, serial_run, serial_barrier};

// Returns null when the threads cannot be started. The caller holds the lock, so no step is using the pool.
const pg_pool *pool_of_size(ProcessPool &shared, int workers) {
    if (shared.pool != nullptr && shared.pool->size(shared.pool->self) < workers) {
        pg_pool_destroy(shared.pool);
        shared.pool = nullptr;
    }
    if (shared.pool == nullptr) shared.pool = pg_pool_create(workers);
    return shared.pool;
}

py::capsule attach_pool(const py::object &capsule) {
    if (!capsule.is_none()) {
        void *pointer = PyCapsule_GetPointer(capsule.ptr(), pool_capsule_name);
        if (pointer == nullptr) throw py::error_already_set();
        process_pool = static_cast<ProcessPool *>(pointer);
        return py::reinterpret_borrow<py::capsule>(capsule);
    }
    if (forkable_pool == nullptr) {
        forkable_pool = new ProcessPool;
        forkable_pool->of_size = pool_of_size;
        pthread_atfork(nullptr, nullptr, renew_lock_in_child);
    }
    process_pool = forkable_pool;
    return py::capsule(process_pool, pool_capsule_name);
}

// ---- What the step expects, and its arena. ------------------------------------------------------------------------

struct Expected {
    py::ssize_t bytes;
    bool writable;
    bool at_least = false;  // a dataset: more bytes are fine
};

struct FreeArena {
    void operator()(unsigned char *memory) const { std::free(memory); }
};
using Arena = std::unique_ptr<unsigned char, FreeArena>;

struct Step {
    bool configured = false;
    std::vector<Expected> arguments;
    std::size_t arena_bytes = 0;
    Arena idle_arena;  // concurrent calls take arenas of their own and the last one back stays
};

Step step;

std::size_t aligned(long bytes) {
    return (static_cast<std::size_t>(bytes) + arena_alignment - 1) / arena_alignment * arena_alignment;
}

// Pages of 2 MiB, where there are such: kernels walk tens of arrays at once, each by pages of its own, and a processor
// knows few places of 4 KiB pages by heart.
constexpr std::size_t huge_page = std::size_t(1) << 21;

Arena new_arena(std::size_t bytes) {
    void *memory = nullptr;
    const bool is_large = bytes >= huge_page;
    if (is_large) bytes = (bytes + huge_page - 1) / huge_page * huge_page;
    if (bytes > 0 && posix_memalign(&memory, is_large ? huge_page : arena_alignment, bytes) != 0) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (is_large) madvise(memory, bytes, MADV_HUGEPAGE);  // advice alone: that it cannot be taken is no failure
#endif
    return Arena(static_cast<unsigned char *>(memory));
}

Arena take_arena() {
    if (step.idle_arena) return std::move(step.idle_arena);
    return new_arena(step.arena_bytes);
}

void configure(const py::sequence &arguments, std::size_t arena_bytes) {
    std::vector<Expected> expected;
    for (const py::handle item : arguments) {
        const auto pair = py::cast<std::pair<py::ssize_t, bool>>(item);
        expected.push_back({pair.first, pair.second});
    }
    if (step.configured) {
        bool same = arena_bytes == step.arena_bytes && expected.size() == step.arguments.size();
        for (std::size_t index = 0; same && index < expected.size(); ++index) {
            same = expected[index].bytes == step.arguments[index].bytes
                   && expected[index].writable == step.arguments[index].writable;
        }
        if (!same) throw py::value_error("this step module is already configured for other arguments");
        return;
    }
    step.arguments = std::move(expected);
    step.arena_bytes = arena_bytes;
    step.configured = true;
}

// ---- A call. ----------------------------------------------------------------------------------------------------

// Set when the module is made. A static of a function would deadlock at two first calls: its guard is held by the thread
// that waits for the GIL while it imports NumPy, and waited for by the thread that has the GIL.
PyTypeObject *ndarray_type = nullptr;
PyObject *device_interface_name = nullptr;
char nothing = 0;

// Pointers of one call, and what keeps them alive while the GIL is released.
class Pointers {
public:
    explicit Pointers(std::size_t count) {
        if (count > usual_argument_count) {
            many_pointers_.resize(count);
            many_owners_.resize(count);
            pointers_ = many_pointers_.data();
            owners_ = many_owners_.data();
        }
    }
    Pointers(const Pointers &) = delete;
    Pointers &operator=(const Pointers &) = delete;
    ~Pointers() {
        for (Py_buffer &buffer : buffers_) PyBuffer_Release(&buffer);
        for (std::size_t index = 0; index < count_; ++index) Py_DECREF(owners_[index]);
    }

    void add(PyObject *object, const Expected &expected) {
        const std::size_t position = count_;
        Py_INCREF(object);
        owners_[count_++] = object;
        if (is_ndarray(object)) {
            pointers_[position] = from_ndarray(object, position, expected);
        } else if (const py::object interface = device_interface(object)) {
            pointers_[position] = from_device(interface, position, expected);
        } else {
            pointers_[position] = from_buffer(object, position, expected);
        }
    }

    void *const *data() const { return pointers_; }
    std::size_t count() const { return count_; }

private:
    static bool is_ndarray(PyObject *object) {
        return PyObject_TypeCheck(object, ndarray_type) != 0;
    }

    static void *from_ndarray(PyObject *object, std::size_t position, const Expected &expected) {
        const auto *array = py::detail::array_proxy(object);
        py::ssize_t bytes = py::reinterpret_borrow<py::dtype>(array->descr).itemsize();
        for (int axis = 0; axis < array->nd; ++axis) bytes *= array->dimensions[axis];
        if ((array->flags & py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_) == 0) refuse_layout(position);
        check(position, expected, bytes, (array->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_) != 0);
        return array->data;
    }

    // What says that memory lies on a GPU; empty for what says nothing.
    static py::object device_interface(PyObject *object) {
        PyObject *found = PyObject_GetAttr(object, device_interface_name);
        if (found == nullptr) {
            if (!PyErr_ExceptionMatches(PyExc_AttributeError)) throw py::error_already_set();
            PyErr_Clear();
        }
        return py::reinterpret_steal<py::object>(found);
    }

    static void *from_device(const py::object &interface, std::size_t position, const Expected &expected) {
        if (!PyDict_Check(interface.ptr())) refuse_interface(position, "it is no dict");
        const py::handle shape = interface_entry(interface, "shape", position);
        const py::handle type = interface_entry(interface, "typestr", position);
        const py::handle data = interface_entry(interface, "data", position);
        if (!PyTuple_Check(shape.ptr())) refuse_interface(position, "its shape");
        if (!PyUnicode_Check(type.ptr())) refuse_interface(position, "its typestr");
        if (!PyTuple_Check(data.ptr()) || PyTuple_GET_SIZE(data.ptr()) != 2) refuse_interface(position, "its data");
        const char *text = PyUnicode_AsUTF8(type.ptr());
        if (text == nullptr) throw py::error_already_set();
        py::ssize_t bytes = std::strlen(text) > 2 ? std::atol(text + 2) : 0;
        if (bytes <= 0) refuse_interface(position, "its typestr");
        const PyObject *strides = PyDict_GetItemString(interface.ptr(), "strides");
        if (strides != nullptr && strides != Py_None) check_strides(strides, shape.ptr(), bytes, position);
        for (py::ssize_t axis = 0; axis < PyTuple_GET_SIZE(shape.ptr()); ++axis) {
            bytes *= as_size(PyTuple_GET_ITEM(shape.ptr(), axis));
        }
        const bool is_readonly = PyObject_IsTrue(PyTuple_GET_ITEM(data.ptr(), 1)) != 0;
        check(position, expected, bytes, !is_readonly);
        void *pointer = PyLong_AsVoidPtr(PyTuple_GET_ITEM(data.ptr(), 0));
        if (PyErr_Occurred() != nullptr) throw py::error_already_set();
        // An array without elements has no memory, and a step asks of any pointer where it lies.
        return bytes == 0 ? static_cast<void *>(&nothing) : pointer;
    }

    static py::handle interface_entry(const py::object &interface, const char *name, std::size_t position) {
        PyObject *found = PyDict_GetItemString(interface.ptr(), name);
        if (found == nullptr) refuse_interface(position, name);
        return found;
    }

    static py::ssize_t as_size(PyObject *number) {
        const py::ssize_t size = PyLong_AsSsize_t(number);
        if (size == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
        return size;
    }

    // Strides of an extent of 1 mean nothing, as for NumPy.
    static void check_strides(const PyObject *strides, PyObject *shape, py::ssize_t bytes, std::size_t position) {
        if (!PyTuple_Check(strides) || PyTuple_GET_SIZE(strides) != PyTuple_GET_SIZE(shape)) {
            refuse_interface(position, "its strides");
        }
        bool is_contiguous = true, is_empty = false;
        for (py::ssize_t axis = PyTuple_GET_SIZE(shape); axis-- > 0;) {
            const py::ssize_t extent = as_size(PyTuple_GET_ITEM(shape, axis));
            is_contiguous = is_contiguous && (extent == 1 || as_size(PyTuple_GET_ITEM(strides, axis)) == bytes);
            is_empty = is_empty || extent == 0;
            bytes *= extent;
        }
        if (!is_contiguous && !is_empty) refuse_layout(position);
    }

    [[noreturn]] static void refuse_interface(std::size_t position, const char *what) {
        throw py::value_error("step argument " + std::to_string(position)
                              + ": __cuda_array_interface__ is not as defined: " + what);
    }

    void *from_buffer(PyObject *object, std::size_t position, const Expected &expected) {
        Py_buffer buffer;
        if (PyObject_GetBuffer(object, &buffer, PyBUF_ND) != 0) {
            if (PyErr_ExceptionMatches(PyExc_BufferError)) {
                PyErr_Clear();
                refuse_layout(position);
            }
            throw py::error_already_set();
        }
        buffers_.push_back(buffer);
        check(position, expected, buffer.len, !buffer.readonly);
        return buffer.buf;
    }

    [[noreturn]] static void refuse_layout(std::size_t position) {
        throw py::value_error("step argument " + std::to_string(position) + ": expected C-contiguous memory");
    }

    static void check(std::size_t position, const Expected &expected, py::ssize_t bytes, bool writable) {
        if (expected.at_least ? bytes < expected.bytes : bytes != expected.bytes) {
            throw py::value_error("step argument " + std::to_string(position) + ": expected "
                                  + std::to_string(expected.bytes) + " bytes, got " + std::to_string(bytes));
        }
        if (expected.writable && !writable) {
            throw py::value_error("step argument " + std::to_string(position)
                                  + ": the step writes to it, but it is read-only");
        }
    }

    std::array<void *, usual_argument_count> few_pointers_;
    std::array<PyObject *, usual_argument_count> few_owners_;
    std::vector<void *> many_pointers_;
    std::vector<PyObject *> many_owners_;
    std::vector<Py_buffer> buffers_;
    void **pointers_ = few_pointers_.data();
    PyObject **owners_ = few_owners_.data();
    std::size_t count_ = 0;
};

void check_run(std::size_t count, int workers) {
    if (!step.configured) throw py::value_error("configure the step module before running it");
    if (workers < 1) throw py::value_error("run needs at least one worker, got " + std::to_string(workers));
    if (workers > 1 && process_pool == nullptr) throw py::value_error("attach a pool to run with several workers");
    if (count != step.arguments.size()) {
        throw py::value_error("the step takes " + std::to_string(step.arguments.size()) + " arguments, got "
                              + std::to_string(count));
    }
}

void check_arguments(const py::object &arguments, int workers) {
    if (!PyList_Check(arguments.ptr()) && !PyTuple_Check(arguments.ptr())) throw py::type_error("run takes a list or a tuple");
    check_run(static_cast<std::size_t>(PySequence_Fast_GET_SIZE(arguments.ptr())), workers);
}

// Calls work(arena, pool, workers) without the GIL, the pool its own as long as it runs.
template <class Work>
void run_alone(int workers, const Work &work) {
    Arena arena = take_arena();
    bool has_threads = true;
    Py_BEGIN_ALLOW_THREADS;
    if (workers == 1) {
        work(arena.get(), &serial_pool, 1);
    } else {
        try {
            const std::lock_guard<std::mutex> guard(process_pool->lock);
            const pg_pool *pool = process_pool->of_size(*process_pool, workers);
            has_threads = pool != nullptr;
            if (has_threads) work(arena.get(), pool, workers);
        } catch (const std::exception &) {  // a forked child starts threads late; nothing may cross the GIL's release
            has_threads = false;
        }
    }
    Py_END_ALLOW_THREADS;
    step.idle_arena = std::move(arena);
    if (!has_threads) {
        const std::string text = "the threads for " + std::to_string(workers) + " workers could not be started";
        PyErr_SetString(PyExc_RuntimeError, text.c_str());
        throw py::error_already_set();
    }
}

py::object as_result(const pg_failure &failure) {
    if (failure.code == 0) return py::none();
    return py::make_tuple(failure.code, failure.kernel, failure.value, failure.bound, std::string(failure.text));
}

// Returns None, or (code, kernel, value, bound, text) of the first failure.
py::object run_on(PyObject *const *arguments, std::size_t count, int workers) {
    check_run(count, workers);
    Pointers pointers(count);
    for (std::size_t index = 0; index < count; ++index) pointers.add(arguments[index], step.arguments[index]);
    pg_failure failure = {};
    run_alone(workers, [&](unsigned char *arena, const pg_pool *pool, int count_of_workers) {
        pg_step_run(pointers.data(), arena, pool, count_of_workers, &failure);
    });
    return as_result(failure);
}

py::object run(const py::object &arguments, int workers) {
    check_arguments(arguments, workers);
    return run_on(PySequence_Fast_ITEMS(arguments.ptr()), step.arguments.size(), workers);
}

struct QuickCall {
    pg_call::Call call;
    int workers;
    PyObject *check;

    static constexpr const char *capsule_name = "pequegrad.call";

    // A function of C itself: pybind11 allocates at each call of one of its own.
    static PyObject *call_with(PyObject *capsule, PyObject *const *arguments, Py_ssize_t count) {
        auto *const self = static_cast<QuickCall *>(PyCapsule_GetPointer(capsule, capsule_name));
        if (self == nullptr) return nullptr;
        try {
            if (count != 2 || !PyTuple_CheckExact(arguments[0]) || !PyDict_CheckExact(arguments[1])) {
                throw py::type_error("a call takes its arguments as a tuple and a dict");
            }
            const auto run = [self](PyObject *const *arrays, std::size_t count) { return run_on(arrays, count, self->workers); };
            const auto fail = [self](const py::object &failure) { py::reinterpret_borrow<py::object>(self->check)(failure); };
            return self->call(arguments[0], arguments[1], run, fail).release().ptr();
        } catch (py::error_already_set &error) {
            error.restore();
        } catch (const py::builtin_exception &error) {
            error.set_error();
        } catch (const std::bad_alloc &) {
            PyErr_NoMemory();
        } catch (const std::exception &error) {
            PyErr_SetString(PyExc_RuntimeError, error.what());
        }
        return nullptr;
    }
};

// Returns a function that takes a call's arguments, a tuple and a dict, and does all of the call; see call.h. Its entry "check" raises
// what a failure of the step means.
py::object make_call(const py::dict &description, int workers) {
    static PyMethodDef definition = {"call", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(QuickCall::call_with)),
                                     METH_FASTCALL, nullptr};
    auto *const made = new QuickCall{pg_call::Call(description), workers, py::object(description["check"]).ptr()};
    const py::capsule capsule(made, QuickCall::capsule_name, [](PyObject *object) {
        delete static_cast<QuickCall *>(PyCapsule_GetPointer(object, QuickCall::capsule_name));
    });
    PyObject *const function = PyCFunction_New(&definition, capsule.ptr());
    if (function == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(function);
}

// ---- Many steps in one call. ----------------------------------------------------------------------------------------

// The rows of one step, each worker copying its share.
struct Gathering {
    const unsigned char *from;
    unsigned char *to;
    const long *order;
    long rows, row_bytes;
    int workers;

    static void copy(void *context, int worker) {
        const Gathering &g = *static_cast<const Gathering *>(context);
        for (long row = g.rows * worker / g.workers; row < g.rows * (worker + 1) / g.workers; ++row) {
            std::memcpy(g.to + row * g.row_bytes, g.from + g.order[row] * g.row_bytes, static_cast<std::size_t>(g.row_bytes));
        }
    }
};

// Runs a loop's steps one by one; `scratch` holds the batches of one step, one after another, each aligned.
void run_each(const Pointers &pointers, const pg_loop &loop, unsigned char *scratch, unsigned char *arena,
              const pg_pool *pool, int workers, pg_failure *failure) {
    std::vector<void *> now(pointers.data(), pointers.data() + pointers.count());
    for (long number = 0; number < loop.steps && failure->code == 0; ++number) {
        unsigned char *place = scratch;
        for (int i = 0; i < loop.batch_count; ++i) {
            const pg_batch &batch = loop.batches[i];
            now[static_cast<std::size_t>(batch.slot)] = place;
            Gathering gathering = {static_cast<const unsigned char *>(pointers.data()[batch.slot]), place,
                                   loop.order + number * loop.rows, loop.rows, batch.row_bytes, workers};
            pool->run(pool->self, workers, Gathering::copy, &gathering);
            place += aligned(loop.rows * batch.row_bytes);
        }
        for (int i = 0; i < loop.result_count; ++i) {
            const auto slot = static_cast<std::size_t>(loop.results[i]);
            now[slot] = static_cast<unsigned char *>(pointers.data()[slot]) + number * step.arguments[slot].bytes;
        }
        pg_step_run(now.data(), arena, pool, workers, failure);
    }
}

// Like run, for as many steps as `order` has rows: `batched` arguments are datasets, `stacked` ones hold every step's
// result. All is checked before the first step.
py::object run_many(const py::object &arguments, int workers, const py::array_t<std::int64_t, py::array::c_style> &order,
                    const std::vector<int> &batched, const std::vector<int> &stacked) {
    static_assert(sizeof(long) == sizeof(std::int64_t));
    check_arguments(arguments, workers);
    if (order.ndim() != 2) throw py::value_error("the order of rows has two dimensions");
    const std::size_t count = step.arguments.size();
    std::vector<Expected> expected = step.arguments;
    pg_loop loop = {};
    loop.steps = order.shape(0);
    loop.rows = order.shape(1);
    loop.order = reinterpret_cast<const long *>(order.data());
    long highest = -1;
    for (py::ssize_t i = 0; i < order.size(); ++i) {
        if (order.data()[i] < 0) throw py::value_error("the order of rows has a negative row");
        highest = std::max(highest, static_cast<long>(order.data()[i]));
    }
    std::vector<pg_batch> batches;
    std::size_t scratch_bytes = 0;
    for (const int slot : batched) {
        Expected &part = expected.at(static_cast<std::size_t>(slot));
        const long row_bytes = loop.rows > 0 ? part.bytes / loop.rows : 0;
        if (row_bytes * loop.rows != part.bytes || part.writable) throw py::value_error("a batch of the step has other rows");
        batches.push_back({slot, row_bytes});
        scratch_bytes += aligned(part.bytes);
        part = {(highest + 1) * row_bytes, false, true};
    }
    for (const int slot : stacked) expected.at(static_cast<std::size_t>(slot)).bytes *= loop.steps;
    Pointers pointers(count);
    for (std::size_t index = 0; index < count; ++index) {
        pointers.add(PySequence_Fast_GET_ITEM(arguments.ptr(), static_cast<py::ssize_t>(index)), expected[index]);
    }
    std::vector<long> dataset_bytes;
    for (const int slot : batched) dataset_bytes.push_back(expected[static_cast<std::size_t>(slot)].bytes);
    loop.batches = batches.data();
    loop.batch_count = static_cast<int>(batches.size());
    loop.results = stacked.data();
    loop.result_count = static_cast<int>(stacked.size());
    loop.dataset_bytes = dataset_bytes.data();
    pg_failure failure = {};
    if (pg_step_run_many != nullptr) {
        const py::gil_scoped_release released;
        pg_step_run_many(pointers.data(), &loop, &failure);
    } else {
        const Arena scratch = new_arena(scratch_bytes);
        run_alone(workers, [&](unsigned char *arena, const pg_pool *pool, int count_of_workers) {
            run_each(pointers, loop, scratch.get(), arena, pool, count_of_workers, &failure);
        });
    }
    return as_result(failure);
}

}  // namespace

PYBIND11_MODULE(pg_step, module) {
    ndarray_type = reinterpret_cast<PyTypeObject *>(py::detail::npy_api::get().PyArray_Type_);
    device_interface_name = PyUnicode_InternFromString("__cuda_array_interface__");
    if (device_interface_name == nullptr) throw py::error_already_set();
    module.doc() = "One compiled step of pequegrad.";
    module.def("attach_pool", &attach_pool, py::arg("capsule"),
               "Use the pool in the capsule, or make the process's pool when given None; return its capsule.");
    module.def("configure", &configure, py::arg("arguments"), py::arg("arena_bytes"),
               "Say once what run takes: (bytes, is written) for each argument, and the bytes of the arena.");
    module.def("release", [] { step.idle_arena.reset(); }, "Give back the memory that waits for the next call.");
    module.def("run", &run, py::arg("arguments"), py::arg("workers"),
               "Run the step on C-contiguous arrays, buffers or device arrays; return None or (code, kernel, value, bound, text) of a failure.");
    module.def("make_call", &make_call, py::arg("description"), py::arg("workers"),
               "Return the function that does all of a call with a tuple and a dict of arguments.");
    module.def("run_many", &run_many, py::arg("arguments"), py::arg("workers"), py::arg("order"), py::arg("batched"),
               py::arg("stacked"),
               "Run a step per row of order, which names the rows of the batched arguments; the stacked ones take all results.");
}
