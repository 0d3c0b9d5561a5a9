"""Whether transformers makes of a `config.json` the model that we make of it: asked, not assumed.

Its own class is built and run on a layer or two without values ("meta" tensors), from the file and from our reading of it.
Every setting that it looks at on the way is compared, so that a key which a later version starts to honour is seen; its
tensors are those that we take from the files; and its rotary embedding is that of the class which is traced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pocketphi.graph.config import HEAD, ModelConfig
from pocketphi.graph.errors import CompilerBug, InputError
from pocketphi.graph.hf_keys import HARMLESS
from pocketphi.graph.models import find_model
from pocketphi.graph.models.base import Model
from pocketphi.graph.packed import KEYS as QUANTIZED
from pocketphi.graph.reading import show
from pocketphi.graph.transformers_inside import Probe, has_class, probe

_OTHERWISE = frozenset(
    """
    hidden_act num_hidden_layers tie_word_embeddings bos_token_id eos_token_id
    rope_parameters rope_theta partial_rotary_factor original_max_position_embeddings layer_types per_layer_config
    """.split()  # noqa: SIM905 - a list would take a line for each
)
"""Settings that are compared by what becomes of them, in the rotary embedding, or that the reader itself judges."""
_ROUNDING = 6 * 2.0**-23
"""What float32 makes of a frequency in two orders of computing it: power, quotients, and what interpolates between scaled and
unscaled ones. These errors are of the size of the unscaled one, which is larger than the outcome by the scaling factor."""


def check_agreement(settings: Mapping[str, Any], config: ModelConfig, where: str) -> None:
    """settings: the content of config.json; config: what was read from it.

    Raises InputError naming the first setting in which transformers' model would be another one. Of a model that
    transformers has no class for, nothing can be asked.
    """
    model, layers = find_model(settings, where), config.form.period
    if not has_class(model.architecture):
        return
    try:
        theirs = probe(model.architecture, _spelled(settings, model), layers)
    except CompilerBug:
        raise
    except (
        Exception
    ) as error:  # whatever it is, it comes from what the file says: the same goes well with our own settings
        first = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise InputError(f"{where}: transformers cannot make a {model.name} of it ({show(first, 200)})") from None
    ours = probe(model.architecture, model.written(config), layers)
    for name in sorted((theirs.read | ours.read) - _OTHERWISE):
        came, expected = getattr(theirs.config, name, None), getattr(ours.config, name, None)
        if not (callable(came) and callable(expected)) and came != expected:
            raise InputError(
                f"{where}: {name} is {show(came)} to transformers, which changes the model; expected {show(expected)}"
            )
    _check_tensors(theirs, model.stored_shapes(replace(config, layers=layers), theirs.shapes), where)
    if model.architecture == config.form.architecture:
        _check_rotary(theirs, ours, 0, where)
    else:
        scaled = max(config.long_rope.short) if config.long_rope else 1
        _check_rotary(theirs, probe(config.form.architecture, config.to_hf(), layers), _ROUNDING * scaled, where)


def _check_tensors(theirs: Probe, stored: Mapping[str, tuple[int, ...]], where: str) -> None:
    for name in sorted(theirs.shapes.keys() | stored.keys() - {HEAD}):
        came, expected = theirs.shapes.get(name), stored.get(name)
        if came != expected:
            raise InputError(
                f"{where}: {name!r} is {_shape(came)} in transformers' model, and {_shape(expected)} in ours; "
                "it cannot be compiled"
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


def _check_rotary(theirs: Probe, traced: Probe, tolerance: float, where: str) -> None:
    """tolerance: 0 where both are of one class, else relative, for frequencies that are the same at every length."""
    wanted = dict(theirs.rotary)
    if tolerance and "switch" not in wanted and "switch" in traced.rotary:
        wanted["long frequencies"] = wanted["frequencies"]
    for name, came in wanted.items():
        made = traced.rotary.get(name)
        if made is None or came.shape != made.shape or not bool(((came - made).abs() <= tolerance * came.abs()).all()):
            raise InputError(f"{where}: the {name} of the rotary embedding differ from those of transformers")


def _spelled(settings: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """The settings without those that change nothing, and with two old spellings that transformers 5.23 stumbles over:
    `su` for longrope, and `"head_dim": null`."""
    harmless = HARMLESS | model.harmless | {*QUANTIZED}
    kept = {key: value for key, value in settings.items() if key not in harmless and (key, value) != ("head_dim", None)}
    for key in ("rope_scaling", "rope_parameters"):
        if rope := kept.get(key):
            kept[key] = {k: "longrope" if k in ("type", "rope_type") and v == "su" else v for k, v in rope.items()}
    return kept
