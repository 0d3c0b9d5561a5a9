"""Speed in onnxruntime-genai: our bundles and the model builder's int4 artifact of the same checkpoint, in turn.

Each artifact runs in a worker process of its own; every round loads both anew and goes from one to the other. See README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from functools import partial
from pathlib import Path

import preflight
from common import FULL_MODEL, StepError, built, judge, make_checkpoint, print_table, vocab_size
from whole_model import HEAD, Speed, compare, compiled, genai_model, made_up_prompts, ratios, row

OURS, EQUAL, THEIRS = "pocketphi", "pocketphi, block 32", "builder"
"""A bundle with the default blocks, one with blocks as the builder's, and the builder's artifact."""
BARS = {"decode": 1.0, "first_prefill": 1.1, "prefill": 1.1}
"""Tokens a second of OURS over the builder's, at least: decode after any prompt, prefill of BAR_PROMPT tokens."""
BAR_PROMPT = 512


def artifacts(a: argparse.Namespace) -> dict[str, Path]:
    """All artifacts of the model, made where they are missing."""
    work = a.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = make_checkpoint(a.model, work)[0].resolve()
    return {
        OURS: a.bundle or compiled(checkpoint, work / "pocketphi"),
        EQUAL: a.equal or compiled(checkpoint, work / "pocketphi-32", "--block", "32"),
        THEIRS: built(checkpoint, a.builder or work / "builder"),
    }


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", default=FULL_MODEL, help="a Hugging Face folder or a model's name (default %(default)s)")
    p.add_argument(
        "--work", type=Path, default=Path("build/run_ort"), help="folder for all files (default %(default)s)"
    )
    p.add_argument("--bundle", type=Path, help="a bundle of the model (default: compile one with --recipe rtn)")
    p.add_argument("--equal", type=Path, help="a bundle with the builder's blocks (default: the same with --block 32)")
    p.add_argument("--builder", type=Path, help="a folder of the model builder (default: build one with its defaults)")
    p.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default 1 2")
    p.add_argument("--prompts", type=int, nargs="+", default=[512, 64], help="tokens of the prompts (default 512 64)")
    p.add_argument("--generate", type=int, default=64, help="tokens generated after each (default %(default)s)")
    p.add_argument(
        "--turns", type=int, default=16, help="in which they are, each one's own figure (default %(default)s)"
    )
    p.add_argument("--rounds", type=int, default=6, help="default %(default)s; a multiple of 3 treats all alike")
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return p.parse_args()


def main() -> int:
    a = arguments()
    preflight.require(__file__, [] if a.builder else ["builder"])
    speeds: list[Speed] = []
    try:
        folders = artifacts(a)
        prompts = made_up_prompts(vocab_size(folders[OURS]), a.prompts)
        opens = {name: partial(genai_model, folder) for name, folder in folders.items()}
        for threads in a.threads:
            speeds += compare(opens, threads, prompts, a.generate, a.rounds, a.turns)
    except StepError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    title = f"{a.model} in onnxruntime-genai, medians of {a.rounds} rounds"
    print_table(title, HEAD, [row(s) for s in speeds])
    limits = ratios(speeds, OURS, [THEIRS], BARS, BAR_PROMPT, "decode")
    limits += ratios(speeds, EQUAL, [THEIRS], BARS, unbound="equal blocks")
    figures = {"model": a.model, "speeds": [dataclasses.asdict(s) for s in speeds]}
    return judge(limits, a.json, figures, title="Ratios")


if __name__ == "__main__":
    sys.exit(main())
