"""Our int4 kernels for this machine next to ONNX Runtime's and llama.cpp's, at Phi-3-mini's widths, in turn.

Decode is a product with one row, prefill with 64 and 512. See README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from pathlib import Path

import preflight
from common import Bar, StepError, judge, print_table
from matrices import Matrix
from products import CHECKED, LLAMA, ORT, OURS, Contestant
from workers import Worker, build_native

WIDTHS = [(9216, 3072), (3072, 3072), (16384, 3072), (3072, 8192)]
"""Rows and columns: packed Q, K, V; the attention's output; packed gate and up; down."""
GEMV_BAR, READ_BAR, GEMM_BAR = 1.3, 0.9, 1.5


@dataclasses.dataclass(frozen=True)
class Case:
    """One matrix with one number of rows and threads. seconds: of a product, by who made it, round by round; rates: bytes
    a second that this machine reads, round by round; bytes: of the matrix."""

    matrix: str
    bytes: int
    rows: int
    threads: int
    seconds: dict[str, list[float]]
    rates: list[float]

    def ratios(self) -> dict[str, float]:
        """How often as fast as each peer we are: medians of the rounds' own ratios."""
        ours = self.seconds[OURS]
        pairs = {name: zip(taken, ours) for name, taken in self.seconds.items() if name != OURS}
        return {name: statistics.median(theirs / mine for theirs, mine in pair) for name, pair in pairs.items()}

    def read(self) -> float:
        """The part of the memory's bandwidth at which we read weights."""
        return statistics.median(self.bytes / s / rate for s, rate in zip(self.seconds[OURS], self.rates))

    def bar(self) -> Bar:
        """Over the faster peer; for one row, or the part of the bandwidth, whichever is further."""
        peer, ratio = min(self.ratios().items(), key=lambda item: item[1])
        title = (
            f"{self.matrix}, {self.rows} row{'s' * (self.rows > 1)}, {self.threads} thread{'s' * (self.threads > 1)}"
        )
        over = Bar(f"{title}: over {peer}", ratio, GEMV_BAR if self.rows == 1 else GEMM_BAR, "×", at_least=True)
        if not self.rates:
            return over
        read = Bar(f"{title}: of the read bandwidth", self.read(), READ_BAR, at_least=True)
        return max(over, read, key=lambda bar: bar.value / bar.limit)

    def row(self) -> list[str]:
        medians = {name: statistics.median(taken) for name, taken in self.seconds.items()}
        times = [f"{1e3 * medians[name]:.3f}" if name in medians else "–" for name in (OURS, ORT, LLAMA)]
        ratios = self.ratios()
        over = [f"{ratios[name]:.2f}" if name in ratios else "–" for name in (ORT, LLAMA)]
        return [self.matrix, str(self.rows), str(self.threads), *times, *over, *self._reading(medians[OURS]), ""]

    def _reading(self, seconds: float) -> list[str]:
        if not self.rates:
            return ["–"] * 3
        rates = self.bytes / seconds, statistics.median(self.rates)
        return [*(f"{rate / 1e9:.1f}" for rate in rates), f"{self.read():.2f}"]


def measure(
    contestants: list[Contestant], memory: Worker, matrix: Matrix, rows: int, threads: int, a: argparse.Namespace
) -> Case:
    """All with one matrix. The order turns round with every round."""
    print(f"{matrix.name}, {rows} rows, {threads} threads …", file=sys.stderr)
    for each in contestants:
        error = each.load(matrix, rows)
        if not error < CHECKED:
            raise StepError(
                f"{each.name}: {matrix.name}, {rows} rows: off by {error:.1%}; expected {CHECKED:.0%} at most"
            )
        each.time(0)  # warms up
    seconds: dict[str, list[float]] = {each.name: [] for each in contestants}
    rates = []
    for number in range(a.rounds):
        for each in contestants[:: 1 if number % 2 == 0 else -1]:
            seconds[each.name].append(each.time(a.seconds))
        if rows == 1:
            rates.append(float(memory.ask("read", threads, a.seconds)["rate"]))
    return Case(matrix.name, matrix.bytes, rows, threads, seconds, rates)


def cases(a: argparse.Namespace) -> list[Case]:
    """All of them, with one set of workers for each number of threads."""
    names = [OURS, ORT, *([LLAMA] if a.llama_cpp else [])]
    memory = Worker([str(build_native("read_bandwidth.cc", a.work, "c++", "-march=native", "-pthread"))])
    found: list[Case] = []
    for threads in a.threads:
        contestants: list[Contestant] = []
        try:
            contestants += [Contestant(name, threads, a.work, a.llama_cpp) for name in names]
            for shape in a.widths:
                matrix = Matrix(*shape)
                found += [measure(contestants, memory, matrix, rows, threads, a) for rows in a.rows]
        finally:
            for each in contestants:
                each.worker.close()
    memory.close()
    return sorted(found, key=lambda case: (case.rows, case.threads))


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--llama-cpp", type=Path, metavar="DIR", help="a built llama.cpp source tree (default: left out)")
    p.add_argument("--work", type=Path, default=Path("build/tvm_kernels"), help="for all files (default %(default)s)")
    p.add_argument("--rows", type=int, nargs="+", default=[1, 64, 512], help="of activations (default 1 64 512)")
    p.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default 1 2")
    p.add_argument("--rounds", type=int, default=7, help="default %(default)s")
    p.add_argument("--seconds", type=float, default=0.1, help="of one turn, at least (default %(default)s)")
    p.add_argument("--widths", type=_shape, nargs="+", default=WIDTHS, metavar="NxK", help="default: Phi-3-mini's")
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return p.parse_args()


def _shape(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    return int(rows), int(columns)


def main() -> int:
    a = arguments()
    preflight.require(__file__)
    a.work = a.work.resolve()
    a.work.mkdir(parents=True, exist_ok=True)
    try:
        found = cases(a)
    except StepError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    peers = ["ms ours", "ms ORT", "ms llama.cpp", "× ORT", "× llama.cpp"]
    head = ["matrix", "rows", "threads", *peers, "GB/s ours", "GB/s memory", "part", ""]
    print_table(f"int4 products, block 32, medians of {a.rounds} rounds", head, [case.row() for case in found])
    if a.llama_cpp is None:
        print("  llama.cpp: not measured: give --llama-cpp DIR, a built llama.cpp source tree")
    return judge([case.bar() for case in found], a.json, {"cases": [dataclasses.asdict(case) for case in found]})


if __name__ == "__main__":
    sys.exit(main())
