"""Feed a reader spoiled files, in forked processes: a crash or a hang costs one of them, and everything is imported once.

The rules: nothing but our own errors, each in one line, or a result; nothing over `LIMIT` seconds of the processor; nothing
that takes ten times its file in memory, beyond a constant.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

from pocketphi.graph.errors import CompilerBug, PocketphiError

LIMIT = 5.0
FACTOR, CONSTANT = 10, 64 << 20
"""Bytes of memory for each of the file, and those that any reading may take."""
_BATCH = 400
_STUCK = 120.0
"""Seconds after which a process that says nothing is ended."""
_LIBC = ctypes.CDLL(None)
_ROOM = 3 << 30
"""Bytes of addresses that a reading may take beyond those of its process: what asks for more is told so at once."""

Files = dict[str, bytes]


@dataclass(frozen=True)
class Reader:
    """seed: makes a folder with good files; mutate: its files → those to replace; read: what is tried on the folder.

    required: whether the suite asks that it keeps the rules; needs: packages that it takes
    """

    name: str
    seed: Callable[[], Path]
    mutate: Callable[[Random, Files], Files]
    read: Callable[[Path], object]
    required: bool = True
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """What one mutation did against the rules.

    kind: `exception`, `slow`, `memory`, `lines`, `crash` or `stuck`; where: the innermost places of ours
    """

    number: int
    kind: str
    where: str
    detail: str = ""


@dataclass
class Result:
    """slowest: seconds of the processor; memory: the most bytes taken over those of the file."""

    reader: str
    mutations: int = 0
    refused: int = 0
    accepted: int = 0
    slowest: float = 0.0
    memory: int = 0
    found: list[Found] = field(default_factory=list)

    def row(self) -> str:
        """A line of the table in docs/reliability.md."""
        cells = (self.reader, f"{self.mutations:,}", f"{self.refused:,}", f"{self.accepted:,}", str(len(self.found)))
        return "| " + " | ".join([*cells, f"{self.slowest:.2f}", f"{self.memory / 1e6:.1f}"]) + " |"


HEAD = (
    "| reader | mutations | refused | accepted | against the rules | slowest, s | most memory over the file, MB |\n"
    + "| --- " * 7
    + "|"
)


class _TooSlow(BaseException):
    pass


def fuzz(
    reader: Reader,
    mutations: int,
    seed: int = 0,
    first: int = 0,
    keep: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Result:
    """Try `mutations` mutations, numbered from `first`.

    keep: where the files of each new kind of finding are put; tell: gets a line of progress after each process
    """
    base = {str(p.relative_to(reader.seed())): p.read_bytes() for p in sorted(reader.seed().rglob("*")) if p.is_file()}
    result = Result(reader.name)
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{reader.name}-") as name:
        work = Path(name)
        _lay(work / "files", base)
        with _silence():  # what is good is read; and imports are done once
            reader.read(work / "files")
        gc.collect()
        number, end = first, first + mutations
        while number < end:
            number = _batch(reader, base, work, seed, number, min(number + _BATCH, end), result)
            tell(f"{reader.name}: {number - first:,} of {mutations:,}, {len(result.found)} found")
    if keep:
        _keep(reader, base, seed, result, keep)
    return result


def mutated(reader: Reader, base: Files, seed: int, number: int) -> Files:
    """The files that one mutation replaces."""
    return reader.mutate(Random(f"{reader.name} {seed} {number}"), base)


def _batch(reader: Reader, base: Files, work: Path, seed: int, start: int, stop: int, result: Result) -> int:
    """Run mutations in one process; returns the number of the next one to try."""
    log = work / "log"
    log.write_bytes(b"")
    pid = os.fork()
    if not pid:
        code = 70
        try:
            _work(reader, base, work, seed, range(start, stop), log)
            code = 0
        finally:
            os._exit(code)
    status = _wait(pid, log)
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    for line in (line for line in lines if line["done"]):
        result.mutations += 1
        result.refused += line["refused"]
        result.accepted += not line["refused"] and not line["found"]
        result.slowest = max(result.slowest, line["seconds"])
        result.memory = max(result.memory, line["memory"])
        result.found += [Found(line["number"], *found) for found in line["found"]]
    if status == 0:
        return stop
    last = lines[-1]["number"] if lines else start
    kind = "stuck" if status is None else "crash"
    result.mutations += 1
    result.found.append(Found(last, kind, f"wait status {status}"))
    _lay(work / "files", base)
    return int(last) + 1


def _wait(pid: int, log: Path) -> int | None:
    """The process's status; None where it had to be ended because it said nothing any more."""
    said, since = -1, time.monotonic()
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        size = log.stat().st_size
        if size != said:
            said, since = size, time.monotonic()
        elif time.monotonic() - since > _STUCK:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.02)


def _work(reader: Reader, base: Files, work: Path, seed: int, numbers: range, log: Path) -> None:
    """The child: one line in the log before, and one after each mutation."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _ROOM, size + _ROOM))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, _stop)
    with log.open("a", encoding="utf-8") as said:
        for number in numbers:
            said.write(json.dumps({"number": number, "done": False}) + "\n")
            said.flush()
            changed = mutated(reader, base, seed, number)
            _lay(work / "files", changed)
            row = _one(reader, work / "files", sum(map(len, changed.values())))
            said.write(json.dumps({"number": number, "done": True, **row}) + "\n")
            said.flush()
            _restore(work / "files", base, changed)


def _one(reader: Reader, folder: Path, size: int) -> dict[str, object]:
    found: list[tuple[str, str, str]] = []
    refused = False
    _LIBC.malloc_trim(0)  # what an earlier reading has freed could be taken again unseen
    _reset_peak()
    before, start = _peak(), time.process_time()
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        with _silence():
            reader.read(folder)
    except _TooSlow as error:
        found.append(("slow", _end(error), f"over {LIMIT:.0f} s"))
    except CompilerBug as error:
        found.append(("exception", _end(error), str(error)[:300]))
    except PocketphiError as error:
        refused = True
        if len(str(error).splitlines()) != 1 or len(str(error)) > 1500:
            found.append(("lines", _end(error), f"{len(str(error))} characters: {str(error)[:300]}"))
    except MemoryError as error:
        found.append(("memory", _end(error), f"over {_ROOM:,} bytes"))
    except BaseException as error:
        found.append(("exception", _end(error), str(error)[:300]))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    memory = max(0, _peak() - before - size)
    if memory > FACTOR * size + CONSTANT:
        found.append(("memory", reader.name, f"{memory:,} bytes for a file of {size:,}"))
    return {"refused": refused, "found": found, "seconds": time.process_time() - start, "memory": memory}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _stop(number: int, frame: FrameType | None) -> None:
    raise _TooSlow


def _end(error: BaseException) -> str:
    """The kind of an exception, and the innermost places of ours that it came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    ours = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if Path(f.filename).parent != Path(__file__).parent]
    return " ".join([type(error).__name__, *reversed(ours[-2:])])


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """The largest resident memory since `_reset_peak`, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _lay(folder: Path, files: Files) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _restore(folder: Path, base: Files, changed: Files) -> None:
    for name in changed:
        if name in base:
            (folder / name).write_bytes(base[name])
        else:
            (folder / name).unlink()


def kinds(result: Result) -> Iterator[tuple[Found, int]]:
    """The first finding of each kind and place, and how many there are."""
    counts = Counter((found.kind, found.where) for found in result.found)
    for (kind, where), count in counts.most_common():
        yield next(found for found in result.found if (found.kind, found.where) == (kind, where)), count


def _keep(reader: Reader, base: Files, seed: int, result: Result, keep: Path) -> None:
    for found, _ in kinds(result):
        folder = keep / f"{reader.name}-{seed}-{found.number}"
        shutil.rmtree(folder, ignore_errors=True)
        _lay(folder, mutated(reader, base, seed, found.number))
