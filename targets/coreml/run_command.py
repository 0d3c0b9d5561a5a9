"""`pocketphi run-mlpackage`: its arguments, and what it prints."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketphi.targets.target import Tools

if TYPE_CHECKING:
    from pocketphi.targets.coreml.run_package import Ran

NAME = "run-mlpackage"
TEXT = "run any Core ML package (.mlpackage) on this machine"


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("package", type=Path, metavar="PATH")
    p.add_argument("--function", metavar="NAME", help="which function (default: the package's default)")
    p.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a .npy file, numbers as JSON, random or zeros (default: random for floats, zeros for integers)",
    )
    p.add_argument("--seed", type=int, default=0, help="of random inputs (default %(default)s)")
    p.add_argument(
        "--mode",
        choices=["fp16", "fp32"],
        default="fp16",
        help="fp16 (default): round as declared; fp32: round nothing",
    )
    p.add_argument("--compare", action="store_true", help="also run in the other mode, and show how far they differ")
    p.add_argument(
        "--output", type=Path, metavar="PATH", help="write the outputs: an .npz file, or a folder of .npy files"
    )
    p.add_argument("--threads", type=int, default=0, help="CPU threads (default: the machine's cores)")


def run(a: argparse.Namespace, tools: Tools) -> tuple[Any, Callable[[], None]]:
    from pocketphi.targets.coreml.run_package import run_mlpackage

    ran = run_mlpackage(a.package, a.function, a.input, a.mode, a.compare, a.output, a.seed, a.threads)
    return ran.as_json(), lambda: _show(ran)


def _show(ran: Ran) -> None:
    """Inputs, outputs, time, and how far the values are from the end of float16."""
    from rich.markup import escape
    from rich.table import Table

    from pocketphi.graph.terminal import console, plain

    out = console()
    table = Table(
        title=f"{ran.package}, function {ran.function}, {ran.mode}: {ran.seconds:.3f} s",
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    for column in ("", "name", "type", "range", "values"):
        table.add_column(column)
    for title, values in (("input", ran.inputs), ("output", ran.outputs)):
        for name, value in values.items():
            span = "none finite" if value.not_finite else ""
            if value.low is not None:
                span = f"{value.low:.4g} … {value.high:.4g}"
            span += f", {value.not_finite} not finite" if value.not_finite else ""
            first = " ".join(v if isinstance(v, str) else f"{v:.4g}" for v in value.first)
            shown = f"{first}  ({value.source})" if value.source else first
            sizes = value.type.partition("[")[0] + str(value.shape)
            table.add_row(title, plain(name), escape(sizes), span, escape(shown))
    out.print(table)
    out.print("operators: " + ", ".join(f"{n} {name}" for name, n in sorted(ran.operators.items())), markup=False)
    for name, magnitude in ran.largest.items():
        out.print(f"largest: {magnitude:,.4g} in {name}", markup=False)
    for name, room in ran.tight.items():
        out.print(f"[red]float16:[/] {escape(name)} comes within {room:.2f} times of the largest value, 65504")
    for name, distance in ran.difference.items():
        out.print(
            f"fp16 and fp32 differ in {name} by up to {distance['max']:.3g}, "
            f"{distance['mean']:.3g} on average, of {distance['of']:.3g}",
            markup=False,
        )
    if ran.written:
        out.print(f"outputs written to {ran.written}", markup=False)
