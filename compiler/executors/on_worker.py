"""What runs in a worker of a Dask cluster: it looks whether this machine is fit, and starts a process for each bundle.

A process of its own, because a compile forks, which a process with Dask's threads had better not, and because its memory goes
with it. It ends when the worker does, however that ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distributed import get_worker

from pocketphi.compiler.executors.machine import describe, difference
from pocketphi.graph.errors import PocketphiError
from pocketphi.graph.places import Cache
from pocketphi.graph.store import store_of, try_again
from pocketphi.graph.writing import partial_name


class Refused(Exception):
    """This machine cannot take part, for the reason in the message."""


class Died(Exception):
    """The process that made a bundle was ended by the system."""


@dataclass(frozen=True)
class Fit:
    """What a worker has to have. machine: as `describe` says it; packages: of which it names the versions; files: and their
    sizes, which it has to see; probe: the name of a file in the cache, or of an object in its store, and what it holds"""

    machine: Mapping[str, str]
    packages: Sequence[str]
    cpu: bool
    files: Sequence[tuple[Path, int]]
    cache: Cache
    probe: str


@dataclass(frozen=True)
class Order:
    """A bundle to make. build: by which it is stopped; what: a `Job` and more, pickled; environment: for its process"""

    build: str
    name: str
    what: bytes
    environment: Mapping[str, str]
    fit: Fit


_lock = threading.Lock()
_running: dict[str, set[subprocess.Popen[bytes]]] = {}
_stopped: set[str] = set()


def dask_setup(worker: object) -> None:
    """Called in the workers that we start ourselves: Ctrl-C reaches them too, and is for the process that started them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def why_unfit(fit: Fit) -> str | None:
    """In one line; None for a machine that can take part."""
    if odd := difference(describe(fit.packages, fit.cpu), fit.machine):
        return odd
    for path, size in fit.files:
        if not path.is_file() or path.stat().st_size != size:
            return f"does not see {path} as it is where the build was started: models have to be at the same paths"
    try:
        return _why_no_cache(fit)
    except (PocketphiError, OSError) as error:
        return f"cannot use the cache: {error}"


def _why_no_cache(fit: Fit) -> str | None:
    """Whether the probe is seen from here too, and one of this machine's can be put beside it."""
    try_again()
    said: list[str] = []
    if store := store_of(fit.cache, said.append):
        if store.find(fit.probe) is None:
            return said[0] if said else f"does not see what was written to {store.shown}"
        return None
    path = fit.cache.folder / fit.probe
    if not path.is_file() or path.read_text() != fit.probe:
        return (
            f"does not see what was written to {fit.cache.folder}: the cache has to be a folder that all machines share, or a "
            "store (s3://…)"
        )
    own = path.with_name(partial_name("own"))  # so that it is known as left over where this process is killed here
    own.write_text("")
    own.unlink(missing_ok=True)
    return None


def build(order: Order) -> str:
    """Make a bundle; the `Result`, pickled, in base64. What it says on the way is an event under the build's name.

    Raises Refused where this machine is not fit, Died where the process came to its end.
    """
    worker = get_worker()
    if why := why_unfit(order.fit):
        raise Refused(f"{worker.address}: {why}")
    process = _start(order)
    result = None
    try:
        assert process.stdin
        assert process.stdout
        with process.stdin as pipe:
            pipe.write(order.what)
        for line in process.stdout:
            said = json.loads(line)
            result = said.get("result", result)
            if "say" in said:
                worker.log_event(order.build, [order.name, said["say"]])
    finally:
        process.kill()
        code = process.wait()
        with _lock:
            _running[order.build].discard(process)
    if result is None:
        raise Died(f"exit code {code}" if code >= 0 else f"signal {-code}")
    return str(result)


def stop(build: str) -> None:
    """End what is under way for a build, and begin nothing more for it."""
    with _lock:
        _stopped.add(build)
        for process in _running.get(build, ()):
            process.kill()


def _start(order: Order) -> subprocess.Popen[bytes]:
    # of the very modules that this worker has
    environment = {**os.environ, **order.environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-m", "pocketphi.compiler.executors.process", str(os.getpid())]
    with _lock:
        if order.build in _stopped:
            raise Died("stopped")
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        _running.setdefault(order.build, set()).add(process)
    return process
