"""in_processes: results, errors and the end of workers; in_threads gives the same."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pocketphi.graph.errors import InputError
from pocketphi.graph.processes import CAN_FORK, apart, beside, in_processes
from pocketphi.graph.threads import in_threads

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="forked workers are for Linux")
ITEMS = [f"item {i}" for i in range(9)]


def nothing(amount: int) -> None:
    pass


@pytest.mark.parametrize("spread", [in_processes, in_threads])
def test_results_and_progress(spread: Callable[..., dict[str, str]]) -> None:
    amounts: list[int] = []

    def job(item: str, progress: Callable[[int], None]) -> str:
        progress(2)
        progress(3)
        return item.upper()

    assert spread(ITEMS, job, amounts.append) == {item: item.upper() for item in ITEMS}
    assert sum(amounts) == 5 * len(ITEMS)
    assert spread([], job, amounts.append) == {}


@pytest.mark.parametrize("spread", [in_processes, in_threads])
def test_each_item_is_told_of_when_its_result_is_there(spread: Callable[..., dict[str, str]]) -> None:
    told: list[str] = []

    def job(item: str, progress: Callable[[int], None]) -> str:
        return item

    spread(ITEMS, job, nothing, told.append)
    assert sorted(told) == ITEMS


def test_a_head_start_ends_with_the_body(tmp_path: Path) -> None:
    """What is unfinished then is dropped: the second file is never written."""
    first, second = tmp_path / "first", tmp_path / "second"

    def job() -> None:
        first.touch()
        time.sleep(60)
        second.touch()

    before = set(multiprocessing.active_children())
    with beside(job):
        (process,) = set(multiprocessing.active_children()) - before
        while not first.exists():
            time.sleep(0.01)
    assert process.exitcode == -signal.SIGKILL
    assert not second.exists()


def test_an_error_of_a_head_start_is_nobodys(capfd: pytest.CaptureFixture[str]) -> None:
    def job() -> None:
        raise InputError("odd")

    before = set(multiprocessing.active_children())
    with beside(job):
        for process in set(multiprocessing.active_children()) - before:  # it may have ended already
            process.join()
            assert process.exitcode == 0
    assert capfd.readouterr() == ("", "")


def test_no_head_start_on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    before = set(multiprocessing.active_children())
    with beside(lambda: None):
        assert set(multiprocessing.active_children()) <= before


def test_jobs_run_on_one_thread_each_and_in_two_other_processes() -> None:
    """The first two jobs wait for each other: each has a process of its own."""
    both = multiprocessing.get_context("fork").Barrier(2)

    def job(item: str, progress: Callable[[int], None]) -> tuple[int, int]:
        if item in ITEMS[:2]:
            both.wait()
        return os.getpid(), torch.get_num_threads()

    found = in_processes(ITEMS, job, nothing)
    assert len({pid for pid, _ in found.values()} - {os.getpid()}) == 2
    assert {threads for _, threads in found.values()} == {1}


@pytest.mark.parametrize("spread", [in_processes, in_threads])
def test_an_error_of_a_job_is_raised(spread: Callable[..., dict[str, str]]) -> None:
    def job(item: str, progress: Callable[[int], None]) -> str:
        if item == "item 5":
            raise InputError(f"{item}: odd")
        return item

    with pytest.raises(InputError, match=r"^item 5: odd$"):
        spread(ITEMS, job, nothing)


def test_an_error_in_progress_ends_the_workers() -> None:
    def stop(amount: int) -> None:
        raise KeyboardInterrupt

    def job(item: str, progress: Callable[[int], None]) -> int:
        progress(1)
        time.sleep(0.3)
        progress(os.getpid())
        return 0

    with pytest.raises(KeyboardInterrupt):
        in_processes(ITEMS, job, stop)


def test_a_killed_worker_is_an_error() -> None:
    def job(item: str, progress: Callable[[int], None]) -> None:
        if item == "item 3":
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(
        InputError, match=r"^a worker process was ended by the system \(exit code -9\): is there enough"
    ):
        in_processes(ITEMS, job, nothing)


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """A killed compile leaves no process behind that goes on writing, even where it would never report again."""
    code = f"""
import os, signal
from pocketphi.graph.processes import in_processes

def job(item, progress):
    open({str(tmp_path)!r} + "/" + str(os.getpid()), "w").close()
    while True:
        signal.pause()

in_processes(["a", "b"], job, lambda amount: None)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while len(list(tmp_path.iterdir())) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    children = [int(path.name) for path in tmp_path.iterdir()]
    parent.kill()
    parent.wait()
    while any(map(is_running, children)):  # for ever, if they did not end
        time.sleep(0.05)


@pytest.mark.skipif(not CAN_FORK, reason="nothing is forked")
def test_a_worker_does_not_collect_what_its_parent_has_dropped(tmp_path: Path) -> None:
    """What lies in a circle is freed by the next collection, wherever that is: an onnxruntime session never ends in a child."""

    class Dropped:
        def __del__(self) -> None:
            (tmp_path / str(os.getpid())).touch()

    def job() -> int:
        return gc.collect()

    gc.collect()
    gc.disable()
    try:
        one = Dropped()
        one.itself = one  # type: ignore[attr-defined]
        del one
        apart(job)
        assert list(tmp_path.iterdir()) == []
        gc.collect()
        assert [path.name for path in tmp_path.iterdir()] == [str(os.getpid())]
    finally:
        gc.enable()


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
