"""What a busy CPU costs: a TVM bundle beside two spinning processes for each core, and alone, in turns. See README.md.

The ratio counts: what else runs on the machine slows both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True)
class Medians:
    """Seconds of the calls and of closing, alone and beside the spinning processes."""

    idle: float
    busy: float
    close_idle: float
    close_busy: float


def measured(runners: Sequence[Path], bundle: Path, threads: int, rounds: int, repeat: int) -> dict[Path, Medians]:
    """Of `repeat` measurements of each runner, which take turns."""
    taken: dict[tuple[Path, bool], list[tuple[float, float]]] = {}
    cores = len(os.sched_getaffinity(0))
    for _ in range(repeat):
        for busy in (False, True):
            with spinning(2 * cores if busy else 0):
                for runner in runners:
                    taken.setdefault((runner, busy), []).append(seconds(runner, bundle, threads, rounds))

    def median(runner: Path, busy: bool, which: int) -> float:
        return statistics.median(times[which] for times in taken[runner, busy])

    return {
        r: Medians(median(r, False, 0), median(r, True, 0), median(r, False, 1), median(r, True, 1)) for r in runners
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
    found = measured([ours, *(args.runner or [])], args.bundle, args.threads, args.rounds, args.repeat)
    rows = [
        [str(path), *(f"{s:.3f}" for s in (m.idle, m.busy, m.close_idle, m.close_busy)), f"{m.busy / m.idle:.2f}"]
        for path, m in found.items()
    ]
    title = f"{args.bundle}, {args.threads} threads, {args.rounds} rounds: seconds, medians of {args.repeat}"
    print_table(title, ["runner", "alone", "busy", "close", "close, busy", "busy / alone"], rows)
    ratio = found[ours].busy / found[ours].idle
    print(f"{ratio:.2f} times the idle time, at most {MOST}: {'ok' if ratio <= MOST else 'MISSED'}")
    return 0 if ratio <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
