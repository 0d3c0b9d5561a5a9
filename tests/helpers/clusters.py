"""A Dask cluster as a user starts it: `dask scheduler` and some `dask worker`, each a process of its own on the loopback."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_KILL_ONCE = """
import os, signal, sys

def kill_once(event, arguments):
    if event == "os.mkdir" and "/bundles/." in str(arguments[0]) and str(arguments[0]).endswith("/new"):
        try:
            os.close(os.open({flag!r}, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()

if "pocketphi.compiler.executors.process" in sys.orig_argv:
    sys.addaudithook(kill_once)
"""
_KILL_ITSELF = """
import os, signal, sys

def kill(event, arguments):
    if event == "os.mkdir" and {key!r} in str(arguments[0]) and str(arguments[0]).endswith("/new"):
        open({flag!r}, "a").write(".")
        os.kill(os.getpid(), signal.SIGKILL)

if "pocketphi.compiler.executors.process" in sys.orig_argv:
    sys.addaudithook(kill)
"""
_KILL_STARTING = """
import os, signal, sys

def kill(event, arguments):
    if event == "import" and arguments[0] == "distributed.worker" and "spawn_main" in str(sys.orig_argv):
        with open({flag!r}, "a+") as file:
            file.seek(0)
            if len(file.read()) < {key}:
                file.write(".")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
"""


def starting_worker_is_killed(folder: Path, times: int) -> Path:
    """The same, where a process of `local:N` is killed while it starts, so many times: each leaves a dot in the file."""
    return _hook(folder, _KILL_STARTING, times)


def worker_is_killed_once(folder: Path) -> Path:
    """Modules with which the first process that has begun to write a bundle kills its worker. The file that is there then."""
    return _hook(folder, _KILL_ONCE)


def process_is_killed(folder: Path, key: str) -> Path:
    """The same, where each process that writes the bundle with this key is killed: it leaves a dot in the file."""
    return _hook(folder, _KILL_ITSELF, key)


def _hook(folder: Path, code: str, key: str | int = "") -> Path:
    flag = folder.parent / f"killed by {folder.name}"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code.format(flag=str(flag), key=key))
    return flag


@contextlib.contextmanager
def cluster(folder: Path, workers: int, path: str = "", own: Mapping[str, str] | None = None) -> Iterator[str]:
    """`dask://HOST:PORT` of a cluster whose workers are there. folder: for its files; path: before this tree on Python's; own:
    variables of the workers"""
    folder.mkdir(exist_ok=True)
    quiet = {"DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"}
    environment = {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(filter(None, [path, str(ROOT)])), **(own or {})}
    about = folder / "scheduler.json"
    with contextlib.ExitStack() as stack:
        start = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(about)]
        stack.enter_context(_process(_command("dask_scheduler", start), os.environ, folder / "scheduler.log"))
        for number in range(workers):
            arguments = ["--scheduler-file", str(about), "--nthreads", "1", "--no-dashboard"]
            arguments += ["--local-directory", str(folder / f"worker{number}"), "--nworkers", "1"]
            command = _command("dask_worker", arguments)
            stack.enter_context(_process(command, environment, folder / f"worker{number}.log"))
        yield _address(about, workers)


def _command(program: str, arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", f"distributed.cli.{program}", *arguments]


@contextlib.contextmanager
def _process(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd=log.parent)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _address(about: Path, workers: int) -> str:
    """Once the scheduler and all workers are there."""
    from distributed import Client

    with Client(scheduler_file=str(about), timeout=120) as client:
        client.wait_for_workers(workers, timeout=240)
        address: str = client.scheduler.address
    return address.replace("tcp://", "dask://")
