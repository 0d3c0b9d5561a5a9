"""`python -m tests.fuzz --mutations 20000 --reader NAME --seed N`: a long run by hand; without a name every reader."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests/helpers")]

import torch  # noqa: E402

from tests.fuzz.harness import HEAD, fuzz, kinds  # noqa: E402
from tests.fuzz.readers import READERS  # noqa: E402


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    p.add_argument("--reader", action="append", help="a name, or the beginning of some; may be repeated")
    p.add_argument("--mutations", type=int, default=20000, help="of each reader (default %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="default %(default)s")
    p.add_argument("--first", type=int, default=0, help="the number of the first mutation: to repeat one")
    p.add_argument(
        "--keep", type=Path, default=Path("fuzz-findings"), help="where spoiled files are kept (%(default)s)"
    )
    p.add_argument("--list", action="store_true", help="only the names")
    a = p.parse_args()
    chosen = [r for r in READERS if not a.reader or any(r.name.startswith(name) for name in a.reader)]
    if a.list or not chosen:
        _say("\n".join(reader.name for reader in READERS))
        return 0 if a.list else 2
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    lines, bad = [], 0
    for reader in chosen:
        result = fuzz(reader, a.mutations, a.seed, a.first, a.keep, _tell)
        _say(f"{reader.name}: {result.row()}")
        for found, count in kinds(result):
            _say(f"  {count} x {found.kind}: {found.where}: {found.detail[:200]!r}")
            again = f'--reader "{reader.name}" --seed {a.seed} --first {found.number} --mutations 1'
            _say(f"      python -m tests.fuzz {again}")
        lines.append(result.row())
        bad += len(result.found)
    _say("\n".join([HEAD, *lines]))
    return 1 if bad else 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _tell(line: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{line}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
