"""A tracker, and a board that is our RPC server for aarch64, under qemu on other machines. They end with their block."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pocketphi.targets.tvm_arm.toolchain import find_toolchain, host_arch

MISSING = [
    name
    for name in ("aarch64-linux-gnu-g++", "qemu-aarch64")
    if host_arch() != "aarch64" and shutil.which(name) is None
]
"""What has to be installed for a board here."""

Process = subprocess.Popen[bytes]


@contextlib.contextmanager
def tracker() -> Iterator[int]:
    """The port of a tracker on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    ports = ["--port", str(port), "--port-end", str(port + 1)]
    process = _start([sys.executable, "-m", "tvm.exec.rpc_tracker", "--host", "127.0.0.1", *ports, "--silent"])
    try:
        yield port
    finally:
        kill(process)


@contextlib.contextmanager
def board(port: int, key: str) -> Iterator[Process]:
    """A board that registers with the tracker at a port."""
    from pocketphi.targets.tvm_arm import build_runtime

    toolchain = find_toolchain("linux", "aarch64")
    with pytest.MonkeyPatch.context() as patch:  # a compiler that optimizes takes twice as long
        patch.setattr(build_runtime, "_OPTIONS", ("-O0", *build_runtime._OPTIONS[1:]))
        server = build_runtime.build_rpc_server(toolchain)
    process = _start([*toolchain.command(server), "--tracker", f"127.0.0.1:{port}", "--key", key])
    try:
        yield process
    finally:
        kill(process)


def kill(process: Process) -> None:
    """End a process with its children, as a board that loses power does. Safe to call twice."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _start(command: list[str]) -> Process:
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
