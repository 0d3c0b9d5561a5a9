"""Worker processes for weights: forked, so that they share what the parent holds and nothing is sent to them.

Threads would take turns: the operators on half a megabyte are so short that two threads wait for Python's lock as long as
they compute (measured on two cores: 10.8 s with two threads, 13.7 s with one, 6.4 s with two processes).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import mmap
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from pocketphi.graph import stopping
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import PartSpec
from pocketphi.graph.threads import WORKERS, in_threads

T = TypeVar("T")
Job = Callable[[str, Callable[[int], None]], T]
"""Called with an item and a function that reports progress."""

CAN_FORK = sys.platform == "linux"
"""macOS has `fork` too, but its own libraries do not survive it."""


_REPORT_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1


def in_processes(
    items: Sequence[str],
    job: Job[T],
    progress: Callable[[int], None],
    finished: Callable[[str], None] = lambda item: None,
) -> dict[str, T]:
    """`job` for every item, in order of the items as workers come free; the results by item.

    finished: called here with each item whose result has come, while the workers go on

    The first exception of a job, or of `progress`, ends all workers and is raised. What a job changes in memory is lost
    with its process. Raises InputError when a worker is killed.
    """
    context = multiprocessing.get_context("fork")
    ctypes.CDLL(None)  # so that a worker need not load it
    taken = context.Value("i", 0)
    workers: dict[Connection, Any] = {}
    results: dict[str, T] = {}
    try:
        for _ in range(min(WORKERS, len(items))):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(items, job, taken, theirs, [*workers, ours], os.getpid()), daemon=True
            )
            # it leaves alone what is dropped here and not yet collected: an onnxruntime session among that would wait, for
            # ever, for threads that the child does not have
            gc.freeze()
            try:
                process.start()
            finally:
                gc.unfreeze()
            theirs.close()
            workers[ours] = process
        while workers:
            ready: Any = wait(list(workers))
            for pipe in ready:
                try:
                    message: Any = pipe.recv()
                except EOFError:
                    _ended(workers.pop(pipe))
                    continue
                if isinstance(message, BaseException):
                    raise message
                if isinstance(message, int):
                    progress(message)
                else:
                    results.update([message])
                    finished(message[0])
        return results
    finally:
        for process in workers.values():
            process.kill()
            process.join()


def in_workers(
    items: Sequence[str],
    job: Job[T],
    progress: Callable[[int], None] = lambda amount: None,
    finished: Callable[[str], None] = lambda item: None,
    *,
    long: bool,
) -> dict[str, T]:
    """`in_processes`, or the same in threads where work is not so long that making a process pays, or nothing can fork."""
    spread = in_processes if CAN_FORK and long else in_threads
    return spread(items, job, progress, finished)


def shared(parts: Mapping[str, PartSpec]) -> dict[str, torch.Tensor]:
    """Tensors that workers fill for the process that has forked them."""
    if not CAN_FORK:
        return {name: torch.empty(spec.shape, dtype=spec.dtype) for name, spec in parts.items()}
    memory = {name: mmap.mmap(-1, max(1, spec.bytes)) for name, spec in parts.items()}
    return {
        name: torch.frombuffer(memory[name], dtype=spec.dtype, count=math.prod(spec.shape)).view(spec.shape)
        for name, spec in parts.items()
    }


def apart(job: Callable[[], T]) -> T:
    """What `job` gives, from a process of its own where the system can fork: what it imports and leaves behind goes with it.

    Raises what `job` raises, and InputError when its process is killed.
    """
    if not CAN_FORK:
        return job()
    return in_processes(["job"], lambda item, progress: job(), lambda amount: None)["job"]


@contextlib.contextmanager
def beside(job: Callable[[], None]) -> Iterator[None]:
    """Run `job` in a process of its own as long as the body takes, no longer: it is killed then. A head start, of which nothing
    may depend: where there is no core for it, it does not run, and its errors are left to whoever does the work for good."""
    if not CAN_FORK or len(os.sched_getaffinity(0)) < 2:
        yield
        return
    process = multiprocessing.get_context("fork").Process(target=_quietly, args=(job, os.getpid()), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _quietly(job: Callable[[], None], parent: int) -> None:
    belong_to(parent)
    torch.set_num_threads(1)
    with contextlib.suppress(Exception):
        job()


def belong_to(parent: int) -> None:
    """In a new process: end when its parent does, however that ends, and leave signals of the terminal to it."""
    stopping.ignore()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


def _ended(process: Any) -> None:
    process.join()
    if process.exitcode:
        raise InputError(
            f"a worker process was ended by the system (exit code {process.exitcode}): is there enough memory? Nothing was kept"
        )


def _work(
    items: Sequence[str], job: Job[T], taken: Any, pipe: Connection, inherited: Sequence[Connection], parent: int
) -> None:
    """The loop of a worker."""
    belong_to(parent)
    for other in inherited:
        other.close()
    torch.set_num_threads(1)
    report = _Report(pipe)
    try:
        while (item := _next(items, taken)) is not None:
            result = job(item, report)
            report.send()
            pipe.send((item, result))
    except BrokenPipeError:
        os._exit(1)
    except BaseException as error:
        pipe.send(error)


class _Report:
    """Sums up progress and sends it now and then: each message wakes the parent, which takes a core from the workers."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._amount, self._sent = pipe, 0, time.monotonic()

    def __call__(self, amount: int) -> None:
        self._amount += amount
        if time.monotonic() - self._sent > _REPORT_SECONDS:
            self.send()

    def send(self) -> None:
        if self._amount:
            self._pipe.send(self._amount)
        self._amount, self._sent = 0, time.monotonic()


def _next(items: Sequence[str], taken: Any) -> str | None:
    with taken.get_lock():
        number = taken.value
        taken.value += 1
    return items[number] if number < len(items) else None
