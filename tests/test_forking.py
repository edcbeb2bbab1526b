"""Locks after a fork: free in the child, whoever held them in the parent."""

from __future__ import annotations

import importlib
import os
import pkgutil
import threading
from collections.abc import Callable

import pytest

import pequegrad
from pequegrad.forking import ForkSafeLock, in_each_child

SECONDS = 10

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


def passes_in_child(claim: Callable[[], object]) -> bool:
    """Fork, and return whether ``claim`` is true in the child."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if claim() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_child_finds_a_lock_free_that_another_thread_of_its_parent_holds():
    lock, is_held, is_done = ForkSafeLock(), threading.Event(), threading.Event()

    def hold():
        with lock.now:
            is_held.set()
            is_done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    is_held.wait()
    try:
        assert passes_in_child(lambda: lock.now.acquire(timeout=SECONDS))
        assert not lock.now.acquire(blocking=False)
    finally:
        is_done.set()
        holder.join()
    assert lock.now.acquire(blocking=False)


def test_a_thread_that_forks_inside_of_a_lock_leaves_it_in_the_child_too():
    lock = ForkSafeLock()

    def enters_again():
        with lock.now:
            return True

    def forks_inside():
        with lock.now:
            child = os.fork()
            is_right = enters_again()
        if child == 0:
            os._exit(0 if is_right and enters_again() else 2)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    # In a grandchild: an exception in the child would run the rest of the tests there.
    assert passes_in_child(lambda: forks_inside() == 0)


def test_what_each_child_does_anew_the_parent_does_not():
    done = []
    in_each_child(lambda: done.append(os.getpid()))
    assert passes_in_child(lambda: done == [os.getpid()])
    assert done == []


def test_no_module_of_the_package_has_a_lock_that_a_fork_could_leave_held():
    """export.loading had one: a child forked while another thread loaded a step waited for ever when it loaded one."""
    kinds = (type(threading.Lock()), type(threading.RLock()))
    found = [
        f"{info.name}.{name}"
        for info in pkgutil.walk_packages(pequegrad.__path__, "pequegrad.")
        if not info.name.endswith("__main__")
        for name, value in vars(importlib.import_module(info.name)).items()
        if isinstance(value, kinds)
    ]
    assert found == []
