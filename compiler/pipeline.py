"""The passes, in order. An order that matters has its reason on the line."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pocketphi.graph.errors import InputError
from pocketphi.graph.lazy_weights import LazyWeight
from pocketphi.graph.program import Program
from pocketphi.graph.writing import write_whole
from pocketphi.passes.base import Pass, PassReport
from pocketphi.passes.canonicalize import Canonicalize
from pocketphi.passes.carry_adapters import CarryAdapters
from pocketphi.passes.fuse_attention import FuseAttention
from pocketphi.passes.fuse_gated_mlp import FuseGatedMlp
from pocketphi.passes.fuse_gegelu import FuseGegelu
from pocketphi.passes.fuse_residual_norm import FuseResidualNorm
from pocketphi.passes.fuse_rms_norm import FuseRmsNorm
from pocketphi.passes.last_logits import LastLogits
from pocketphi.passes.policy import Policy
from pocketphi.passes.quantize_weights import QuantizeWeights

log = logging.getLogger(__name__)


def fusions(context: int | None) -> list[Pass]:
    """float → float: fewer, larger operators that compute the same bits."""
    return [
        Canonicalize(),  # first: every pattern below is written against one spelling
        FuseRmsNorm(),
        FuseAttention(context),
        FuseResidualNorm(),  # after the norms, which it extends
        FuseGatedMlp(),
        FuseGegelu(),
    ]


def quantization(
    policy: Policy, stored: Mapping[str, LazyWeight], all_logits: bool, adapters: bool = False
) -> list[Pass]:
    """float → few bits. stored: weights that are quantized already; adapters: the program has some that are switched."""
    return [
        QuantizeWeights(policy, stored),
        *([CarryAdapters()] if adapters else []),
        *last_logits(all_logits),
    ]


def last_logits(all_logits: bool) -> list[Pass]:
    """After all others: calibration and the reference want every position."""
    return [] if all_logits else [LastLogits()]


def run_passes(program: Program, passes: Sequence[Pass], dump: Path | None = None, first: int = 0) -> list[PassReport]:
    """Run passes in order; with `dump`, write the graph after each one to `dump/NN-name.txt`."""
    reports = []
    for number, one in enumerate(passes, first):
        start = time.perf_counter()
        reports.append(one(program))
        log.info("%s: %s in %.2f s", one.name, dict(reports[-1].applied), time.perf_counter() - start)
        dump_graph(program, dump, number, one.name)
    return reports


def dump_graph(program: Program, folder: Path | None, number: int, name: str) -> None:
    if folder:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--dump-graphs {folder}: cannot be written: {error.strerror}") from None
        write_whole(folder / f"{number:02d}-{name}.txt", program.dump(), "--dump-graphs")
