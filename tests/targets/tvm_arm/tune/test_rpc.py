"""The whole way to a board: a tracker, our RPC server for aarch64 under qemu, kernels uploaded and timed, a server lost."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pocketphi.graph.errors import InputError
from pocketphi.targets.tvm_arm.build_runtime import build_rpc_server
from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.isa import ISAS
from pocketphi.targets.tvm_arm.kernels.matmul import Form, Schedule
from pocketphi.targets.tvm_arm.platform import Platform
from pocketphi.targets.tvm_arm.toolchain import find_toolchain, host_arch
from pocketphi.targets.tvm_arm.tune.remote import BoardLost, RemoteMeasurer, parse_address

MISSING = [
    name
    for name in ("aarch64-linux-gnu-g++", "qemu-aarch64")
    if host_arch() != "aarch64" and shutil.which(name) is None
]
needs_qemu = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
FORM = Form(Interleaved(64, 64, 32, 4, False), single=True)
PLATFORM = Platform("linux", ISAS["dotprod"])
HOST_ISA = "neon" if host_arch() == "aarch64" else "avx2"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def tracker() -> Iterator[int]:
    port = free_port()
    ports = ["--port", str(port), "--port-end", str(port + 1)]
    command = [sys.executable, "-m", "tvm.exec.rpc_tracker", "--host", "127.0.0.1", *ports, "--silent"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield port
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass
class Board:
    key: str
    address: tuple[str, int]
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def board(tracker: int, tmp_path: Path) -> Iterator[Board]:
    toolchain = find_toolchain("linux", "aarch64")
    key = f"board-{tmp_path.name}"
    command = [*toolchain.command(build_rpc_server(toolchain)), "--tracker", f"127.0.0.1:{tracker}", "--key", key]
    made = Board(
        key, ("127.0.0.1", tracker), subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    )
    yield made
    if made.process.poll() is None:
        made.kill()


def connected(board: Board) -> RemoteMeasurer:
    """Once the board has come up."""
    for _ in range(100):
        try:
            return RemoteMeasurer(PLATFORM, board.address, board.key, rounds=2, cold_bytes=4096, prompt=5)
        except InputError:
            time.sleep(0.2)
    raise AssertionError("the board did not come up")


@needs_qemu
def test_kernels_are_timed_and_a_lost_board_is_one_line(board: Board) -> None:
    measurer = connected(board)
    assert measurer.how == f"rpc {board.key}, 1 thread"
    times = measurer.times(FORM, [Schedule(2), Schedule(1, 1, 1024, 2)])
    assert set(times) == {Schedule(2), Schedule(1, 1, 1024, 2)}
    assert min(times.values()) > 0
    prefill = measurer.times(Form(FORM.matrix), [Schedule(1, 4)])
    assert prefill[Schedule(1, 4)] > min(times.values())  # five rows
    board.kill()
    with pytest.raises(
        BoardLost, match=rf"the board '{board.key}' went away \(.*what was timed is kept: run the command again"
    ):
        measurer.times(FORM, [Schedule(2)])


def test_no_tracker() -> None:
    with pytest.raises(
        InputError, match=r"no RPC tracker at 127\.0\.0\.1:1: start one with python -m tvm\.exec\.rpc_tracker"
    ):
        RemoteMeasurer(Platform("linux", ISAS[HOST_ISA]), ("127.0.0.1", 1), "x")


@pytest.mark.parametrize("text", ["localhost", ":9190", "host:", "host:x", "host:70000"])
def test_addresses(text: str) -> None:
    with pytest.raises(InputError, match=rf"--rpc {text}: expected HOST:PORT of a tracker"):
        parse_address(text)
    assert parse_address("::1:9190") == ("::1", 9190)
