"""Compile the bundles that check.py loads; runs in the compiler's own environment.

python tests/interop/prepare.py FOLDER [--no-sample]
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path

from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.graph.config import LongRope, ModelConfig
from pocketphi.graph.random_weights import PUBLISHED, RandomWeights
from pocketphi.graph.write_checkpoint import write_checkpoint


def shapes() -> dict[str, ModelConfig]:
    """Small models with random weights, one for each thing that another loader can get wrong."""
    tiny = dataclasses.replace(PUBLISHED["tiny"], vocab_size=512)
    half = tiny.rotary_dim // 2
    factors = LongRope((1.0,) * half, tuple(1.5 + i for i in range(half)), original_max_position=24)
    return {
        "grouped-heads": tiny,
        "full-heads": dataclasses.replace(tiny, kv_heads=tiny.heads),
        "long-rope": dataclasses.replace(tiny, long_rope=factors, sliding_window=None),
        "wide-heads": dataclasses.replace(tiny, head_dim=32, rotary_dim=32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--no-sample", action="store_true", help="only the random models")
    a = parser.parse_args()
    shutil.rmtree(a.folder, ignore_errors=True)
    (a.folder / "bundles").mkdir(parents=True)
    models = {} if a.no_sample else {"sample": "sample"}
    for name, config in shapes().items():
        checkpoint = a.folder / "checkpoints" / name
        checkpoint.mkdir(parents=True)
        write_checkpoint(RandomWeights(name, config), checkpoint, "fp32")
        models[name] = str(checkpoint)
    for name, model in models.items():
        compile_model(compile_options(model=model, out=a.folder / "bundles" / name, recipe="rtn", verify="never"))


if __name__ == "__main__":
    main()
