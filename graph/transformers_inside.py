"""What the compiler uses of transformers besides its documented interface, in one place.

A minor release of transformers may change any of it. tests/graph/test_transformers_inside.py says which piece broke; the
pieces are: a config class found by its model's class, `_attn_implementation`, what a model asks of its cache (`FlatCache`),
the module `model.rotary_emb` with `inv_freq` and `attention_scaling`, LongRoPE's function in ROPE_INIT_FUNCTIONS, and
`_experts_implementation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pocketphi.graph.errors import CompilerBug


def make_config(architecture: str, settings: Mapping[str, Any]) -> Any:
    """transformers' own config object of a `config.json`, with the attention that `passes/fuse_attention.py` matches.

    architecture: the name of a model's class. Raises what transformers raises for settings that it refuses.
    """
    made = _model_class(architecture).config_class(**settings)
    made._attn_implementation = "sdpa"
    return made


def make_model(architecture: str, config: Any) -> Any:
    """transformers' own model. Its tensors are of the device or the mode that is on."""
    return _model_class(architecture)(config).eval()


def use_real_frequencies(model: Any, config: Any) -> None:
    """Make the rotary embedding's frequencies again, outside of the mode that the model was made in: with values."""
    inner = _inner(model)
    inner.rotary_emb = type(inner.rotary_emb)(config)


class FlatCache:
    """What transformers' model needs of a cache, over a flat list of tensors [B, KV, P, D]: key and value of each layer."""

    is_compileable = False

    def __init__(self, flat: list[torch.Tensor]) -> None:
        self.keys, self.values = flat[0::2], flat[1::2]

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys[layer] = torch.cat([self.keys[layer], key], dim=2)
        self.values[layer] = torch.cat([self.values[layer], value], dim=2)
        return self.keys[layer], self.values[layer]

    def get_seq_length(self, layer: int = 0) -> int:
        return self.keys[0].shape[2]

    def get_query_offset(self, layer: int = 0) -> int:
        return self.keys[0].shape[2]

    def get_mask_sizes(self, query_length: int, layer: int = 0) -> tuple[int, int]:
        return self.keys[0].shape[2] + query_length, 0


@dataclass(frozen=True)
class Probe:
    """What transformers makes of settings, on a model without values.

    config:  its own config object
    read:    names that its model of a few layers looked up in it
    shapes:  the tensors of that model
    rotary:  see `rotary_of`
    """

    config: Any
    read: frozenset[str]
    shapes: Mapping[str, tuple[int, ...]]
    rotary: Mapping[str, torch.Tensor]


def probe(architecture: str, settings: Mapping[str, Any], layers: int) -> Probe:
    """Build and run the model of some settings, `layers` deep, and note what it looks at."""
    read: set[str] = set()
    kind = _model_class(architecture).config_class

    class Recording(kind):  # type: ignore[misc,valid-type]
        def __getattribute__(self, name: str) -> Any:
            if not name.startswith("_"):
                read.add(name)
            return super().__getattribute__(name)

    types = settings.get("layer_types")
    kinds = {"layer_types": types[:layers]} if isinstance(types, list) else {}
    made = make_config(architecture, {**settings, **kinds, "num_hidden_layers": layers})
    made._experts_implementation = "batched_mm"  # its own loop asks for values
    made.__class__ = Recording
    with torch.device("meta"), torch.no_grad():
        tokens = torch.zeros(1, 3, dtype=torch.int64)
        model = make_model(architecture, made)
        inner = _inner(model)
        inner.rotary_emb = _WithValues(inner.rotary_emb, made)
        model(tokens, use_cache=True)
    inner.rotary_emb = inner.rotary_emb.own
    made.__class__ = kind
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return Probe(made, frozenset(read), shapes, rotary_of(model, made))


class _WithValues(torch.nn.Module):
    """A rotary embedding that is run with values in a model without: some ask which of two lengths a text has."""

    def __init__(self, rotary: torch.nn.Module, config: Any) -> None:
        super().__init__()
        with torch.device("cpu"):
            self.own = type(rotary)(config)

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.device("cpu"):
            made = self.own(torch.zeros(1, dtype=x.dtype), torch.arange(position_ids.shape[-1])[None])
        return tuple(one.to(x.device) for one in made)


def rotary_of(model: Any, config: Any) -> dict[str, torch.Tensor]:
    """Frequencies below and above LongRoPE's switch, the switch, and what cos and sin are multiplied with."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rotary = type(_inner(model).rotary_emb)(config)
    for name in ("inv_freq", "attention_scaling"):
        _expect(hasattr(rotary, name), f"{type(rotary).__name__} has no {name}")
    found = {"frequencies": rotary.inv_freq, "scale": torch.tensor(rotary.attention_scaling, dtype=torch.float64)}
    if config.rope_parameters["rope_type"] == "longrope":
        switch = config.rope_parameters["original_max_position_embeddings"]
        found["switch"] = torch.tensor(switch)
        found["long frequencies"] = ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=switch + 1)[0]
        for name in ("short_mscale", "long_mscale"):
            if config.rope_parameters.get(name) is not None:
                found[name] = torch.tensor(config.rope_parameters[name], dtype=torch.float64)
    return found


def has_class(architecture: str) -> bool:
    """Whether transformers has a class of its own for a model."""
    import transformers

    return getattr(transformers, architecture, None) is not None


def _inner(model: Any) -> Any:
    inner = getattr(model, "model", None)
    _expect(hasattr(inner, "rotary_emb"), f"{type(model).__name__} has no model.rotary_emb")
    return inner


def _model_class(architecture: str) -> Any:
    import transformers

    found = getattr(transformers, architecture, None)
    _expect(hasattr(found, "config_class"), f"it has no model class {architecture} with a config_class")
    return found


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        import transformers

        what = f"transformers {transformers.__version__} is not as graph/transformers_inside.py needs it"
        raise CompilerBug(f"{what}: {otherwise}")
