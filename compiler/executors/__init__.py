"""Where the bundles of a matrix are made: one after the other in this process, or by the workers of a Dask cluster."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from typing import Protocol

from pocketphi.compiler.build_one import Job
from pocketphi.compiler.build_result import Result
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import named

_MOST = 256


class Executor(Protocol):
    """Makes bundles."""

    def run(self, jobs: Sequence[Job], ui: Ui) -> Generator[Result]:
        """What became of each job, as it ends, in any order. A job that fails has its error in its result.

        Raises InputError where nothing can be begun. What is under way stops when the iterator is closed.
        """


def find_executor(text: str) -> Executor:
    """`serial`, `local:N` or `dask://HOST:PORT`. Raises InputError for anything else, CannotRun where Dask is missing."""
    if text == "serial":
        from pocketphi.compiler.executors.serial import Serial

        return Serial()
    if found := re.fullmatch(r"local:([1-9][0-9]{0,8})", text):
        if (count := int(found[1])) > _MOST:
            raise InputError(f"--executor local:{count}: expected {_MOST} processes at most")
        from pocketphi.compiler.executors.dask_cluster import Dask

        return Dask(workers=count)
    if found := re.fullmatch(r"dask://(.+:[0-9]{1,5})", text):
        from pocketphi.compiler.executors.dask_cluster import Dask

        return Dask(address=f"tcp://{found[1]}")
    raise InputError(
        f"--executor {named(text)}: expected serial, local:N for N processes of this machine, or dask://HOST:PORT of a "
        "scheduler"
    )
