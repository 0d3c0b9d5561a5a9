"""Whether transformers makes of a `config.json` the model that we make of it: asked, not assumed.

Its own Phi-3 is built and run on one layer without values ("meta" tensors), from the file and from our reading of it, and
every setting that it looks at on the way is compared. So a key that a later version of transformers starts to honour is seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_keys import HARMLESS
from pocketphi.graph.reading import show

_OTHERWISE = frozenset(
    """
    hidden_act num_hidden_layers tie_word_embeddings bos_token_id eos_token_id
    rope_parameters rope_theta partial_rotary_factor original_max_position_embeddings layer_types per_layer_config
    """.split()  # noqa: SIM905 - a list would take a line for each
)
"""Settings that are compared by what becomes of them, in the rotary embedding, or that the reader itself judges."""


def check_agreement(settings: Mapping[str, Any], config: ModelConfig, where: str) -> None:
    """settings: the content of config.json; config: what was read from it.

    Raises InputError naming the first setting in which transformers' model would be another one.
    """
    try:
        theirs, read = _probe(_spelled(settings))
    except (
        Exception
    ) as error:  # whatever it is, it comes from what the file says: the same goes well with our own settings
        first = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise InputError(f"{where}: transformers cannot make a Phi-3 of it ({show(first, 200)})") from None
    ours, also_read = _probe(config.to_hf())
    for name in sorted((read | also_read) - _OTHERWISE):
        came, expected = getattr(theirs, name, None), getattr(ours, name, None)
        if not (callable(came) and callable(expected)) and came != expected:
            raise InputError(
                f"{where}: {name} is {show(came)} to transformers, which changes the model; expected {show(expected)}"
            )
    rotary = _rotary(ours)
    for name, came in _rotary(theirs).items():
        if name not in rotary or not torch.equal(came, rotary[name]):
            raise InputError(f"{where}: the {name} of the rotary embedding differ from those of transformers")


def _spelled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that change nothing, and with two old spellings that transformers 5.23 stumbles over:
    `su` for longrope, and `"head_dim": null`."""
    kept = {key: value for key, value in settings.items() if key not in HARMLESS and (key, value) != ("head_dim", None)}
    for key in ("rope_scaling", "rope_parameters"):
        if rope := kept.get(key):
            kept[key] = {k: "longrope" if k in ("type", "rope_type") and v == "su" else v for k, v in rope.items()}
    return kept


def _probe(settings: Mapping[str, Any]) -> tuple[Any, set[str]]:
    """transformers' config of some settings, and the names that its model of one layer looks up in it."""
    from transformers import Phi3Config, Phi3ForCausalLM

    read: set[str] = set()

    class Recording(Phi3Config):
        def __getattribute__(self, name: str) -> Any:
            if not name.startswith("_"):
                read.add(name)
            return super().__getattribute__(name)

    layers = {"num_hidden_layers": 1, **({"layer_types": None} if "layer_types" in settings else {})}
    made = Phi3Config(**{**settings, **layers})
    made._attn_implementation = "sdpa"
    made.__class__ = Recording
    with torch.device("meta"), torch.no_grad():
        tokens = torch.zeros(1, 3, dtype=torch.int64)
        Phi3ForCausalLM(made).eval()(tokens, use_cache=True)
    made.__class__ = Phi3Config
    return made, read


def _rotary(made: Any) -> dict[str, torch.Tensor]:
    """Frequencies below and above LongRoPE's switch, the switch, and what cos and sin are multiplied with."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    rotary = Phi3RotaryEmbedding(made)
    found = {"frequencies": rotary.inv_freq, "scale": torch.tensor(rotary.attention_scaling, dtype=torch.float64)}
    if made.rope_parameters["rope_type"] != "default":
        switch = made.rope_parameters["original_max_position_embeddings"]
        found["switch"] = torch.tensor(switch)
        found["long frequencies"] = ROPE_INIT_FUNCTIONS["longrope"](made, seq_len=switch + 1)[0]
    return found
