"""Worker processes that fetch batches ahead.

Invariant: results come out in the order of submission, whichever worker is faster; after ``close`` no process
is left.
"""

from __future__ import annotations

import multiprocessing
import pickle
import queue
import random
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# How often a waiting parent looks whether its workers are alive, in seconds.
_POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Failure:
    """An exception of a worker: what can be sent through a pipe, whatever the exception holds."""

    kind: type[BaseException]
    text: str


class WorkerPool:
    """``count`` forked processes that call ``fetch(request)``; requests go round, results come back in order.

    Forked, not spawned: the dataset need not be picklable and is not copied.
    """

    def __init__(
        self,
        fetch: Callable[[Any], Any],
        count: int,
        initialize: Callable[[int], None] | None,
        seed: int,
        timeout: float,
    ) -> None:
        context = multiprocessing.get_context("fork")
        self._timeout = timeout
        self._results: Any = context.Queue()
        self._requests: list[Any] = [context.Queue() for _ in range(count)]
        self._arrived: dict[int, Any] = {}
        self._submitted = 0
        self._delivered = 0
        self._processes = [
            context.Process(
                target=_work,
                args=(worker_id, fetch, requests, self._results, initialize, seed + worker_id),
                name=f"pequegrad-loader-{worker_id}",
                daemon=True,
            )
            for worker_id, requests in enumerate(self._requests)
        ]
        for process in self._processes:
            process.start()

    @property
    def outstanding(self) -> int:
        """Number of requests whose result was not yet delivered."""
        return self._submitted - self._delivered

    def submit(self, request: Any) -> None:
        """Queue a request for the worker whose turn it is."""
        self._requests[self._submitted % len(self._requests)].put((self._submitted, request))
        self._submitted += 1

    def next_result(self) -> Any:
        """Return the result of the earliest request not delivered yet, or raise what its worker raised."""
        deadline = time.monotonic() + self._timeout if self._timeout else None
        while self._delivered not in self._arrived:
            try:
                number, result = self._results.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                self._check_workers()
                if deadline is not None and time.monotonic() > deadline:
                    raise RuntimeError(
                        f"DataLoader: no batch within timeout={self._timeout} s. Raise timeout, or look for "
                        "a deadlock in the dataset by num_workers=0."
                    ) from None
                continue
            self._arrived[number] = result
        result = pickle.loads(self._arrived.pop(self._delivered))
        self._delivered += 1
        if isinstance(result, _Failure):
            _raise(result)
        return result

    def close(self) -> None:
        """Stop all workers, also those in the middle of a fetch."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        for channel in (self._results, *self._requests):
            channel.cancel_join_thread()
            channel.close()

    def _check_workers(self) -> None:
        owed = self._processes[self._delivered % len(self._processes)]
        if not owed.is_alive():
            raise RuntimeError(
                f"DataLoader: worker {owed.name} (pid {owed.pid}) died with exit code {owed.exitcode}; a "
                "negative one is the signal that killed it, -9 often for lack of memory. Try num_workers=0 "
                "to see why."
            )


def _work(
    worker_id: int,
    fetch: Callable[[Any], Any],
    requests: Any,
    results: Any,
    initialize: Callable[[int], None] | None,
    seed: int,
) -> None:
    """Serve requests until terminated. Each worker has its own seed, or all would augment alike."""
    random.seed(seed)
    np.random.seed(seed)
    failure = None
    try:
        if initialize is not None:
            initialize(worker_id)
    except Exception as error:
        failure = _describe(error, worker_id)
    while True:
        number, request = requests.get()
        # Pickled here, not by the queue's own thread, which would drop what cannot be pickled without a word.
        try:
            answer = failure or pickle.dumps(fetch(request), protocol=5)
        except Exception as error:
            answer = _describe(error, worker_id)
        results.put((number, answer))


def _describe(error: BaseException, worker_id: int) -> bytes:
    text = (
        f"Caught {type(error).__name__} in DataLoader worker process {worker_id}.\n"
        f"Original traceback:\n{traceback.format_exc().rstrip()}"
    )
    try:
        return pickle.dumps(_Failure(type(error), text))
    except (pickle.PicklingError, AttributeError):  # a class defined inside a function has no name to send
        return pickle.dumps(_Failure(RuntimeError, text))


def _raise(failure: _Failure) -> None:
    try:
        error = failure.kind(failure.text)
    except TypeError:  # its constructor takes something else than a message
        error = RuntimeError(failure.text)
    raise error
