"""Rotary embeddings as `config.json` has them: which of two keys counts, and scalings that are LongRoPE with equal factors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np

from pocketphi.graph.config import LongRope
from pocketphi.graph.errors import InputError
from pocketphi.graph.models.settings import Fraction, Positive, Rotary, Settings, Size
from pocketphi.graph.reading import either, show, typed

_LARGEST_HEAD = 1 << 16


@dataclass(frozen=True)
class Rope:
    """`rope_scaling` of transformers 4, `rope_parameters` of transformers 5. A model's own class has the keys that scale."""

    rope_theta: Positive
    partial_rotary_factor: Fraction
    rope_type: str | None = None
    type: str | None = None
    original_max_position_embeddings: Size | None = None


@dataclass(frozen=True)
class ScaledRope(Rope):
    """The scalings that are the same at every length."""

    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None


R = TypeVar("R", bound=Rope)


def read_rope(
    schema: type[R], settings: Settings, name: str, kinds: Sequence[str], where: str, notices: list[str]
) -> tuple[R, str, str]:
    """What transformers reads, its type, and the key that holds it (for messages): rope_scaling where there is one, else
    rope_parameters; keys in it before those beside it.

    name: of the model; kinds: types that it knows besides `default`

    Raises InputError for a key or a type that it does not have.
    """
    key = "rope_scaling" if settings.rope_scaling else "rope_parameters"
    given: dict[str, Any] = getattr(settings, key) or {}
    if settings.rope_scaling and settings.rope_parameters and settings.rope_scaling != settings.rope_parameters:
        notices.append(f"{where}: rope_scaling and rope_parameters differ; the first is used, as in transformers")
    where = f"{where}: {key}"
    kind = given["rope_type"] if "rope_type" in given else given.get("type", "default")
    unknown = f"{where}: unknown rope type {show(kind)}, expected {either([repr(one) for one in ('default', *kinds)])}"
    if isinstance(kind, str) and kind not in ("default", *kinds):
        raise InputError(unknown)
    odd = [one for one in given if given[one] is not None and one not in schema.__dataclass_fields__]
    if odd:
        raise InputError(
            f"{where} holds {show(odd[0])} = {show(given[odd[0]])}, which {name}'s rotary embedding does not have"
        )
    beside = {"rope_theta": settings.rope_theta, "partial_rotary_factor": settings.partial_rotary_factor}
    rope = typed(schema, {**beside, **given}, where)
    if kind is None:
        raise InputError(unknown)
    if kind == "default":
        _check_unscaled(rope, given, where)
    return rope, kind, where


def _check_unscaled(rope: Rope, given: Mapping[str, Any], where: str) -> None:
    scaling = [field.name for field in fields(rope) if field.name not in Rope.__dataclass_fields__]
    scaled = {name: value for name in scaling if (value := getattr(rope, name)) is not None}
    if scaled and scaled != {"factor": 1}:
        first = next(iter(scaled))
        raise InputError(
            f"{where} holds {first} = {show(given[first])}, but its type is 'default', which does not scale; "
            "set rope_type, or remove it"
        )


def check_factors(short: Sequence[float], long: Sequence[float], rotary_dim: int, where: str) -> None:
    """Raise InputError unless LongRoPE has a factor for each pair of elements that turn."""
    for name, values in (("short_factor", short), ("long_factor", long)):
        if len(values) != rotary_dim // 2:
            raise InputError(f"{where}: {name} of LongRoPE has {len(values)} values, expected {rotary_dim // 2}")


def one_original(inside: int | None, beside: int | None, where: str) -> int:
    """LongRoPE's switch, which a file may say among the keys of its rotary embedding and beside them. Raises InputError."""
    originals = {inside, beside} - {None}
    if len(originals) != 1:
        came = "missing" if not originals else "there twice, and differs"
        raise InputError(f"{where}: original_max_position_embeddings is {came}")
    (original,) = originals
    return int(original or 0)


def read_scaled(settings: Settings, name: str, where: str, notices: list[str]) -> Rotary:
    """The rotary embedding of a model that knows the types `linear` and `llama3` and turns whole heads."""
    rope, kind, where = read_rope(ScaledRope, settings, name, ("linear", "llama3"), where, notices)
    if rope.partial_rotary_factor != 1:
        raise InputError(f"{where}: partial_rotary_factor is {rope.partial_rotary_factor}, expected 1 in a {name}")
    if kind == "default":
        return Rotary(rope.rope_theta, settings.head_size)
    if settings.head_size > _LARGEST_HEAD:
        raise InputError(f"{where}: heads have {settings.head_size} elements, expected at most {_LARGEST_HEAD}")
    if kind == "linear":
        factors = (_needed(rope, "factor", where),) * (settings.head_size // 2)
    else:
        factors = _llama3_factors(rope, settings, where)
    scaling = same_everywhere(factors, settings.max_position_embeddings)
    return Rotary(rope.rope_theta, settings.head_size, scaling)


def _needed(rope: Rope, key: str, where: str) -> float:
    if getattr(rope, key) is None:
        raise InputError(f"{where}: {key} is missing, which its type needs")
    return float(getattr(rope, key))


def _llama3_factors(rope: ScaledRope, settings: Settings, where: str) -> tuple[float, ...]:
    """By what each frequency is divided: 1 for short waves, `factor` for long ones, and between them what interpolates the
    frequency (transformers, modeling_rope_utils.py, _compute_llama3_parameters)."""
    factor, low, high = (_needed(rope, key, where) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    if high <= low:
        raise InputError(f"{where}: high_freq_factor is {high}, expected more than low_freq_factor, {low}")
    # transformers takes the key beside rope_scaling before the one in it
    original = settings.original_max_position_embeddings or rope.original_max_position_embeddings
    original = original or settings.max_position_embeddings
    dim = settings.head_size
    with np.errstate(over="ignore"):
        turns = original * np.float64(rope.rope_theta) ** (-2 * np.arange(dim // 2) / dim) / math.tau  # in that length
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return tuple((factor / (1 - smooth + smooth * factor)).tolist())


def same_everywhere(factors: tuple[float, ...], length: int) -> LongRope | None:
    """Frequencies divided by factors, as LongRoPE with the same ones at every length; None where all are 1.

    Its attention factor follows from the lengths, and is 1 where the original one is the whole one.
    """
    return None if set(factors) == {1.0} else LongRope(factors, factors, max(length, 2))
