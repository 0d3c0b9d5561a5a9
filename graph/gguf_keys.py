"""Every metadata key that is known: read by us, harmless, or harmless with one value. Any other one is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pocketphi.graph.errors import InputError
from pocketphi.graph.gguf_parse import shown
from pocketphi.graph.reading import show, some

# ARCH.…: read in gguf_config.py and gguf_rope.py
_READ = {
    *("context_length", "embedding_length", "feed_forward_length", "block_count", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_rms_epsilon", "attention.sliding_window"),
    *("rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.attn_factor", "rope.scaling.original_context_length"),
}
# ARCH.…: llama.cpp runs the models of graph/models/ the same with and without them
_HARMLESS = {
    *("tensor_data_layout", "rope.scaling.finetuned", "attention.layer_norm_epsilon"),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),  # of yarn, which is refused
}
# ARCH.…: the values with which they change nothing
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("attention.clamp_kqv", "attention.max_alibi_bias", "attention.scale"), (0,)),
    "attention.causal": (True,),
    "attention.sliding_window_pattern": (0, 1),
    "attention.shared_kv_layers": (0,),
    **dict.fromkeys(("attention.temperature_length", "attention.temperature_scale"), (0,)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "router_logit_softcapping"), (0,)),
    **dict.fromkeys(("logit_scale", "embedding_scale", "residual_scale", "attention.output_scale"), (0, 1)),
    **dict.fromkeys(("expert_count", "expert_used_count", "expert_shared_count", "expert_group_count"), (0,)),
    **dict.fromkeys(("expert_group_used_count", "expert_feed_forward_length", "leading_dense_block_count"), (0,)),
    **dict.fromkeys(("nextn_predict_layers", "pooling_type"), (0,)),
    **dict.fromkeys(("use_parallel_residual", "swin_norm"), (False,)),
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.yarn_ext_factor": (0,),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_log_multiplier": (0,),
}
_TOKENIZER_READ = {
    *("model", "pre", "tokens", "token_type", "scores", "merges", "add_bos_token", "add_space_prefix"),
    *(f"{name}_token_id" for name in ("bos", "eos", "eot", "eom", "unknown", "padding")),
}
_TOKENIZER_HARMLESS = {
    "token_type_count",
    *(f"{name}_token_id" for name in ("seperator", "separator", "mask", "cls", "prefix", "suffix", "middle")),
    *(f"fim_{name}_token_id" for name in ("pre", "suf", "mid", "pad", "rep", "sep")),
}
# tokenizer.ggml.…: llama.cpp reads them for other kinds of tokenizers only
_TOKENIZER_IGNORED = ("remove_extra_whitespaces", "precompiled_charsmap")
_TOKENIZER_OFF = ("add_eos_token", "add_sep_token", "normalizer.lowercase", "normalizer.strip_accents")
_OTHER = re.compile(r"(general|split|quantize|imatrix)\.")


def check_model_keys(fields: Mapping[str, Any], architecture: str, where: str) -> list[str]:
    """Lines about what is not read. Raises InputError naming a key of the architecture that would change the result."""
    unknown = []
    for key, value in fields.items():
        if not key.startswith(f"{architecture}."):
            if not _OTHER.match(key) and not key.startswith("tokenizer."):
                unknown.append(show(key).strip("'\""))
            continue
        name = key.removeprefix(f"{architecture}.")
        if name in _READ or name in _HARMLESS or (name in _NEUTRAL and _is_one_of(value, _NEUTRAL[name])):
            continue
        known = f", expected {' or '.join(map(show, _NEUTRAL[name]))}" if name in _NEUTRAL else ""
        raise InputError(
            f"{where}: {show(key)} is {shown(value)}{known}: it may change the result, and is not supported"
        )
    kind = fields.get("general.type", "model")
    if not isinstance(kind, str) or kind != "model":
        raise InputError(f"{where}: general.type is {shown(kind)}, expected a model")
    return [f"keys that are not read: {some(unknown, 5)}"] if unknown else []


def check_tokenizer_keys(fields: Mapping[str, Any], where: str) -> list[str]:
    """Lines about what is not read. Raises InputError naming a key that would change how text is read or made."""
    notices = []
    for key, value in fields.items():
        name = key.removeprefix("tokenizer.ggml.")
        if not key.startswith("tokenizer.") or name in _TOKENIZER_READ | _TOKENIZER_HARMLESS:
            continue
        if key in ("tokenizer.chat_template", "tokenizer.chat_templates", "tokenizer.huggingface.json"):
            continue
        if key.startswith("tokenizer.chat_template."):
            notices.append(f"{show(key)} is not taken over: a bundle has one chat template, tokenizer.chat_template")
        elif name in _TOKENIZER_IGNORED:
            notices.append(f"{key} is not read for this kind of tokenizer, as in llama.cpp")
        elif not (name in _TOKENIZER_OFF and value is False) and not (
            name == "suppress_tokens" and isinstance(value, np.ndarray | list) and not len(value)
        ):
            known = ", expected False" if name in _TOKENIZER_OFF else ""
            raise InputError(f"{where}: {show(key)} is {shown(value)}{known}: it is not supported")
    return notices


def _is_one_of(value: object, allowed: Iterable[object]) -> bool:
    return isinstance(value, bool | int | float) and any(value == one for one in allowed)
