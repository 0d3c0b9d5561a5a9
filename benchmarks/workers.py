"""Processes that hold something loaded and answer requests: a line of words in, a line of JSON out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import StepError


class Worker:
    """A process that was started, and what it said at its start: `ready`."""

    def __init__(self, command: Sequence[str], env: dict[str, str] | None = None) -> None:
        variables = {**os.environ, **(env or {})}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
        )
        self._name = Path(command[0]).name
        self.ready = self._answer()

    def ask(self, verb: str, *words: object) -> dict[str, Any]:
        """Raises StepError with the worker's own words where it answers `error`, or ends."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(" ".join(map(str, (verb, *words))) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it ended: what became of it is said below
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise StepError(f"{self._name} ended with exit code {self._process.wait()}; what it said is above")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise StepError(f"{self._name}: {answer['error']}")
        return answer


def serve(ready: dict[str, Any], answer: Callable[[str, list[str]], dict[str, Any]]) -> None:
    """A worker's side, in Python: `answer` takes a verb and the words after it."""
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        verb, *words = line.split()
        print(json.dumps(answer(verb, words)), flush=True)


def memory_of(process: int | str, field: str) -> int:
    """Bytes of a process's memory: `VmRSS`, resident now; `VmHWM`, resident at most (Linux's `ru_maxrss` begins with what
    the parent had when it forked)."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise StepError(f"/proc/{process}/status has no {field}")


def build_native(source: str, work: Path, compiler: str, *flags: str) -> Path:
    """Compile a C++ file of `native/`, where it or its flags changed since the last time. Raises StepError."""
    program = work / Path(source).stem
    path = Path(__file__).with_name("native") / source
    stamp, wanted = program.with_suffix(".made"), f"{compiler} {' '.join(flags)}\n{path.read_text('utf-8')}"
    if program.exists() and stamp.exists() and stamp.read_text("utf-8") == wanted:
        return program
    work.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [compiler, "-std=c++17", "-O3", str(path), *flags, "-o", str(program)], capture_output=True, text=True
    )
    if done.returncode:
        raise StepError(f"{compiler} {source}: {(done.stderr.strip().splitlines() or ['failed'])[0]}")
    stamp.write_text(wanted, "utf-8")
    return program
