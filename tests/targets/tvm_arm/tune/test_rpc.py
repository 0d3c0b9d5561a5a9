"""The whole way to a board: a tracker, our RPC server for aarch64 under qemu, kernels uploaded and timed, a server lost."""

from __future__ import annotations

import time

import pytest
from rpc_board import MISSING, board, kill, tracker

from pocketphi.graph.errors import InputError
from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.isa import ISAS
from pocketphi.targets.tvm_arm.kernels.matmul import Form, Schedule
from pocketphi.targets.tvm_arm.platform import Platform
from pocketphi.targets.tvm_arm.toolchain import host_arch
from pocketphi.targets.tvm_arm.tune.remote import BoardLost, RemoteMeasurer, parse_address

FORM = Form(Interleaved(64, 64, 32, 4, False), single=True)
HOST_ISA = "neon" if host_arch() == "aarch64" else "avx2"


def connected(port: int, key: str) -> RemoteMeasurer:
    """Once the board has come up."""
    for _ in range(100):
        try:
            platform = Platform("linux", ISAS["dotprod"])
            return RemoteMeasurer(platform, ("127.0.0.1", port), key, rounds=2, cold_bytes=4096, prompt=5)
        except InputError:
            time.sleep(0.2)
    raise AssertionError("the board did not come up")


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_kernels_are_timed_and_a_lost_board_is_one_line() -> None:
    with tracker() as port, board(port, "pi") as process:
        measurer = connected(port, "pi")
        assert measurer.how == "rpc pi, 1 thread"
        times = measurer.times(FORM, [Schedule(2), Schedule(1, 1, 1024, 2)])
        assert set(times) == {Schedule(2), Schedule(1, 1, 1024, 2)}
        assert min(times.values()) > 0
        prefill = measurer.times(Form(FORM.matrix), [Schedule(1, 4)])
        assert prefill[Schedule(1, 4)] > min(times.values())  # five rows
        with pytest.raises(
            InputError, match=rf"no board 'phone' at 127\.0\.0\.1:{port} \(there: .*\): start pocketphi-rpc"
        ):
            RemoteMeasurer(measurer.platform, ("127.0.0.1", port), "phone")
        kill(process)
        with pytest.raises(
            BoardLost, match=r"the board 'pi' went away \(.*what was timed is kept: run the command again"
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
