"""Loaded steps: their arguments, their names, one pool for all, threads and forks."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from pequegrad.build import cache
from pequegrad.errors import IndexOutOfRange
from tests.build.helpers import build, run_affine, run_python, step_source


def build_gather(number=0):
    built = build(step_source("gather", NUMBER=number))
    built.module.configure([(80, False), (8, False), (16, True)], 0)
    return built.module


def gather(module, index, workers=1):
    out = np.zeros(2, np.int64)
    module.run([np.arange(10) * 10, np.array(index), out], workers)
    return out


def test_two_steps_of_the_same_name_are_both_right(root):
    first = build(step_source("affine", SCALE=2), name="step")
    second = build(step_source("affine", SCALE=3), name="step")
    for _ in range(2):
        run_affine(first, 2)
        run_affine(second, 3)


def test_two_steps_are_both_right_when_the_process_loads_with_global_symbols(root):
    run_python(
        """
        import os, sys
        sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
        from tests.build.helpers import build, run_affine, step_source
        steps = [build(step_source("affine", SCALE=scale)) for scale in (2, 3)]
        run_affine(steps[0], 2)
        run_affine(steps[1], 3)
        """
    )


def test_a_step_is_right_on_one_worker_and_on_several(root):
    built = build(step_source("affine", SCALE=2))
    for workers in (1, 2, 3, 2, 1):
        run_affine(built, 2, workers)


def test_all_steps_of_a_process_share_one_pool_and_one_worker_needs_none(root):
    first, second = build_gather(1), build_gather(2)
    pools = [gather(module, 0, workers=2)[1] for module in (first, second, first)]
    assert pools[0] != 0 and len(set(pools)) == 1
    assert gather(first, 0, workers=1)[1] == 0


def test_a_pool_that_one_step_made_and_another_outgrew_ends_well_with_the_process(root):
    # Freed by the second module's code, it was freed again by the first module's list of pools.
    run_python(
        """
        from tests.build.helpers import build, run_affine, step_source
        for scale in (2, 3, 4):
            run_affine(build(step_source("affine", SCALE=scale)), scale, workers=scale)
        """
    )


def test_a_bad_index_raises_with_value_and_bound(root):
    module = build_gather()
    assert gather(module, 7)[0] == 70
    with pytest.raises(IndexOutOfRange, match=r"index 12 is outside a dimension of size 10"):
        gather(module, 12)
    assert module.try_run([np.arange(10), np.array(-1), np.zeros(2, np.int64)], 1) == (1, 3, -1, 10, "")
    assert gather(module, 9)[0] == 90


@pytest.mark.parametrize(
    ("position", "bad", "message"),
    [
        (0, np.zeros(255, np.float32), "argument 0: expected 1024 bytes, got 1020"),
        (0, np.zeros((256, 2), np.float32)[:, 0], "argument 0: expected C-contiguous"),
        (1, np.broadcast_to(np.float32(0), 256), "argument 1: expected C-contiguous"),
        (1, np.frombuffer(bytes(1024), np.float32), "argument 1: the step writes to it, but it is read-only"),
        (1, bytes(1024), "argument 1: the step writes to it, but it is read-only"),
        (0, memoryview(bytearray(2048))[::2], "argument 0: expected C-contiguous"),
    ],
)
def test_an_argument_that_does_not_fit_is_refused(root, position, bad, message):
    module = build(step_source("affine", SCALE=2)).module
    module.configure([(1024, False), (1024, True)], 1024)
    arguments = [np.zeros(256, np.float32), np.zeros(256, np.float32)]
    arguments[position] = bad
    with pytest.raises(ValueError, match=message):
        module.run(arguments, 1)


def test_what_is_no_array_or_no_list_is_refused(root):
    module = build(step_source("affine", SCALE=2)).module
    with pytest.raises(ValueError, match="configure"):
        module.run([], 1)
    module.configure([(1024, False), (1024, True)], 1024)
    with pytest.raises(TypeError):
        module.run([object(), np.zeros(256, np.float32)], 1)
    with pytest.raises(TypeError, match="list or a tuple"):
        module.run(np.zeros((2, 256), np.float32), 1)
    with pytest.raises(ValueError, match="takes 2 arguments, got 1"):
        module.run([np.zeros(256, np.float32)], 1)
    with pytest.raises(ValueError, match="at least one worker"):
        module.run([np.zeros(256, np.float32)] * 2, 0)


def test_buffers_and_tuples_are_taken_and_stay_alive(root):
    module = build(step_source("affine", SCALE=2)).module
    module.configure([(1024, False), (1024, True)], 1024)
    out = bytearray(1024)
    module.run((np.ones(256, np.float32).tobytes(), out), 1)
    assert set(np.frombuffer(out, np.float32)) == {3.0}
    out.append(0)  # a buffer that was not released would refuse to grow


def test_configuring_again_is_allowed_with_the_same_values_only(root):
    module = build(step_source("affine", SCALE=2)).module
    module.configure([(1024, False), (1024, True)], 1024)
    module.configure([(1024, False), (1024, True)], 1024)
    with pytest.raises(ValueError, match="already configured"):
        module.configure([(1024, False), (512, True)], 1024)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_step_is_right_from_four_threads_at_once(root, workers):
    built = build(step_source("affine", SCALE=2))
    built.module.configure([(1024, False), (1024, True)], 1024)
    wrong, start = [], threading.Barrier(4)

    def call(seed):
        a, out = np.full(256, seed, np.float32), np.empty(256, np.float32)
        start.wait()
        for _ in range(200):
            out.fill(-1)
            built.module.run([a, out], workers)
            if not (out == seed * 2 + 1).all():
                wrong.append(seed)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_first_calls_of_a_step_from_several_threads_do_not_wait_for_each_other_forever(root):
    # A static of a function in the binding once made them: one thread held the GIL, another the static's guard.
    run_python(
        """
        import sys, threading
        from tests.build.helpers import build, run_affine, step_source
        sys.setswitchinterval(1e-6)
        for scale in range(2, 8):
            built, start = build(step_source("affine", SCALE=scale)), threading.Barrier(4)
            def call():
                start.wait()
                run_affine(built, scale)
            threads = [threading.Thread(target=call) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        """
    )


def test_four_threads_that_want_one_step_make_one_build(root, compiler):
    source, origins = step_source("affine", SCALE=30), []
    threads = [threading.Thread(target=lambda: origins.append(build(source).origin)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(origins) == ["compiled", "memory", "memory", "memory"]
    assert len(compiler.calls) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_step_runs_in_a_forked_child_after_the_pool_has_started(root):
    printed = run_python(
        """
        import os, threading
        from tests.build.helpers import build, run_affine, step_source
        built = build(step_source("affine", SCALE=2))
        run_affine(built, 2, 2)
        stop, child_codes = threading.Event(), []
        def keep_busy():
            while not stop.is_set():
                run_affine(built, 2, 2)
        busy = threading.Thread(target=keep_busy)
        busy.start()  # so that forks happen while the pool's lock is held
        for _ in range(10):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    run_affine(built, 2, 1)
                    run_affine(built, 2, 2)
                    run_affine(build(step_source("affine", SCALE=2)), 2, 2)
                    code = 0
                finally:
                    os._exit(code)
            child_codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        stop.set()
        busy.join()
        run_affine(built, 2, 2)
        print(child_codes)
        """
    )
    assert printed.strip() == str([0] * 10)


def test_a_module_loaded_again_from_disk_is_right_beside_the_first(root):
    first = build(step_source("affine", SCALE=2))
    cache.forget_loaded()
    second = build(step_source("affine", SCALE=2))
    assert second.origin == "disk"
    run_affine(first, 2)
    run_affine(second, 2)
