"""Kill a compile with SIGKILL at random moments, run it again, and look: are the bytes right, and is anything left?

    python tests/faults/kills.py 200 --seed 1          the caches and folders of a compile, without the tracing
    python tests/faults/kills.py 30 --seed 1 --real    whole compiles of random:tiny

A third of the rounds kill the process group; a third the main process only, whose workers must end by themselves; and a third
a container: the first process of a PID namespace (needs root), so that all have the same number 1, on one volume. Half of the
rounds replace a bundle, which must stand there whole at every moment. Prints a JSON object; exits with 1 where a round fails.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from pocketphi.artifacts import stream
from pocketphi.artifacts.bundle import Bundle, write_manifest
from pocketphi.artifacts.folder import new_folder
from pocketphi.artifacts.manifest import FORMAT, Manifest, ModelRecord, RecipeRecord, SourceRecord, TargetRecord
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.lazy_weights import FloatWeight
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.graph.writing import write_whole
from pocketphi.passes.quantize_weights import QuantizedWeight
from pocketphi.passes.quantizers import RoundToNearest
from pocketphi.passes.weight_cache import WeightCache

_CLONE_NEWPID = 0x20000000
HOW = ("group", "main", "container")
Job = Callable[[Path, Path, bool], None]
"""Make a bundle: its place, the cache's, and whether it replaces one."""


def small(out: Path, cache: Path, replace: bool) -> None:
    """What a compile does to the disk: weights into the cache, and through worker processes into a folder."""
    source = HashedCheckpoint(RandomWeights("random:tiny"))
    kept = WeightCache(cache, source)
    weights = {
        name: QuantizedWeight(FloatWeight(source, name), RoundToNearest(32))
        for name, info in source.tensors.items()
        if len(info.shape) == 2
    }
    stored = kept.recall("run", weights)
    if stored is None:
        stored = {name: kept.quantized(weight, None) for name, weight in weights.items()}
        kept.remember("run", stored)
    with new_folder(out, 0, replace=replace) as folder:
        written = stream.write_weights(folder / "data", stored, stream.plan_layout(stored), lambda amount: None)
        write_manifest(folder, _manifest(written.digests))
    write_whole(out.parent / "summary.json", json.dumps(written.digests))


def _manifest(weights: dict[str, str]) -> Manifest:
    """Of a bundle that holds weights alone."""
    return Manifest(
        format=FORMAT,
        pocketphi="0",
        versions={},
        source=SourceRecord("small", "0" * 64),
        recipe=RecipeRecord("rtn", 32, True, None, 4, 4, None, False, 4, None, None),
        model=ModelRecord(0, 0, 0, None, None, 0),
        passes=(),
        operators={},
        targets={"ort-mobile": TargetRecord(operators={}, notes=(), details={}, weights=weights)},
        verification=None,
        files={},
    )


def real(out: Path, cache: Path, replace: bool) -> None:
    compile_model(
        compile_options("random:tiny", out, verify="never", cache=cache, force=replace, calibration_tokens=256)
    )


def start(job: Job, how: str, *arguments: object) -> int:
    """Run a job in a process of its own, in a session of its own. Returns its number here."""
    if how == "container" and ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWPID):
        raise OSError(ctypes.get_errno(), "no PID namespace; containers need root")
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    code = 1
    try:
        job(*arguments)  # type: ignore[arg-type]
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def launch(job: Job, how: str, *arguments: object) -> tuple[int, int]:
    """(a process to wait for, the one to kill). Of a container, the first is beside it: it has made the namespace."""
    if how != "container":
        pid = start(job, how, *arguments)
        return pid, pid
    ours, theirs = os.pipe()
    helper = os.fork()
    if helper == 0:
        inner = start(job, how, *arguments)
        os.write(theirs, inner.to_bytes(4, "little"))
        os._exit(ended(inner))
    inner = int.from_bytes(os.read(ours, 4), "little")
    os.close(ours)
    os.close(theirs)
    return helper, inner


def ended(pid: int) -> int:
    """Wait; 0 for a job that is done, 1 for one that failed, 9 for one that was killed."""
    status = os.waitpid(pid, 0)[1]
    return 9 if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def in_session(leader: int) -> list[int]:
    """Processes that a leader has left."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] not in "ZX":
            found.append(int(name))
    return found


def tree(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rounds(job: Job, count: int, seed: int, work: Path, kinds: tuple[str, ...] = HOW) -> Counter[str]:
    """How often each thing was so; every name that begins with `bad` is a fault."""
    stream._WORTH_A_PROCESS = 0  # worker processes for the smallest file, too
    chance, seen = random.Random(seed), Counter[str]()
    usual = min(_seconds(job, work / name) for name in ("first", "second", "third"))
    wanted = tree(work / "first")
    for number in range(count):
        how, replace = kinds[number % len(kinds)], chance.random() < 0.5
        place = work / f"place {number} [x]"
        out, cache = place / "out", place / "cache"
        place.mkdir()
        if replace:
            shutil.copytree(work / "first", out)
        if chance.random() < 0.5:
            shutil.copytree(work / "first-cache", cache)
        helper, pid = launch(job, how, out, cache, replace)
        time.sleep(chance.uniform(0, usual))
        try:
            (os.killpg if how == "group" else os.kill)(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            seen["too late"] += 1
        seen["killed"] += ended(helper) == 9
        seen[how] += 1
        faults = _after(job, how, out, cache, replace, wanted, pid)
        seen.update(faults)
        if faults:
            print(f"round {number}, {how}: {', '.join(faults)}", file=sys.stderr)  # noqa: T201
        shutil.rmtree(place)
        seen["recovered"] += not faults
    return seen


def _seconds(job: Job, out: Path) -> float:
    """Of a run with an empty cache."""
    begin = time.monotonic()
    assert ended(launch(job, "group", out, out.parent / f"{out.name}-cache", False)[0]) == 0
    return time.monotonic() - begin


def _after(job: Job, how: str, out: Path, cache: Path, replace: bool, wanted: dict[str, str], pid: int) -> list[str]:
    """What is wrong after a kill, and after the next run."""
    faults = []
    if replace and not out.is_dir():
        faults.append("bad: no bundle where there was one")
    if out.is_dir():
        Bundle.open(out)
        if tree(out) != wanted:
            faults.append("bad: another bundle")
    if ended(launch(job, how, out, cache, True)[0]):
        faults.append("bad: the next run failed")
    elif tree(out) != wanted:
        faults.append("bad: the next run made other bytes")
    for _ in range(100):
        if not in_session(pid):
            break
        time.sleep(0.05)
    else:
        faults.append("bad: a process goes on")
    left = {path.name for path in out.parent.iterdir()} - {"out", "cache", "summary.json"}
    left |= {path.name for path in cache.iterdir() if path.suffix not in (".safetensors", ".run")}
    return [*faults, "bad: something is left"] if left else faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.real:  # here, and not in each of the processes that are forked
        import onnx  # noqa: F401

        import pocketphi.targets.ort_mobile.package  # noqa: F401
    kinds = HOW if os.geteuid() == 0 else HOW[:2]
    with tempfile.TemporaryDirectory() as folder:
        seen = rounds(real if arguments.real else small, arguments.count, arguments.seed, Path(folder), kinds)
    print(json.dumps({"rounds": arguments.count, **seen}))  # noqa: T201
    return any(name.startswith("bad") for name in seen)


if __name__ == "__main__":
    sys.exit(main())
