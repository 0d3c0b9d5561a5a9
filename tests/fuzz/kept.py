"""What commands keep in the cache for the next one: good entries, ways to spoil them, and what reads them.

What is not there would be found out again, which takes long and counts as refused here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from blake3 import blake3

from tests.fuzz import mutate as m
from tests.fuzz import seeds
from tests.fuzz.harness import Files


def sealed(kind: str = "") -> Callable[[Random, Files], Files]:
    """Bytes of an entry whose name begins so, or its JSON under a seal that is right."""

    def spoil(rng: Random, base: Files) -> Files:
        name = rng.choice(sorted(name for name in base if Path(name).name.startswith(kind)))
        whole = base[name]
        if rng.random() < 0.3:
            return {name: m.header(4000)(rng, whole)}
        end = 40 + int.from_bytes(whole[32:40], "little")
        text = (_content if rng.random() < 0.6 else m.json_file)(rng, whole[40:end])
        body = len(text).to_bytes(8, "little") + text + whole[end:]
        return {name: blake3(body).digest() + body}

    return spoil


def _content(rng: Random, text: bytes) -> bytes:
    """What an entry says; what it is about stays right."""
    said = json.loads(text)
    key = "content" if "content" in said else rng.choice(sorted(said.keys() - {"key"}))
    return m.dumped({**said, **m.json_value(rng, {key: said[key]})})


def streams(rng: Random, base: Files) -> Files:
    """Of a stopped calibration: what ran from layer to layer, or a weight that was done."""
    if rng.random() < 0.8:
        return sealed()(rng, {name: held for name, held in base.items() if name.endswith(".stream")})
    name = rng.choice(sorted(name for name in base if name.endswith(".safetensors")))
    return {name: m.safetensors(rng, base[name])}


@functools.cache
def _options() -> Any:
    from pocketphi.compiler.options import compile_options

    return compile_options(str(seeds.checkpoint()), Path("-"), bits=4.5, calibration_tokens=64, verify="never")


@functools.cache
def _source() -> Any:
    from pocketphi.graph.hashed import HashedCheckpoint
    from pocketphi.graph.opening import open_checkpoint

    return HashedCheckpoint(open_checkpoint(_options().model))


@functools.cache
def _graphs() -> Any:
    from pocketphi.compiler.known_graphs import KnownGraphs

    return KnownGraphs(_source(), None)


def _traced() -> Any:
    return _graphs().traced


@functools.cache
def _program() -> Any:
    return _graphs().fused(None)[0]


@functools.cache
def answers() -> Path:
    """What a compile for a budget keeps: sensitivities, factors of channels, what transformers makes of a tokenizer."""
    folder = seeds.place("answers")
    sensitivities(folder)
    channels(folder)
    texts(folder)
    return folder


def sensitivities(folder: Path) -> None:
    """They can be spent."""
    from pocketphi.compiler import spend
    from pocketphi.compiler.ui import Ui
    from pocketphi.passes.allocate import Choice, allocate

    with _known(spend, "sensitivities", folder):
        costs = spend.known_costs(_source(), _traced, _candidates(), _with_cache(folder), Ui())
    tables = [[Choice(cost, size) for size, cost in enumerate(costs[name])] for name in _candidates()]
    assert all(0 <= i < len(table) for i, table in zip(allocate(tables, 100), tables))


def channels(folder: Path) -> None:
    """They can be given off."""
    from pocketphi.compiler import smoothing
    from pocketphi.compiler.ui import Ui
    from pocketphi.graph.channel_scales import ChannelScales

    with _known(smoothing, "smoothing", folder):
        found = smoothing._known_exponents(_source(), _program(), _with_cache(folder), Ui())
    scaled = ChannelScales(_source(), found)
    for name, info in scaled.tensors.items():
        assert bool(scaled.read(name, 0, min(info.rows, 2)).isfinite().all())


def texts(folder: Path) -> None:
    from pocketphi.compiler import known_text

    with _known(known_text, "check_text", folder):
        known_text.known_text(_source(), ["ort-mobile"], folder)


@contextlib.contextmanager
def _known(module: Any, name: str, folder: Path) -> Iterator[None]:
    """The work that fills an entry is refused, but where the good entries are made."""
    from unittest.mock import patch

    from pocketphi.graph.errors import InputError

    if folder == seeds.place("answers"):
        yield
        return
    again = InputError("it would be found out again")
    with (
        patch.object(module, name, side_effect=again),
        patch.object(module, "calibration_tokens", return_value=_rows(), create=True),
    ):
        yield


def _with_cache(folder: Path) -> Any:
    return dataclasses.replace(_options(), cache=folder)


@functools.cache
def _candidates() -> Any:
    from pocketphi.compiler.candidates import candidates_of

    return candidates_of(_source().config, _options())


@functools.cache
def stopped() -> Path:
    """The cache of a calibration that was stopped in its middle."""
    folder = seeds.place("stopped")
    with contextlib.suppress(KeyboardInterrupt):
        _calibrate(folder, 8)
    return folder


@functools.cache
def _rows() -> Any:
    from pocketphi.compiler.calibration import calibration_tokens
    from pocketphi.compiler.ui import Ui

    return calibration_tokens(_source(), _options(), Ui())


def _calibrate(folder: Path, stop_after: int) -> None:
    from pocketphi.passes.calibrate import quantize_calibrated
    from pocketphi.passes.policy import policy_of
    from pocketphi.passes.weight_cache import WeightCache

    left = iter(range(stop_after))

    def advance() -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    quantize_calibrated(_program(), _rows(), policy_of("search"), WeightCache(folder, _source()), advance)


def read_stopped(folder: Path) -> None:
    """What a calibration would go on from. Where that does not count, it begins anew, which counts as refused here."""
    from pocketphi.graph.errors import InputError
    from pocketphi.graph.lazy_weights import digest, materialize
    from pocketphi.passes import calibrate
    from pocketphi.passes.policy import policy_of
    from pocketphi.passes.resume import Stream
    from pocketphi.passes.weight_cache import WeightCache

    cache, head = WeightCache(folder, _source()), _program().outputs["logits"]
    weights = calibrate.quantizable(_program(), policy_of("search"))
    key = calibrate._run_key(cache, _rows(), weights)
    values, stored = calibrate._resumed(Stream(folder / f"{key}.stream", key, _program(), head.args[0]), cache, weights)
    if not values:
        raise InputError("the calibration begins anew")
    for weight in stored.values():
        digest(materialize(weight))
