"""The bundles of a matrix on a Dask cluster: one that runs already, or processes of this machine.

Dask places a bundle on a worker, and on another one where that is killed. At most as many are given out as the workers have
threads, so that none waits behind another one while a worker is free. Bundles that a calibration makes small share its result,
the cache's weights: the first of them goes ahead.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import pickle
import secrets
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pocketphi.compiler.build_key import packages_of
from pocketphi.compiler.build_one import Job, key_of
from pocketphi.compiler.build_result import Result
from pocketphi.compiler.executors.machine import describe
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import CannotRun, InputError, PocketphiError
from pocketphi.graph.places import Cache
from pocketphi.graph.stopping import held
from pocketphi.graph.store import store_of
from pocketphi.graph.writing import held_file

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster

    from pocketphi.compiler.executors.on_worker import Fit

_ON_WORKER = "pocketphi.compiler.executors.on_worker"
_QUIET = {"distributed.worker.profile.enabled": False}
"""Dask would look a hundred times a second at what each worker does."""
_CONNECT_SECONDS = 15
_LOOK_SECONDS = 5.0
_LOOKS = 24
"""So often in a row no worker may be there: those that were killed are started again meanwhile."""
_TRIES = 3
"""Of a bundle whose process is ended by the system, and of starting processes; of a bundle whose worker is ended, the scheduler
has a number of its own."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Dask:
    """An `Executor`. address: of a scheduler; workers: processes of this machine, where there is none."""

    address: str | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        try:
            import distributed  # noqa: F401
        except ImportError as error:
            raise CannotRun(
                f"--executor needs the package {error.name!r}; install it with: pip install 'pocketphi[dask]'"
            ) from None

    @property
    def said(self) -> str:
        """As on the command line."""
        return f"local:{self.workers}" if self.address is None else f"dask://{self.address.removeprefix('tcp://')}"

    def run(self, jobs: Sequence[Job], ui: Ui) -> Generator[Result]:
        """Raises InputError where no worker is there, or one is unfit."""
        ready, failed = _with_keys(jobs)
        for i, result in enumerate(failed):
            ui.say(f"[{i + 1}/{len(jobs)}] {result.name}")
            yield result
        if not ready:
            return
        with held(), self._client() as client, _probed(ready[0].cache, ui) as probe:
            fit = _fit(ready, probe)
            _check_workers(client, fit, self.said)
            ui.say(f"{self.said}: {_count(client)} bundles at a time")
            yield from _Run(client, fit, ui, len(jobs), len(failed)).of(ready)

    @contextlib.contextmanager
    def _client(self) -> Iterator[Client]:
        import dask
        from distributed import Client
        from distributed.utils import LoopRunner

        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is said by us
        with contextlib.ExitStack() as stack:
            stack.enter_context(dask.config.set(_QUIET))
            where: Any = self.address or stack.enter_context(self._processes())
            try:
                if self.address is not None:
                    LoopRunner().run_sync(_greet, self.address)
                client = stack.enter_context(Client(where, timeout=_CONNECT_SECONDS))
            except (OSError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"--executor {self.said}: no Dask scheduler answers ({_reason(error)}); start one with 'dask scheduler'"
                ) from None
            yield client

    def _processes(self) -> LocalCluster:
        """Of this machine, started. One that is killed while it starts fails them all: they are started again."""
        from distributed import LocalCluster

        reason = ""
        for _ in range(_TRIES):
            try:
                return LocalCluster(
                    n_workers=self.workers,
                    threads_per_worker=1,
                    dashboard_address=None,
                    preload=[_ON_WORKER],
                    silence_logs=logging.CRITICAL,
                )
            except (OSError, ValueError, RuntimeError) as error:
                reason = _reason(error)
        raise CannotRun(
            f"--executor {self.said}: the processes did not start, {_TRIES} times ({reason}); is there enough memory? Use "
            "fewer, or leave --executor out"
        )


async def _greet(address: str) -> None:
    """Raises OSError where no Dask answers, ValueError for what is no address. A `Client` waits for ever for who listens and
    says nothing, as the server of a scheduler's own web page does."""
    from distributed.comm.core import connect

    try:
        comm = await asyncio.wait_for(connect(address, timeout=_CONNECT_SECONDS), 2 * _CONNECT_SECONDS)
    except TimeoutError:
        raise OSError("what listens there says nothing") from None
    except (OSError, ValueError, RuntimeError):
        raise
    except Exception:  # of what may be anything
        raise OSError("what listens there is something else") from None
    await comm.close()


class _NoWorker(OSError):
    """None is left, and none comes."""


class _Run:
    """One build on a cluster."""

    def __init__(self, client: Client, fit: Fit, ui: Ui, total: int, done: int) -> None:
        self.client, self.fit, self.ui = client, fit, ui
        self.total, self.done = total, done
        self.build = f"pocketphi-{secrets.token_hex(8)}"

    def of(self, jobs: Sequence[Job]) -> Generator[Result]:
        from pocketphi.compiler.executors.on_worker import stop

        todo, behind = _in_order(jobs)
        running: dict[Future[str], Job] = {}
        self.client.subscribe_topic(self.build, self._relay)
        try:
            while todo or running:
                while todo and len(running) < max(1, _count(self.client)):
                    job = todo.popleft()
                    running[self._submit(job)] = job
                for future in self._ended(list(running)):
                    job = running.pop(future)
                    todo.extend(behind.pop(job.name, ()))
                    yield self._told(_result(future, job))
        except (OSError, CancelledError) as error:
            why = str(error) if isinstance(error, _NoWorker) else "the scheduler is gone"
            left = [*running.values(), *todo, *(job for jobs in behind.values() for job in jobs)]
            for job in left:
                yield self._told(_failed(job, f"{why}; build again to go on"))
        finally:
            with contextlib.suppress(Exception):
                self.client.unsubscribe_topic(self.build)
                if running:
                    self.client.cancel(list(running))
                    self.client.run(stop, self.build, on_error="ignore")

    def _told(self, result: Result) -> Result:
        self.done += 1
        self.ui.say(f"[{self.done}/{self.total}] {result.name}")
        return result

    def _submit(self, job: Job) -> Future[str]:
        import torch

        from pocketphi.compiler.executors.on_worker import Order, build

        threads = torch.get_num_threads()
        environment = {name: os.environ.get(name, str(threads)) for name in _THREADS} | {"OMP_WAIT_POLICY": "PASSIVE"}
        order = Order(self.build, job.name, pickle.dumps((job, threads)), environment, self.fit)
        return self.client.submit(build, order, key=f"{job.name}-{self.build}", pure=False, retries=_TRIES - 1)

    def _ended(self, futures: list[Future[str]]) -> set[Future[str]]:
        """Those that have come to an end, once there are some. Raises _NoWorker where none is left to wait for, OSError or
        CancelledError where the scheduler is gone."""
        from distributed import wait

        absent = 0
        while absent < _LOOKS:
            with contextlib.suppress(TimeoutError):
                return set(wait(futures, timeout=_LOOK_SECONDS, return_when="FIRST_COMPLETED").done)
            absent = 0 if self.client.nthreads() else absent + 1
        raise _NoWorker("no worker is left")

    def _relay(self, event: tuple[float, Any]) -> None:
        name, text = event[1]
        self.ui.say(f"{name}: {text}")


def _with_keys(jobs: Sequence[Job]) -> tuple[list[Job], list[Result]]:
    """The jobs with their keys, and results of those that cannot be begun. Each source is read here, once."""
    ready, failed = [], []
    for job in jobs:
        try:
            ready.append(replace(job, key=key_of(job)))
        except PocketphiError as error:
            failed.append(_failed(job, str(error), error.exit_code))
    return ready, failed


def _fit(jobs: Sequence[Job], probe: str) -> Fit:
    """What workers have to have for these jobs, and what only a look at this machine tells."""
    from pocketphi.compiler.executors.on_worker import Fit

    options = [job.cell.options for job in jobs]
    packages = sorted({name for one in options for name in packages_of(one)})
    cpu = any(one.uses_text or one.verify != "never" for one in options)
    files = jobs[0].sources.files()
    text = jobs[0].measure.text
    files += [(text, text.stat().st_size)] if text and text.is_file() else []
    return Fit(describe(packages, cpu), packages, cpu, files, jobs[0].cache, probe)


@contextlib.contextmanager
def _probed(cache: Cache, ui: Ui) -> Iterator[str]:
    """The name of a file that lies in the cache while the body runs."""
    folder = cache.folder
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            name = stack.enter_context(held_file(folder, "probe")).name
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be made: {error.strerror}; choose another cache in the build file"
            ) from None
        if store := store_of(cache, ui.say):
            store.keep(name, folder, [name])
            stack.callback(store.forget, name)
        yield name


def _check_workers(client: Client, fit: Fit, said: str) -> None:
    """Raise InputError for the first worker that is unfit, and where there is none."""
    from pocketphi.compiler.executors.on_worker import why_unfit

    if not client.nthreads():
        raise InputError(f"--executor {said}: the scheduler has no workers; start some with 'dask worker'")
    for address, answer in sorted(client.run(why_unfit, fit, on_error="return").items()):
        if isinstance(answer, ImportError | AttributeError):
            answer = "has no pocketphi, or another one; install the same there"
        if answer is not None:
            raise InputError(f"--executor {said}: the worker {address} {answer}")


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _count(client: Client) -> int:
    return sum(client.nthreads().values())


def _in_order(jobs: Sequence[Job]) -> tuple[deque[Job], dict[str, list[Job]]]:
    """The jobs to begin with, and those behind one of them, by its name."""
    first: dict[str, Job] = {}
    begin, behind = deque[Job](), dict[str, list[Job]]()
    for job in jobs:
        options = job.cell.options
        made_small = repr((options.model, sorted(options.deciding().items())))
        if options.uses_text and made_small in first:
            behind.setdefault(first[made_small].name, []).append(job)
        else:
            begin.append(job)
            first[made_small] = job
    return begin, behind


def _result(future: Future[str], job: Job) -> Result:
    from distributed.scheduler import KilledWorker

    from pocketphi.compiler.executors.on_worker import Died, Refused

    error = None if future.status == "finished" else future.exception()
    match error:
        case None:
            made: Result = pickle.loads(base64.b64decode(future.result()))
            return made
        case KilledWorker():
            return _failed(
                job, f"{error.allowed_failures + 1} workers were killed while they made it; is there enough memory?"
            )
        case Died():
            return _failed(
                job, f"its process was ended by the system {_TRIES} times ({error}); is there enough memory?"
            )
        case Refused():
            return _failed(job, f"the worker {error}")
    return _failed(job, f"this is a bug of ours: {type(error).__name__}: {error}", 3)


def _failed(job: Job, why: str, code: int = 2) -> Result:
    return Result(job.name, job.place, error=why, exit_code=code)
