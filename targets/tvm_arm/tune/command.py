"""`pocketphi tune`: its arguments, and what it prints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pocketphi.graph.reading import place_of
from pocketphi.targets.target import Tools

NAME = "tune"
TEXT = "find the fastest schedules of a TVM bundle's kernels: on a board, on this machine, or by a model of the core"


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("bundle", type=Path, help="a bundle of --target tvm-arm")
    p.add_argument(
        "-o",
        "--out",
        type=place_of,
        metavar="FILE",
        help="database to write, or to go on with (default: BUNDLE.tuning.jsonl)",
    )
    p.add_argument("--apply", action="store_true", help="then build the bundle's library anew with it, and verify")
    how = p.add_argument_group("how kernels are timed (default: run here where this CPU can, else the model)")
    how.add_argument("--rpc", metavar="HOST:PORT", help="a TVM RPC tracker; the board is one of its servers")
    how.add_argument("--key", metavar="NAME", help="the board's name at the tracker, such as rpi5")
    how.add_argument("--model", metavar="CORE", help="llvm-mca's model of a core, such as cortex-a76")
    how.add_argument(
        "--validate", action="store_true", help="time here and by the model, and print how far their ranks agree"
    )
    p.add_argument("--threads", type=int, default=1, help="CPU threads of a timed kernel (default %(default)s)")
    p.add_argument("--rounds", type=int, default=7, help="how often each schedule is timed (default %(default)s)")
    p.add_argument(
        "--server",
        type=place_of,
        metavar="FILE",
        help="only write the server program for a board (for its OS and CPU), and end",
    )


def run(a: argparse.Namespace, tools: Tools) -> tuple[Any, Callable[[], None]]:
    from pocketphi.targets.tvm_arm.tune import tune

    options = tune.TuneOptions(a.bundle, a.out, a.rpc, a.key, a.model, a.threads, a.rounds, a.apply)
    if a.server:
        tune.write_server(options, a.server)
        lines = [f"{a.server}: start it on the board with --tracker HOST:PORT --key NAME"]
        return {"server": str(a.server)}, lambda: _print(lines)
    if a.validate:
        ranks = tune.validate(options, tools.ui)
        lines = [
            f"{rank.form}: Spearman {rank.spearman:.2f} over {rank.schedules} schedules; the model's choice runs at "
            f"{rank.choice:.2f} × the best"
            for rank in ranks
        ]
        return [vars(rank) for rank in ranks], lambda: _print(lines)
    tuned = tune.tune(options, tools)
    lines = [f"{form.form}: {form.default:.1f} → {form.us:.1f} µs, {form.schedule}" for form in tuned.forms]
    lines += [*tuned.notes, f"{tuned.database}: {tuned.timed} schedules timed"]
    lines += ["the bundle's library was built anew"] if a.apply else []
    return tuned.as_json(), lambda: _print(lines)


def _print(lines: list[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
