"""Decode of a mixture of experts on `tvm-arm` against a dense model of its size, both with random weights at their full width.

    python benchmarks/experts.py --work FOLDER [--layers 2 6] [--threads 1] [--calls 30] [--block 32]

A decode takes what each layer takes, and what the head takes. So both models are compiled at two depths, and the time of all
their layers follows from the difference. `--layers 32` compiles both whole (4.3 GB of files) and measures that. All models take
turns, a token each, so that what else the machine does falls on all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import preflight

preflight.require(__file__)

import torch  # noqa: E402 - after what may be missing

from pocketphi.artifacts.bundle import Bundle  # noqa: E402
from pocketphi.compiler.compile import compile_model  # noqa: E402
from pocketphi.compiler.hosts import open_host  # noqa: E402
from pocketphi.compiler.options import compile_options  # noqa: E402
from pocketphi.graph.published import PUBLISHED  # noqa: E402

PROMPT = 8
MIXTURE, DENSE = "phi-tiny-moe", "phi-3-mini-4k"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where the bundles go, and are found again")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 6], help="depths; two give the rest")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calls", type=int, default=30)
    parser.add_argument("--block", type=int, default=32)
    asked = parser.parse_args()
    bundles = {
        (name, depth): made(name, depth, asked.work, asked.block) for name in (MIXTURE, DENSE) for depth in asked.layers
    }
    times = measured(bundles, asked.threads, asked.calls)
    whole = {
        name: at_full_depth(name, {depth: times[name, depth] for depth in asked.layers}) for name in (MIXTURE, DENSE)
    }
    for (name, depth), found in times.items():
        print(f"{name}, {depth} layers: {found:.2f} ms a token")
    for name, found in whole.items():
        print(f"{name}, {PUBLISHED[name].layers} layers: {found:.1f} ms a token")
    print(f"{MIXTURE} decodes {whole[DENSE] / whole[MIXTURE]:.2f} × as fast as {DENSE}")


def made(name: str, depth: int, work: Path, block: int) -> Path:
    """A bundle of a published shape with so many layers."""
    shape, folder = f"{name}-{depth}", work / f"{name}-{depth}-{block}"
    PUBLISHED[shape] = replace(PUBLISHED[name], layers=depth)
    if not folder.exists():
        given = {"os": "host", "recipe": "rtn", "block": block, "verify": "never"}
        compile_model(compile_options(f"random:{shape}", folder, ["tvm-arm"], **given))
    return folder


def measured(bundles: dict[tuple[str, int], Path], threads: int, calls: int) -> dict[tuple[str, int], float]:
    """Milliseconds of a token, the medians."""
    runners: dict[tuple[str, int], Any] = {}
    for key, folder in bundles.items():
        runners[key] = open_host(folder, Bundle.open(folder).manifest, "tvm-arm").runner(
            PROMPT + calls + 3, threads=threads
        )
    times: dict[tuple[str, int], list[float]] = {key: [] for key in runners}
    generator = torch.Generator().manual_seed(0)
    for runner in runners.values():
        runner.step(torch.randint(32000, (1, PROMPT), generator=generator))
    for call in range(calls + 3):
        token = torch.randint(32000, (1, 1), generator=generator)
        for key, runner in runners.items():
            start = time.perf_counter()
            runner.step(token)
            if call >= 3:
                times[key].append(1000 * (time.perf_counter() - start))
    return {key: statistics.median(found) for key, found in times.items()}


def at_full_depth(name: str, times: dict[int, float]) -> float:
    """What all layers of a model take, by those of the depths that were measured."""
    layers = PUBLISHED[name].layers
    if layers in times:
        return times[layers]
    if len(times) < 2:
        raise SystemExit(f"--layers: one depth of {min(times)} does not tell what {layers} take; name two")
    few, many = min(times), max(times)
    return times[few] + (layers - few) * (times[many] - times[few]) / (many - few)


if __name__ == "__main__":
    main()
