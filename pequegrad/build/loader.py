"""Import a step's module file, and hand the process's one thread pool from module to module.

Invariant: a file is loaded only by ``build.cache``, right after its size and sha256 were found right.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import CacheError, DeviceError, IndexOutOfRange
from ..forking import ForkSafeLock
from ..records import record

# The last part must be the name in the binding's PYBIND11_MODULE; the parts before make it unique, because
# pybind11 and Python both hand out the first module again when the same full name comes from another file.
INIT_NAME = "pg_step"
_INDEX_OUT_OF_RANGE, _DEVICE_FAILED, _OUT_OF_MEMORY = 1, 2, 3

_numbers = itertools.count()
_pool_capsule: Any = None
_pool_lock = ForkSafeLock()


@record
class StepFailure:
    """Why a step stopped: ``kernel`` is its number in the plan, ``value`` the offending index, ``bound`` its
    limit; ``text`` what a device said.
    """

    code: int
    kernel: int
    value: int
    bound: int
    text: str = ""

    @property
    def is_index(self) -> bool:
        """Whether an index was out of range; ``kernel`` says where."""
        return self.code == _INDEX_OUT_OF_RANGE

    def error(self, where: str = "") -> IndexOutOfRange | DeviceError | CacheError:
        """Return the exception for it; ``where`` is a prefix such as ``"train.py:42: gather: "``."""
        if self.code == _DEVICE_FAILED:
            return DeviceError(f"{where}a call of the device failed: {self.text}.")
        if self.code == _OUT_OF_MEMORY:
            return DeviceError(
                f"{where}the device is out of memory: {self.text}. A smaller batch needs less; what else is on the device "
                "can be freed by deleting its tensors."
            )
        if self.code == _INDEX_OUT_OF_RANGE:
            return IndexOutOfRange(
                f"{where or f'kernel {self.kernel} of a compiled step: '}index {self.value} is outside a "
                f"dimension of size {self.bound}. Indices must lie in [0, {self.bound})."
            )
        return CacheError(f"{where}a compiled step failed with code {self.code}, which this version does not know")


class StepModule:
    """A loaded step. ``configure`` it once, then ``run`` it from any thread.

    ``try_run(arguments, workers)`` is the native function itself: it returns None, or a tuple for
    ``StepFailure`` when the step stopped. ``run`` raises instead.
    ``try_run_many(arguments, workers, order, batched, stacked)`` runs a step per row of ``order``, int64 (steps, rows):
    the arguments ``batched`` are datasets, of which a step takes the rows that its row of ``order`` names; the arguments
    ``stacked`` hold the results of all steps, one after another.
    """

    __slots__ = ("_native", "make_call", "path", "try_run", "try_run_many")

    def __init__(self, native: Any, path: str) -> None:
        self._native = native
        self.path = path
        self.try_run: Callable[[Sequence[Any], int], tuple[int, int, int, int, str] | None] = native.run
        self.make_call: Callable[..., Callable[..., Any]] = native.make_call
        self.try_run_many: Callable[..., tuple[int, int, int, int, str] | None] = native.run_many

    def configure(self, arguments: Sequence[tuple[int, bool]], arena_bytes: int) -> None:
        """Say what ``run`` takes: (size in bytes, whether the step writes to it) of each argument, and the
        arena's size.

        Repeating it with the same values is allowed; raises ValueError for other ones.
        """
        self._native.configure(arguments, arena_bytes)

    def release(self) -> None:
        """Give back the host memory that waits for the next call, which takes it anew."""
        self._native.release()

    def run(self, arguments: Sequence[Any], workers: int) -> None:
        """Run the step on a list or tuple of C-contiguous arrays or buffers, in place, with the GIL released.

        Raises IndexOutOfRange when the step met a bad index, ValueError for an argument of another size,
        layout or writability than configured.
        """
        failure = self.try_run(arguments, workers)
        if failure is not None:
            raise StepFailure(*failure).error()


def load(path: str, unique_name: str) -> StepModule:
    """Load a step's module file under a name of its own and give it the process's thread pool.

    The caller has checked the file's sums. Raises CacheError when it is no module for this Python all the
    same.
    """
    global _pool_capsule
    name = f"pequegrad._steps.{unique_name}_{next(_numbers)}.{INIT_NAME}"
    file_loader = importlib.machinery.ExtensionFileLoader(name, path)
    spec = importlib.machinery.ModuleSpec(name, file_loader, origin=path)
    try:
        native = importlib.util.module_from_spec(spec)
        file_loader.exec_module(native)
    except ImportError as error:
        raise CacheError(f"{path} is no step module for this Python: {error}. Run: pequegrad cache clear") from error
    with _pool_lock.now:
        _pool_capsule = native.attach_pool(_pool_capsule)
    return StepModule(native, path)
