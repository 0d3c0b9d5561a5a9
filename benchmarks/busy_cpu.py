"""What a busy CPU costs: a TVM bundle beside two spinning processes for each core, and alone, in turns. See README.md.

An ideal program, which waits for nobody, takes its turns as well: it shows what the scheduler leaves to a program. The ratio
counts: what else runs on the machine slows both.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import preflight
from common import print_table

from pocketphi.targets.tvm_arm.build_runtime import build_runtime
from pocketphi.targets.tvm_arm.process import RuntimeProcess
from pocketphi.targets.tvm_arm.toolchain import find_toolchain, host_arch

MOST = 3.0
"""Times of the idle time, at most."""
PROMPT, ANSWER = 20, 5
IDEAL = "ideal program"
PRODUCTS = 400
"""Of 300 × 300 matrices in float32, which each process of the ideal program computes."""

_WORK = f"""
import numpy as np
a = np.full((300, 300), 1 / 300, np.float32)
a @ a
print(flush=True)
input()
for _ in range({PRODUCTS}):
    a @ a
print(flush=True)
"""


@contextmanager
def spinning(count: int) -> Iterator[None]:
    """So many processes that do nothing but use the CPU."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.3)
        yield
    finally:
        for hog in hogs:
            hog.kill()
        for hog in hogs:
            hog.wait()


def seconds(runner: Path, bundle: Path, threads: int, rounds: int) -> tuple[float, float]:
    """Of `rounds` prompts, each with a short answer, and of closing."""
    with RuntimeProcess([str(runner)], bundle, threads=threads, max_tokens=PROMPT + ANSWER) as process:
        prompt = [(3 + 7 * i) % process.vocab for i in range(PROMPT)]
        begin = time.perf_counter()
        for _ in range(rounds):
            process.reset()
            process.prefill(prompt)
            for token in range(ANSWER):
                process.decode(token)
        ran = time.perf_counter()
        process.close()
        return ran - begin, time.perf_counter() - ran


def ideal_seconds(processes: int) -> tuple[float, float]:
    """Of as many processes with one thread each, which compute and wait for nobody; they have nothing to close."""
    environment = {**os.environ, **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}}
    command, pipe = [sys.executable, "-c", _WORK], subprocess.PIPE
    started = [subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) for _ in range(processes)]
    try:
        _each_says(started)  # numpy is there
        begin = time.perf_counter()
        for one in started:
            assert one.stdin
            one.stdin.write(b"\n")
            one.stdin.flush()
        _each_says(started)
        return time.perf_counter() - begin, 0.0
    finally:
        for one in started:
            one.kill()
            one.communicate()


def _each_says(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait until each has written a line."""
    for one in processes:
        assert one.stdout
        if not one.stdout.readline():
            raise RuntimeError("a process of the ideal program has ended")


@dataclass(frozen=True)
class Medians:
    """Seconds of the calls and of closing, alone and beside the spinning processes."""

    idle: float
    busy: float
    close_idle: float
    close_busy: float


def measured(programs: Mapping[str, Callable[[], tuple[float, float]]], repeat: int) -> dict[str, Medians]:
    """Of `repeat` measurements of each program, by name, which take turns."""
    taken: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    cores = len(os.sched_getaffinity(0))
    for _ in range(repeat):
        for busy in (False, True):
            with spinning(2 * cores if busy else 0):
                for name, run in programs.items():
                    taken.setdefault((name, busy), []).append(run())

    def median(name: str, busy: bool, which: int) -> float:
        return statistics.median(times[which] for times in taken[name, busy])

    return {
        n: Medians(median(n, False, 0), median(n, True, 0), median(n, False, 1), median(n, True, 1)) for n in programs
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="a tvm-arm bundle for this host")
    parser.add_argument("--runner", type=Path, action="append", help="another build of pocketphi-runner, to compare")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    preflight.require(__file__)
    ours = build_runtime(find_toolchain("linux", host_arch())).runner
    programs = {
        str(runner): functools.partial(seconds, runner, args.bundle, args.threads, args.rounds)
        for runner in (ours, *(args.runner or []))
    }
    programs[IDEAL] = functools.partial(ideal_seconds, args.threads)
    found = measured(programs, args.repeat)
    rows = [
        [name, *(f"{s:.3f}" for s in (m.idle, m.busy, m.close_idle, m.close_busy)), f"{m.busy / m.idle:.2f}"]
        for name, m in found.items()
    ]
    title = f"{args.bundle}, {args.threads} threads, {args.rounds} rounds: seconds, medians of {args.repeat}"
    print_table(title, ["program", "alone", "busy", "close", "close, busy", "busy / alone"], rows)
    ratio = found[str(ours)].busy / found[str(ours)].idle
    print(f"{ratio:.2f} times the idle time, at most {MOST}: {'ok' if ratio <= MOST else 'MISSED'}")
    return 0 if ratio <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
