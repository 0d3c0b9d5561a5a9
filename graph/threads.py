"""Worker threads for streaming weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

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
