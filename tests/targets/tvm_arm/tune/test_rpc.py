"""The whole way to a board: a tracker, our RPC server for aarch64 under qemu, kernels uploaded and timed, a server lost."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rpc_board import MISSING, board, kill, tracker
from tuning import few_forms, few_schedules

from pocketphi.compiler.cli import main
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.graph.errors import InputError
from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.isa import ISAS
from pocketphi.targets.tvm_arm.kernels.matmul import Form, Schedule
from pocketphi.targets.tvm_arm.platform import Platform
from pocketphi.targets.tvm_arm.tune import remote
from pocketphi.targets.tvm_arm.tune.remote import RemoteMeasurer, connect, parse_address
from pocketphi.targets.tvm_arm.tune.spread import BoardLost

FORM = Form(Interleaved(64, 64, 32, 4, False), single=True)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """With few forms and schedules to time, and where their times are kept."""
    few_schedules(monkeypatch)
    out = tmp_path / "pi"
    options = compile_options(few_forms(monkeypatch), out, ("tvm-arm",), recipe="rtn", cpu="cortex-a76", verify="never")
    compile_model(options)
    return out, tmp_path / "pi.tuning.jsonl"


def tries() -> Iterator[None]:
    """Until the board has come up, which takes a second, or a minute on a busy machine."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        yield
        time.sleep(0.5)
    raise AssertionError("the board did not come up")


def connected(port: int, key: str) -> RemoteMeasurer:
    """Once the board has come up."""
    for _ in tries():
        with contextlib.suppress(InputError):
            platform = Platform("linux", ISAS["dotprod"])
            (session,) = connect(("127.0.0.1", port), key)
            return RemoteMeasurer(platform, session, key, rounds=2, cold_bytes=4096, prompt=5)
    raise AssertionError


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
            connect(("127.0.0.1", port), "phone")
        kill(process)
        with pytest.raises(
            BoardLost, match=r"the board 'pi' went away \(.*what was timed is kept: run the command again"
        ):
            measurer.times(FORM, [Schedule(2)])


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_a_board_that_goes_away_leaves_what_was_timed(
    bundle: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The board loses power before the second form; the same command goes on from there with another one."""
    out, file = bundle
    asked = []
    real = remote.RemoteMeasurer.times

    def times(self: Any, form: Any, schedules: Any) -> Any:
        asked.append(form.key)
        if len(asked) == 2:
            kill(process)
        return real(self, form, schedules)

    monkeypatch.setattr(remote.RemoteMeasurer, "times", times)
    with tracker() as port:
        command = ["tune", str(out), "--rpc", f"127.0.0.1:{port}", "--key", "pi", "--rounds", "1", "--json"]
        with board(port, "pi") as process:
            assert _once_up(command, capsys) == 2
        assert {json.loads(line)["form"] for line in file.read_text().splitlines()} == {asked[0]}
        with board(port, "pi"):
            assert _once_up(command, capsys) == 0
    assert asked[2] == asked[1]
    assert asked.count(asked[0]) == 1
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["form"]: (row["cpu"], row["how"]) for row in rows} == dict.fromkeys(
        asked, ("cortex-a76", "rpc pi, 1 thread")
    )


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_boards_of_one_key_share_the_work_and_one_may_go_away(
    bundle: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are asked at the same time; then one of them loses power, and the other does all that is left."""
    out, file = bundle
    asked = []
    both, lost = threading.Barrier(2, timeout=240), []
    real = remote.RemoteMeasurer.times

    def times(self: Any, form: Any, schedules: Any) -> Any:
        asked.append(form.key)
        if len(asked) <= 2 and both.wait() == 0:
            kill(processes[0])
        try:
            return real(self, form, schedules)
        except BoardLost:
            lost.append(form.key)
            raise

    monkeypatch.setattr(remote.RemoteMeasurer, "times", times)
    with tracker() as port, board(port, "pi") as first, board(port, "pi") as second:
        processes = [first, second]
        _wait_for(port, "pi", 2)
        assert main(["tune", str(out), "--rpc", f"127.0.0.1:{port}", "--key", "pi", "--rounds", "1"]) == 0
    captured = capsys.readouterr()
    assert "tune, rpc pi, 1 thread on 2 boards" in captured.err
    assert "the board 'pi' went away (" in captured.err
    assert "; 1 of the boards are left, and one of these times its schedules" in captured.err
    assert len(lost) == 1
    assert sorted(asked) == sorted([*set(asked), *lost])  # each once, but for what was lost
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["form"] for row in rows} == set(asked)
    assert {row["how"] for row in rows} == {"rpc pi, 1 thread"}


def _wait_for(port: int, key: str, count: int) -> None:
    from tvm import rpc

    for _ in tries():
        with contextlib.suppress(OSError, RuntimeError):
            held = rpc.connect_tracker("127.0.0.1", port).summary()["queue_info"]
            if held.get(key, {}).get("free") == count:
                return


def _once_up(command: list[str], capsys: pytest.CaptureFixture[str]) -> int:
    """The exit code of a command, once its board has registered; a lost one is named in one line."""
    for _ in tries():
        code = main(command)
        said = capsys.readouterr().err
        if "no board 'pi'" not in said and "no RPC tracker" not in said:
            assert code == 0 or said.startswith("pocketphi: the board 'pi' went away")
            assert said.count("\n") <= 1
            return code
    raise AssertionError


def test_no_tracker() -> None:
    with pytest.raises(
        InputError, match=r"no RPC tracker at 127\.0\.0\.1:1: start one with python -m tvm\.exec\.rpc_tracker"
    ):
        connect(("127.0.0.1", 1), "x")


@pytest.mark.parametrize("text", ["localhost", ":9190", "host:", "host:x", "host:70000"])
def test_addresses(text: str) -> None:
    with pytest.raises(InputError, match=rf"--rpc {text}: expected HOST:PORT of a tracker"):
        parse_address(text)
    assert parse_address("::1:9190") == ("::1", 9190)
