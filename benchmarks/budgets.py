"""How much of a budget a bundle takes: ten budgets on each target, from the smallest that is possible to twice that. See
README.md.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import preflight
from common import POCKETPHI, Bar, StepError, judge, print_table, run, size_of
from quality import TARGETS

_COUNT = 10
_WITHIN = 0.01


@dataclass(frozen=True)
class Row:
    """budget, bytes: of the whole bundle"""

    target: str
    budget: int
    bytes: int

    @property
    def left(self) -> float:
        """The part of the budget that is not used; below 0 where the bundle is larger."""
        return 1 - self.bytes / self.budget


def smallest(model: str, target: str) -> int:
    """Bytes of the smallest bundle, as `compile` says them where a budget is below."""
    command = [*POCKETPHI, "compile", model, "-o", "-", *TARGETS[target], "--max-bytes", "1", "--dry-run"]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    found = re.search(r"is ([\d,]+) bytes", said)
    if found is None:
        sys.exit(said)
    return int(found[1].replace(",", ""))


def compiled(model: str, target: str, budget: int, out: Path) -> Row:
    """The bundle is gone afterwards."""
    quickly = ["--calibration-tokens", "256", "--verify", "never", "--force"]  # only the size counts
    run([*POCKETPHI, "compile", model, "-o", str(out), *TARGETS[target], "--max-bytes", str(budget), *quickly])
    row = Row(target, budget, size_of(out))
    shutil.rmtree(out)
    return row


def bars(rows: list[Row]) -> list[Bar]:
    return [
        bar
        for target in dict.fromkeys(row.target for row in rows)
        for left in [[100 * row.left for row in rows if row.target == target]]
        for bar in (
            Bar(f"{target}: most of a budget that is left", max(left), 100 * _WITHIN, "%"),
            Bar(f"{target}: least of a budget that is left", min(left), 0, "%", at_least=True),
        )
    ]


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", default="sample", help="default: %(default)s")
    p.add_argument("--targets", nargs="*", choices=TARGETS, default=list(TARGETS))
    p.add_argument("--work", type=Path, default=Path("build/budgets"), help="folder for bundles (default %(default)s)")
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    a = p.parse_args()
    preflight.require(__file__)
    a.work.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    try:
        for target in a.targets:
            least = smallest(a.model, target)
            for step in range(_COUNT):
                rows.append(compiled(a.model, target, least + least * step // (_COUNT - 1), a.work / target))
                print(f"{target}: {rows[-1].bytes:,} of {rows[-1].budget:,} bytes", file=sys.stderr)
    except StepError as error:
        sys.exit(str(error))
    cells = [[row.target, f"{row.budget:,}", f"{row.bytes:,}", f"{100 * row.left:.2f} %"] for row in rows]
    print_table("Budgets", ["target", "budget", "bytes", "left"], cells)
    return judge(bars(rows), a.json, {"rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    sys.exit(main())
