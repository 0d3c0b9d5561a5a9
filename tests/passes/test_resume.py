"""A calibration that is stopped goes on where it was, and gives the same bytes."""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pocketphi.compiler.pipeline import fusions, run_passes
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.program import Program
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.graph.sealed import read_sealed, write_sealed
from pocketphi.graph.trace import trace
from pocketphi.passes import calibrate
from pocketphi.passes.calibrate import quantize_calibrated
from pocketphi.passes.policy import Policy
from pocketphi.passes.quantizers import ScaleSearch
from pocketphi.passes.resume import cuts
from pocketphi.passes.weight_cache import WeightCache

TOKENS = torch.arange(128).view(2, 64) % 251
WEIGHTS = 4 * 3 + 2


@pytest.fixture(scope="module", autouse=True)
def sequences_apart() -> Iterator[None]:
    """Each of the two runs from matrix to matrix alone, as those of a long text do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "AT_ONCE", 64)
        yield


class Stopped(BaseException):
    """Nothing catches it, as nothing catches a kill."""


@pytest.fixture(scope="module")
def fused() -> Program:
    program = trace(HashedCheckpoint(RandomWeights("random:tiny")))
    run_passes(program, fusions(None))
    return program


def run(program: Program, folder: Path, stop: int | None = None, tokens: torch.Tensor = TOKENS) -> tuple[int, int]:
    """Quantize into a folder, up to the weight of that number. Returns (found, computed)."""
    cache, done = WeightCache(folder, HashedCheckpoint(RandomWeights("random:tiny"))), iter(range(1, WEIGHTS + 1))

    def progress() -> None:
        if next(done) == stop:
            raise Stopped

    quantize_calibrated(program, tokens, Policy.of(ScaleSearch(32)), cache, progress)
    return cache.found, cache.computed


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def stream_of(folder: Path) -> Path:
    (path,) = folder.glob("*.stream")
    return path


@pytest.fixture(scope="module")
def whole(fused: Program, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole")
    assert run(fused, folder) == (0, WEIGHTS)
    found = digests(folder)
    assert len(found) == WEIGHTS + 1  # and the run's own file: nothing is left of the stream
    return found


@pytest.mark.parametrize("stop", range(1, WEIGHTS + 1))
def test_stopped_after_any_weight(
    fused: Program,
    whole: dict[str, str],
    tmp_path: Path,
    stop: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(Stopped):
        run(fused, tmp_path, stop)
    given: list[int] = []
    stepwise = calibrate.stepwise
    monkeypatch.setattr(calibrate, "stepwise", lambda *args: given.append(len(args[-1])) or stepwise(*args))
    assert run(fused, tmp_path) == (stop, WEIGHTS - stop)
    assert digests(tmp_path) == whole
    # each sequence the stream, and what the layer before it adds: from the first output projection on
    assert given == 2 * [2 if stop > 2 else 0]


def test_a_layer_has_two_places_to_go_on_from(fused: Program) -> None:
    head = fused.outputs["logits"].args[0]
    assert isinstance(head, torch.fx.Node)
    assert len(cuts(head)) == 2 * fused.config.layers
    assert all(len(args) == 2 for args in cuts(head).values())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def forget_a_weight(path: Path) -> None:
    """The first one: all weights behind the place where the run would go on were made with it."""
    min(path.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns).unlink()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "a weight is gone": forget_a_weight,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_not_gone_on_from(
    fused: Program, whole: dict[str, str], tmp_path: Path, damage: str
) -> None:
    with pytest.raises(Stopped):
        run(fused, tmp_path, 7)
    DAMAGES[damage](stream_of(tmp_path))
    gone = damage == "a weight is gone"
    assert run(fused, tmp_path) == (7 - gone, WEIGHTS - 7 + gone)
    assert digests(tmp_path) == whole


FORGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "a node that is not there": lambda said: said.update(node="nowhere"),
    "no node": lambda said: said.pop("node"),
    "shapes in words": lambda said: said.update(shapes=["wide", "wide"]),
    "another shape": lambda said: said["shapes"][0].append(2),
    "one shape": lambda said: said["shapes"].pop(),
    "a negative shape": lambda said: said.update(shapes=[[-1, -1], [-1, -1]]),
    "numbers for files": lambda said: said["files"].update(dict.fromkeys(said["files"], 3)),
    "no files": lambda said: said.update(files=None),
}


@pytest.mark.parametrize("change", FORGED)
def test_what_is_sealed_and_no_such_file_is_not_gone_on_from(
    fused: Program, whole: dict[str, str], tmp_path: Path, change: str
) -> None:
    with pytest.raises(Stopped):
        run(fused, tmp_path, 7)
    path = stream_of(tmp_path)
    found = read_sealed(path)
    assert found is not None
    said, data = found
    FORGED[change](said)
    write_sealed(path, said, [bytes(data)])
    assert run(fused, tmp_path) == (7, WEIGHTS - 7)  # from the beginning, with the seven in the cache
    assert digests(tmp_path) == whole


def test_the_stream_of_another_run_is_not_gone_on_from(fused: Program, tmp_path: Path) -> None:
    """Of another text, under this one's name."""
    for name, tokens in (("a", TOKENS), ("b", TOKENS.flip(1))):
        with pytest.raises(Stopped):
            run(fused, tmp_path / name, 7, tokens)
    wanted = tmp_path / "c"
    run(fused, wanted)
    stream_of(tmp_path / "b").replace(stream_of(tmp_path / "a"))
    run(fused, tmp_path / "a")
    assert digests(tmp_path / "a") == digests(wanted)


def test_a_run_goes_on_though_others_were_stopped_after_it(
    fused: Program, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped):
        run(fused, tmp_path, 7)
    os.utime(stream_of(tmp_path), (0, 0))
    others = [tmp_path / f"{number}.stream" for number in range(5)]
    for other in others:
        other.write_bytes(b"of another run")
    given: list[int] = []
    stepwise = calibrate.stepwise
    monkeypatch.setattr(calibrate, "stepwise", lambda *args: given.append(len(args[-1])) or stepwise(*args))
    assert run(fused, tmp_path) == (7, WEIGHTS - 7)
    assert given == [2, 2]
    for other in others:
        other.unlink(missing_ok=True)
    assert digests(tmp_path) == whole


def test_only_the_last_runs_that_were_stopped_may_go_on(fused: Program, tmp_path: Path) -> None:
    for day in range(6):
        (tmp_path / f"{5 - day}.stream").write_bytes(b"of an abandoned run")
        os.utime(tmp_path / f"{5 - day}.stream", (day * 86400, day * 86400))
    run(fused, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.stream")) == ["0.stream", "1.stream", "2.stream", "3.stream"]


FORK = multiprocessing.get_context("fork")
_CLONE_NEWNS, _NO_MOUNT = 0x20000, 77


def run_and_die(program: Program, folder: Path, files: int) -> None:
    """In a child: killed when so many files would have their names."""
    write, left = os.replace, iter(range(files - 1, -1, -1))

    def replace(*args: Any) -> None:
        if not next(left):
            os.kill(os.getpid(), signal.SIGKILL)
        write(*args)

    os.replace = replace
    run(program, folder)


def test_killed_while_it_writes(fused: Program, whole: dict[str, str], tmp_path: Path) -> None:
    """Before its ninth file, weights and streams together, has its name."""
    child = FORK.Process(target=run_and_die, args=(fused, tmp_path, 9))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    found, computed = run(fused, tmp_path)
    assert found + computed == WEIGHTS
    assert found >= 5
    assert digests(tmp_path) == whole


def run_read_only(program: Program, folder: Path) -> None:
    """In a child, with a file system of its own: ends with 0 if all was found."""
    commands = (["--make-rprivate", "/"], ["--bind", folder, folder], ["-o", "remount,bind,ro", folder])
    if ctypes.CDLL(None).unshare(_CLONE_NEWNS) or any(subprocess.call(["mount", *command]) for command in commands):
        sys.exit(_NO_MOUNT)
    with pytest.raises(OSError, match="Read-only file system"):
        (folder / "new").touch()
    assert run(program, folder) == (WEIGHTS, 0)


def test_a_cache_that_holds_all_may_be_read_only(fused: Program, tmp_path: Path) -> None:
    """Such a file system refuses to delete even what is not there."""
    assert run(fused, tmp_path) == (0, WEIGHTS)
    child = FORK.Process(target=run_read_only, args=(fused, tmp_path))
    child.start()
    child.join()
    if child.exitcode == _NO_MOUNT:
        pytest.skip("a read-only mount needs root")
    assert child.exitcode == 0
