"""Worker threads for streaming weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch

T = TypeVar("T")

WORKERS = 2
"""More would not help: two cores quantize about as fast as a disk reads and writes."""


@contextlib.contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads run torch on one thread each: torch's own on small chunks cost more than they give.

    The setting reaches beyond the pool's threads (MKL's is global), so that it is put back at the end: otherwise sums that
    are computed later, such as calibration's, would depend on what ran before.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(WORKERS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch runs on one thread: many short steps lose more to its threads' waiting than they give, most of all where another
    process has the second core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_threads(
    items: Sequence[str],
    job: Callable[[str, Callable[[int], None]], T],
    progress: Callable[[int], None],
    finished: Callable[[str], None] = lambda item: None,
) -> dict[str, T]:
    """What `in_processes` does, in threads: `job` for every item. An exception ends the others; the one of the first item that
    has one is raised, whichever thread was faster."""
    jobs = {}
    try:
        with workers() as pool:
            jobs = {pool.submit(job, item, progress): item for item in items}
            results = {}
            for done in as_completed(jobs):
                results[jobs[done]] = done.result()  # the first error ends the pool
                finished(jobs[done])
            return results
    except Exception:
        for one in jobs:  # those before one that failed had begun, and have ended by now
            if not one.cancelled():
                one.result()
        raise
