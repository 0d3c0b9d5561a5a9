"""Move factors of channels from norms into the matrices behind them, where a policy says so, before anything is rounded."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pocketphi.compiler.calibration import calibration_tokens
from pocketphi.compiler.known import MEASURING, Known
from pocketphi.compiler.options import CompileOptions
from pocketphi.compiler.ui import Ui
from pocketphi.graph.adapters import Turned
from pocketphi.graph.channel_scales import LARGEST, ChannelScales, Exponents, not_cancelled
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.program import Program
from pocketphi.graph.resident import resident_now
from pocketphi.passes.calibrate import WINDOW
from pocketphi.passes.smooth import smoothing, working_bytes
from pocketphi.targets.base import Check

_TOKENS = 1024
"""Of the calibration text, in which the largest values of channels are looked for."""


def smoothed(
    source: HashedCheckpoint, program: Program, options: CompileOptions, ui: Ui
) -> tuple[HashedCheckpoint, Program]:
    """The same checkpoint, and a program that reads it, with the factors of channels where int8 activations lose least."""
    turned = ChannelScales(source, _known_exponents(source, program, options, ui))
    scaled = HashedCheckpoint(turned)
    reading = program.over(scaled)
    reading.adapters = {name: Turned(one, turned.given_to) for name, one in program.adapters.items()}
    return scaled, reading


def scales_check(source: Checkpoint, scaled: Checkpoint) -> Check:
    """What norms have given off is in the columns behind them, to the bit."""
    wrong = not_cancelled(source, scaled)
    return Check("projections that channel scales change", len(wrong), 0, f"first {wrong[0]}" if wrong else "none")


def smoothing_bytes(config: ModelConfig) -> int:
    """What measuring channels takes at most, beside what is resident."""
    return working_bytes(config, _TOKENS, WINDOW)


def _known_exponents(source: HashedCheckpoint, program: Program, options: CompileOptions, ui: Ui) -> Exponents:
    """Measured now, or by an earlier command on the same model and text."""
    tokens = calibration_tokens(source, options, ui)
    tokens = tokens[: max(1, _TOKENS // tokens.shape[1])]
    known = Known("smoothing", ("torch",), options.cache_folder, code=(*MEASURING, "compiler/smoothing.py"))
    about = {"source": source.digest_all(), "config": source.config.to_hf(), "tokens": tokens.tolist()}
    found = known.recall(dict[str, list[int]], about)
    if found is not None and all(_fits(source.config, norm, values) for norm, values in found.items()):
        return {norm: torch.tensor(values, dtype=torch.int32) for norm, values in found.items()}
    needed = resident_now() + smoothing_bytes(source.config)
    options.check_memory(needed, lambda limit: "leave out smooth = true, which measures channels")
    with ui.task("measure channels", program.operators()["linear"], "layers") as advance:
        exponents = smoothing(program, tokens, lambda: advance(1))
    known.keep(about, {norm: values.tolist() for norm, values in exponents.items()})
    return exponents


def _fits(config: ModelConfig, norm: str, exponents: Sequence[int]) -> bool:
    return config.tensors().get(norm) == (len(exponents),) and all(abs(one) <= LARGEST for one in exponents)
