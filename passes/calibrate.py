"""Quantize layer by layer while a calibration text runs through the model.

The text runs through the program twice at once: as two halves of a batch, one with float weights, one with quantized ones.
Where a linear layer is about to run, its inputs in both halves are measured, and its weight is quantized (or found in the
cache) so that it gives, out of the inputs that it will meet, what the float layer makes of its own: each layer makes up for
what was lost before it, as far as its inputs tell. One layer's statistics and one weight are in memory at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.resources import files
from inspect import cleandoc, isclass, isfunction
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import fx

from pocketphi.graph.edge_ops import MATRIX_READERS
from pocketphi.graph.errors import InputError
from pocketphi.graph.experts import each_input
from pocketphi.graph.formats import weight_of
from pocketphi.graph.lazy_weights import FloatWeight, LazyWeight, materialize
from pocketphi.graph.packing import tensor_bytes
from pocketphi.graph.program import Program, Weights, side_by_side, split_target, stepwise
from pocketphi.graph.resident import give_back
from pocketphi.graph.sealed import forget_oldest
from pocketphi.passes.policy import Policy
from pocketphi.passes.quantize_weights import QuantizedWeight
from pocketphi.passes.quantizers import ExpertInputs, Statistics
from pocketphi.passes.quantizers.outputs import Outputs
from pocketphi.passes.resume import Stream
from pocketphi.passes.weight_cache import StoredWeight, WeightCache

aten = torch.ops.aten
_EXPERTS = torch.ops.edge.experts.default

WINDOW = 512
"""Tokens in one calibration sequence."""

AT_ONCE = 1024
"""Tokens that run from one matrix to the next together. More are no faster, and what lies between takes memory for each."""

_SMALL = 1 << 20
"""Bytes of a weight that is kept: norms."""

_MEETS = {aten.linear.default, aten.embedding.default, _EXPERTS}
"""Where all tokens wait for each other: a matrix is read once, and its inputs are measured over all of them."""

_STREAMS = 4
"""Runs that were stopped and may go on; what an older one left is removed."""


def default_text() -> str:
    """Our own pages of prose, dialogue and code, then English that every Python carries (`pydoc_data.topics`)."""
    from pydoc_data.topics import topics

    return "\n\n".join([own_pages(), *(topics[name] for name in sorted(topics))])


def own_pages() -> str:
    """Prose, dialogue and code that were written for this."""
    return files("pocketphi.passes").joinpath("calibration.txt").read_text("utf-8")


def held_out_text() -> str:
    """Text to measure with, no paragraph of which lies in the default calibration text: what Python's library says of itself.

    Raises InputError where Python runs without documentation strings.
    """
    modules = [importlib.import_module(name) for name in _DOCUMENTED]
    paragraphs = [part for module in modules for text in _documentation(module) for part in text.split("\n\n")]
    if not paragraphs:
        raise InputError("python -OO leaves no documentation to measure with; leave -OO away, or give a text")
    calibration = default_text()
    return "\n\n".join(part for part in paragraphs if part not in calibration)


_DOCUMENTED = (
    *("statistics", "logging", "doctest", "threading", "argparse", "socketserver", "subprocess", "unittest.case"),
    *("smtplib", "urllib.request", "shutil", "tarfile", "enum", "collections", "contextlib", "tempfile", "random"),
)
"""Modules of Python's library whose documentation is mostly English."""


def _documentation(module: ModuleType) -> list[str]:
    """Documentation of a module, and of the classes, methods and functions that it defines, in the order of their names."""
    found: list[Any] = [module]
    for _, value in sorted(vars(module).items()):
        if getattr(value, "__module__", None) == module.__name__ and (isclass(value) or isfunction(value)):
            methods = [inner for _, inner in sorted(vars(value).items()) if isfunction(inner)] if isclass(value) else []
            found += [value, *methods]
    return [cleandoc(one.__doc__) for one in found if isinstance(one.__doc__, str)]


def recalled(
    program: Program, tokens: torch.Tensor, policy: Policy, cache: WeightCache
) -> dict[str, LazyWeight] | None:
    """What `quantize_calibrated` has made of the same before, or None where a weight of it is missing."""
    weights = quantizable(program, policy)
    key = _run_key(cache, tokens, weights)
    found = cache.recall(key, _calibrated(weights))
    if found is None:
        return None
    _forget(_stream_of(cache, key))
    return dict(found)


def quantize_calibrated(
    program: Program,
    tokens: torch.Tensor,
    policy: Policy,
    cache: WeightCache,
    progress: Callable[[], None] = lambda: None,
    outputs: Callable[[str], Outputs | None] = lambda name: None,
) -> dict[str, LazyWeight]:
    """Quantize, into the cache, every weight of linear layers and embeddings whose quantizer calibrates.

    program: float, fused or not; tokens: int64 [B, S]; progress: called once a weight; outputs: what is known of those of
    a weight. Returns name → stored weight.
    Raises InputError where a weight is not finite or the block does not divide its columns.
    """
    weights = quantizable(program, policy)
    calibrated, key = _calibrated(weights), _run_key(cache, tokens, weights)
    path = _stream_of(cache, key)
    head: Any = program.outputs["logits"]
    stream = Stream(path, key, program, head.args[0])
    given, stored = _resumed(stream, cache, calibrated)
    forget_oldest(cache.folder, "*.stream", _STREAMS)  # this run's own is read by now
    for _ in stored:
        progress()
    computed = cache.computed

    def quantize(weight: fx.Node, measure: Callable[[], Statistics | ExpertInputs | None]) -> LazyWeight | None:
        name = str(weight.target)
        if name in calibrated and name not in stored:
            give_back()  # what runs and rounding have freed, before statistics take most of all
            stored[name] = cache.quantized(calibrated[name], measure())
            progress()
        return stored.get(name) or weights.get(name)

    def observe(node: fx.Node, each: list[tuple[Any, ...]]) -> Callable[..., torch.Tensor] | None:
        nonlocal computed
        if node in stream.cuts and cache.computed > computed:
            stream.save(node, each, {name: weight.path.name for name, weight in stored.items()})
            computed = cache.computed
        if node.target is _EXPERTS:
            made = quantize(node.args[2], lambda: _expert_inputs(each))  # type: ignore[arg-type]
            return None if made is None else partial(_both, _values(made))
        if node.target is not aten.linear.default:
            return None
        weight: Any = node.args[1]
        made = quantize(weight, lambda: _statistics([args[0] for args in each], outputs(weight.target)))
        return None if made is None else partial(_product, _values(made))

    batch = max(1, AT_ONCE // tokens.shape[1])
    reader, place = _Reader(program.weights), 0
    runs = []
    for part in tokens.split(batch):
        here = {node: value[place : place + 2 * len(part)] for node, value in given.items()}
        runs.append(stepwise([head.args[0]], program.prefill_inputs(part.repeat(2, 1)), reader, here))
        place += 2 * len(part)
    del given, here  # a run drops its part once it was used
    found = side_by_side(runs, lambda node: node.target in _MEETS or node in stream.cuts, observe)
    hidden = [one[head.args[0]] for one in found]
    quantize(head.args[1], lambda: _statistics(hidden))
    for node in program.graph.nodes:
        if node.target is aten.embedding.default:  # a tied one is done: the head's inputs tell more
            quantize(node.args[0], lambda: None)
    cache.remember(key, stored)
    _forget(path)
    return dict(stored)


def _stream_of(cache: WeightCache, key: str) -> Path:
    """Where a run keeps what it needs to go on after a stop."""
    return cache.folder / f"{key}.stream"


def _forget(stream: Path) -> None:
    """Its run is done. In a cache that is read-only it may stay."""
    with contextlib.suppress(OSError):
        stream.unlink()


def _resumed(
    stream: Stream, cache: WeightCache, calibrated: Mapping[str, QuantizedWeight]
) -> tuple[dict[fx.Node, torch.Tensor], dict[str, StoredWeight]]:
    """What an earlier run has left: the values to go on with, and the weights before them; nothing if one of these is gone."""
    values, files = stream.load() or ({}, {})
    found = {name: cache.known(file, calibrated[name]) for name, file in files.items() if name in calibrated}
    stored = {name: weight for name, weight in found.items() if weight is not None}
    if len(stored) < len(files):
        return {}, {}
    cache.found += len(stored)
    return values, stored


def quantizable(program: Program, policy: Policy) -> dict[str, QuantizedWeight]:
    """Weights of linear layers, of experts and of embeddings: name → how they will be quantized."""
    found = {}
    for node in program.graph.nodes:
        if node.target not in MATRIX_READERS:
            continue
        name = str(node.args[MATRIX_READERS[node.target]].target)
        source, quantizer = program.weights.get(name), policy.quantizer(name)
        if isinstance(source, FloatWeight) and quantizer:
            quantizer.check(name, *source.parts[""].shape)
            found[name] = QuantizedWeight(source, quantizer)
    return found


def _calibrated(weights: Mapping[str, QuantizedWeight]) -> dict[str, QuantizedWeight]:
    return {name: weight for name, weight in weights.items() if weight.quantizer.calibrates}


def _run_key(cache: WeightCache, tokens: torch.Tensor, weights: Mapping[str, QuantizedWeight]) -> str:
    config = json.dumps(cache.source.config.to_hf())
    how = [f"{name} {weight.quantizer.describe()} {weight.quantizer.version}" for name, weight in weights.items()]
    parts = [cache.source.digest_all(), config, *how, str(tuple(tokens.shape))]
    return hashlib.sha256("\n".join(parts).encode() + tensor_bytes(tokens)).hexdigest()


def _statistics(each: Sequence[torch.Tensor], outputs: Outputs | None = None) -> Statistics:
    """Of float32 [2B, S, K] from each run: the inputs with float weights, then those with quantized ones."""
    exact, met = zip(*((half.flatten(0, -2) for half in x.chunk(2)) for x in each))
    return replace(Statistics.of(met, exact), outputs=outputs)


def _expert_inputs(each: Sequence[tuple[Any, ...]]) -> ExpertInputs:
    """Of each expert, the inputs of the tokens that go through it with quantized weights, and what the float model has there.

    each: of each run the operator's arguments. Its input is float32 [2B, S, K], a token's own whatever it goes through, or
    [2B, S, T, K], where only those count that go through it with float weights too. Both halves are in the order of tokens.
    """
    found = []
    for number in range(each[0][3]):
        of_runs = [_inputs_of(number, x, chosen) for x, chosen, *_ in each]
        found.append(tuple(torch.cat(parts) for parts in zip(*of_runs, strict=True)))
    return ExpertInputs(tuple(met for met, _ in found), tuple(exact for _, exact in found))


def _inputs_of(number: int, x: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of one expert and one run: met and exact."""
    (exact, met), (by_float, by_met) = each_input(x, chosen).chunk(2), chosen.chunk(2)
    here = by_met == number
    if x.dim() == 3:
        return met[here], exact[here]
    there = by_float == number
    both = (here.any(-1) & there.any(-1))[..., None]
    return met[here & both], exact[there & both]


def _both(
    rounded: torch.Tensor, x: torch.Tensor, chosen: torch.Tensor, weight: torch.Tensor, count: int
) -> torch.Tensor:
    """What experts make of both halves, each with its own weights."""
    halves = zip(x.chunk(2), chosen.chunk(2), (weight, rounded))
    return torch.cat([_EXPERTS(of, by, matrix, count) for of, by, matrix in halves])


def _product(rounded: torch.Tensor, x: torch.Tensor, w: torch.Tensor, *bias: torch.Tensor) -> torch.Tensor:
    """What a linear layer makes of both halves, each with its own weights."""
    out = x.new_empty(*x.shape[:-1], len(w))
    for half, of, matrix in zip(out.chunk(2), x.chunk(2), (w, rounded)):
        torch.matmul(of, matrix.T, out=half)
    return out + bias[0] if bias else out


def _values(weight: LazyWeight) -> torch.Tensor:
    """What a quantized weight stands for: float32 [N, K]."""
    return weight_of(materialize(weight)).dequantize()


class _Reader:
    """Weights for runs side by side, which ask for the same ones in turn: the last matrix is kept, and all that is small."""

    def __init__(self, weights: Mapping[str, LazyWeight]) -> None:
        self._small, self._large = Weights(weights, keep=True), Weights(weights, keep=False)
        self._weights = weights

    def __call__(self, target: str) -> torch.Tensor:
        name, part = split_target(target)
        small = self._weights[name].parts[part].bytes <= _SMALL
        return (self._small if small else self._large)(target)
