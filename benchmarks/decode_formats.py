"""Decode of formats and mixtures of them against int4 everywhere, in the same run, on `tvm-arm` for this host. See README.md.

Weights are random, so all bundles are of one model's shape and differ in their formats alone. Rounds go from one to the next.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from functools import partial
from pathlib import Path

import preflight

preflight.require(__file__)

from common import FULL_MODEL, Bar, StepError, judge, print_table  # noqa: E402 - packages may be missing
from run_tvm import TvmModel  # noqa: E402
from whole_model import HEAD, compare, compiled, made_up_prompts, ratio, row  # noqa: E402

from pocketphi.artifacts.bundle import Bundle  # noqa: E402
from pocketphi.compiler.footprint import bundle_footprint  # noqa: E402
from pocketphi.targets.tvm_arm.description import read_description  # noqa: E402

BASE = "int4"
_TARGET = ("--target", "tvm-arm", "--os", "host")
_SMALL = ("--block", "32", "--scale-bits", "8")
FORMATS = {
    BASE: ("--block", "64"),
    "nl4": ("--format", "nl4", *_SMALL),
    "nl3": ("--format", "nl3", *_SMALL),
    "int3": ("--format", "int3", *_SMALL),
}
"""What is compiled, by name; `mixed` beside it, from rules."""
MIXED = {
    "*.mlp.gate_up_proj.weight": "nl3",
    "*.mlp.down_proj.weight": "int5",
    "lm_head.weight": "int6",
    "*": "nl4",
}
"""Of Phi-3-mini's shape: a model with a head of its own, whose gate and up projection are one matrix."""
_WITHIN = 0.1
_AT_3_BITS = 1.2


def write_policy(path: Path) -> Path:
    """MIXED as a file for `--policy`: four formats, as a budget of 3.7 bits chooses them."""
    rules = [
        f'[[rules]]\npattern = "{pattern}"\nformat = "{name}"\nrecipe = "rtn"\nblock = 32\nscale_bits = 8\n'
        for pattern, name in MIXED.items()
    ]
    path.write_text("\n".join(rules), "utf-8")
    return path


def main() -> int:
    """See the module."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", default=FULL_MODEL, help="a Hugging Face folder or a model's name (default %(default)s)")
    p.add_argument(
        "--work", type=Path, default=Path("build/decode_formats"), help="for all files (default %(default)s)"
    )
    p.add_argument("--formats", nargs="+", choices=[*FORMATS, "mixed"], default=[*FORMATS, "mixed"])
    p.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default 1 2")
    p.add_argument("--prompt", type=int, default=64, help="tokens of the prompt (default %(default)s)")
    p.add_argument("--generate", type=int, default=32, help="tokens generated after it (default %(default)s)")
    p.add_argument("--turns", type=int, default=4, help="in which they are (default %(default)s)")
    p.add_argument("--rounds", type=int, default=4)
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    a = p.parse_args()
    work = a.work.resolve() / a.model.replace(":", "-").replace("/", "_")
    work.mkdir(parents=True, exist_ok=True)
    chosen = [BASE, *(name for name in a.formats if name != BASE)]
    try:
        bundles = {}
        for name in chosen:
            options = FORMATS.get(name) or ("--policy", str(write_policy(work / "mixed.toml")))
            bundles[name] = compiled(a.model, work / name, *_TARGET, *options)
        opens = {name: partial(TvmModel, bundle) for name, bundle in bundles.items()}
        prompts = made_up_prompts(read_description(bundles[BASE]).vocab, [a.prompt])
        speeds = [s for threads in a.threads for s in compare(opens, threads, prompts, a.generate, a.rounds, a.turns)]
    except StepError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    print_table(f"{a.model} on this host, {a.rounds} rounds", HEAD, [row(s) for s in speeds])
    read = {name: bundle_footprint(Bundle.open(folder), "tvm-arm").read_per_token for name, folder in bundles.items()}
    for name, count in read.items():
        print(f"  {name}: a decode reads {count / 1e9:.3f} GB, {read[BASE] / count:.3f} times less than {BASE}")
    bars = []
    for base in (s for s in speeds if s.artifact == BASE):
        for one in (s for s in speeds if s.artifact != BASE and s.threads == base.threads):
            faster, error = ratio(one, base, "decode")
            of = f"{base.threads} thread{'s' * (base.threads > 1)}"
            inside = (1 - _WITHIN) * read[BASE] / read[one.artifact]
            at_3_bits = a.model == FULL_MODEL and one.artifact.endswith("3")
            limit = max(inside, _AT_3_BITS) if at_3_bits else inside
            title = f"decode, {of}: {one.artifact} / {BASE}"
            bars.append(Bar(title, faster, round(limit, 3), at_least=True, error=error))
    return judge(bars, a.json, {"model": a.model, "read": read, "speeds": [dataclasses.asdict(s) for s in speeds]})


if __name__ == "__main__":
    sys.exit(main())
