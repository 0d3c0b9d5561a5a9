"""A kernel's time on a board, over TVM's RPC: `pocketphi-rpc` or `python -m tvm.exec.rpc_server` there, a tracker between."""

from __future__ import annotations

import contextlib
import socket
import statistics
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tvm
from tvm import rpc

from pocketphi.graph.errors import InputError, PocketphiError
from pocketphi.targets.tvm_arm.kernels.matmul import Form, Schedule
from pocketphi.targets.tvm_arm.platform import Platform
from pocketphi.targets.tvm_arm.tune.candidate import KERNEL, compile_kernel
from pocketphi.targets.tvm_arm.tune.cost_model import PROMPT
from pocketphi.targets.tvm_arm.tune.measure import COLD_BYTES, arguments, said
from pocketphi.targets.tvm_arm.tune.spread import BoardLost

_WAIT_SECONDS = 10
_ONE_COMPILES = threading.Lock()
"""Boards are timed at once, by a thread for each; the compiler serves one of them at a time."""


class RemoteMeasurer:
    """Times kernels on a board. rounds: how often each schedule is timed, in turns; cold_bytes: written before each call, so
    that weights come from memory; prompt: rows of a prefill."""

    def __init__(
        self,
        platform: Platform,
        session: Any,
        key: str,
        threads: int = 1,
        rounds: int = 5,
        cold_bytes: int = COLD_BYTES,
        prompt: int = PROMPT,
    ) -> None:
        """session: with the board, of a tracker. Raises BoardLost where it is gone."""
        self.platform, self.key, self.threads, self.rounds = platform, key, threads, rounds
        self.cold_bytes, self.prompt = cold_bytes, prompt
        self._toolchain = platform.toolchain()
        self._session = session
        with self._errors():
            self._session.get_function("runtime.config_threadpool")(1, threads)

    @property
    def how(self) -> str:
        return f"rpc {self.key}, {said(self.threads)}"

    def times(self, form: Form, schedules: list[Schedule]) -> dict[Schedule, float]:
        """Microseconds of each schedule. Raises BoardLost if the board goes away."""
        with tempfile.TemporaryDirectory() as folder, self._errors():
            device = self._session.cpu()
            held = [tvm.runtime.tensor(array, device) for array in arguments(form, self.prompt)]
            timers = {s: self._timer(form, s, Path(folder), n) for n, s in enumerate(schedules)}
            found: dict[Schedule, list[float]] = {schedule: [] for schedule in schedules}
            for _ in range(self.rounds):
                for schedule, timer in timers.items():
                    found[schedule] += [seconds * 1e6 for seconds in timer(*held).results]
        return {schedule: statistics.median(sorted(times)[: len(times) // 2 + 1]) for schedule, times in found.items()}

    def _timer(self, form: Form, schedule: Schedule, folder: Path, number: int) -> Any:
        path = folder / f"kernel{number}.so"
        with _ONE_COMPILES:
            executable = compile_kernel(self.platform, form, schedule)
            executable.export_library(str(path), fcompile=self._toolchain.fcompile, workspace_dir=str(folder))
        self._session.upload(str(path))
        module = self._session.load_module(path.name)
        cold = self.cold_bytes if form.single else 0
        return module.time_evaluator(KERNEL, self._session.cpu(), number=1, repeat=2, cache_flush_bytes=cold)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """TVM reports a lost connection as an error of many kinds."""
        try:
            yield
        except PocketphiError:
            raise
        except Exception as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise BoardLost(f"the board {self.key!r} went away ({said[-1][:120]})") from None


def parse_address(text: str) -> tuple[str, int]:
    """`host:port`. Raises InputError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"--rpc {text}: expected HOST:PORT of a tracker, such as 192.168.1.5:9190")
    return host, int(port)


def connect(address: tuple[str, int], key: str) -> list[Any]:
    """A session with each board of this key that is free; where all are in use, with the first that comes free.

    Raises InputError where there is no tracker, no board with this key, or none of them answers.
    """
    host, port = address
    try:
        socket.create_connection(address, _WAIT_SECONDS).close()  # TVM's own would try for a minute
        tracker = rpc.connect_tracker(host, port)
    except (OSError, RuntimeError):
        raise InputError(f"no RPC tracker at {host}:{port}: start one with python -m tvm.exec.rpc_tracker") from None
    held = tracker.summary()["queue_info"]
    if key not in held:
        known = ", ".join(sorted(held)) or "none"
        raise InputError(f"no board {key!r} at {host}:{port} (there: {known}): start pocketphi-rpc --key {key} on it")
    sessions, said = [], ""
    for _ in range(max(1, int(held[key]["free"]))):
        try:
            sessions.append(tracker.request(key, priority=1, session_timeout=0, max_retry=1))
        except Exception as error:
            said = (str(error).strip().splitlines() or ["no answer"])[-1][:120]
    if not sessions:
        raise InputError(f"the board {key!r} at {host}:{port} does not answer: {said}")
    return sessions
