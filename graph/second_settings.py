"""What a checkpoint's files say of the model besides its tensors, read once more with other people's code, and compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pocketphi.graph.config import EMBEDDING, HEAD, ModelConfig
from pocketphi.graph.models import find_gguf, find_model
from pocketphi.graph.transformers_inside import make_config

_SINGLE = "model.safetensors"


def hf_settings_off(folder: Path, files: Sequence[Path], tensors: Mapping[str, Any], config: ModelConfig) -> list[str]:
    """Where a reading of a Hugging Face folder is not transformers': the files, a head left out, start and end tokens.

    files: those that were read; tensors: names of all that they hold → the opened file. The settings that
    transformers' model looks at are compared in `hf_agreement.py`.
    """
    data = _json(folder / "config.json")
    model = find_model(data, str(folder))
    defaults = model.settings() if model.form.build else make_config(model.architecture, {})
    said = {**{name: getattr(defaults, name) for name in ("eos_token_id", "bos_token_id")}, **data}
    more = _json(folder / "generation_config.json").get("eos_token_id")
    off = []
    single = not said.get("transformers_weights") and (folder / _SINGLE).is_file()
    if single and not (len(files) == 1 and files[0].samefile(folder / _SINGLE)):
        off.append(f"weights come from {files[0].name}, transformers takes {_SINGLE}")
    if config.tied_embeddings and HEAD in tensors and EMBEDDING in tensors and not _head_is_embedding(tensors):
        off.append(f"{HEAD} is left out, and is another matrix than the embedding")
    ends = {
        token for given in (said["eos_token_id"], more) for token in (given if isinstance(given, list) else [given])
    }
    rows = {int(token) for token in ends if token is not None and token < config.vocab_size}
    if set(config.eos) != rows:
        off.append(f"end tokens are {sorted(config.eos)}, the files say {sorted(rows)}")
    start = said["bos_token_id"]
    if config.bos != (start if start is None or start < config.vocab_size else None):
        off.append(f"the start token is {config.bos}, config.json says {start}")
    return off


def _head_is_embedding(tensors: Mapping[str, Any]) -> bool:
    head, embedding = (tensors[name].get_slice(name) for name in (HEAD, EMBEDDING))
    return all(bool((head[i] == embedding[i]).all()) for i in range(0, head.get_shape()[0], 97))


def _json(path: Path) -> dict[str, Any]:
    data = json.loads(path.read_bytes()) if path.is_file() else {}
    return data if isinstance(data, dict) else {}


def gguf_settings_off(fields: Mapping[str, Any], tensors: Mapping[str, Any], config: ModelConfig) -> list[str]:
    """Where a config is not what a GGUF file says.

    fields: plain values by key; tensors: float32 values of the small ones, others by their shapes, rows first
    """
    arch = fields["general.architecture"]

    def said(key: str, default: Any = None) -> Any:
        value = fields.get(f"{arch}.{key}", default)
        return value[0] if isinstance(value, list) else value

    heads, hidden, context = said("attention.head_count"), said("embedding_length"), said("context_length")
    dim = said("attention.key_length", hidden // heads)
    expected = {
        **{"hidden_size": hidden, "heads": heads, "head_dim": dim, "max_position": context},
        "kv_heads": said("attention.head_count_kv", heads),
        "layers": said("block_count"),
        "intermediate_size": said("feed_forward_length"),
        "vocab_size": tensors["token_embd.weight"][0],
        "rotary_dim": said("rope.dimension_count", dim),
        "tied_embeddings": "output.weight" not in tensors,
        "rope_theta": said("rope.freq_base", 10000.0),
        "rms_norm_eps": said("attention.layer_norm_rms_epsilon"),
        "pad": fields.get("tokenizer.ggml.padding_token_id"),
    }
    off = [
        f"{name} is {getattr(config, name)}, the file says {value}"
        for name, value in expected.items()
        if not _equal(getattr(config, name), value)
    ]
    if f"{arch}.attention.sliding_window" in fields:
        windows = [said("attention.sliding_window") or None]
    else:
        windows = [None, *{known.window for known in find_gguf(arch, "the file")[1].windows}]
    if config.sliding_window not in windows:
        off.append(f"the sliding window is {config.sliding_window}, the file says {windows[0]}")
    return [*off, *_tokens_off(fields, config), *_rope_off(said, tensors, config)]


def _equal(ours: Any, theirs: Any) -> bool:
    return bool(np.float32(ours) == np.float32(theirs)) if isinstance(theirs, float) else ours == theirs


def _tokens_off(fields: Mapping[str, Any], config: ModelConfig) -> list[str]:
    sentencepiece = fields.get("tokenizer.ggml.model") == "llama"
    kinds = fields.get("tokenizer.ggml.token_type") or []
    declared = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    if declared[0] is None and sentencepiece:
        declared[0] = 2
    wanted = {token for token in declared if token is not None}
    plain = [token for token in config.eos if token not in wanted and kinds and kinds[token] not in (3, 4)]
    off = []
    if not wanted <= set(config.eos) or plain:
        off.append(f"end tokens are {sorted(config.eos)}, the file says {sorted(wanted)}")
    start = fields.get("tokenizer.ggml.bos_token_id", 1 if sentencepiece else None)
    if config.bos != start:
        off.append(f"the start token is {config.bos}, the file says {start}")
    return off


def _rope_off(said: Any, tensors: Mapping[str, Any], config: ModelConfig) -> list[str]:
    """By what each frequency is divided, below and above LongRoPE's switch."""
    scale = said("rope.scaling.factor", said("rope.scale_linear", 1.0)) or 1.0
    if said("rope.scaling.type") == "none":
        scale = 1.0
    ones = np.ones(config.rotary_dim // 2, np.float32)
    both = tensors.get("rope_freqs.weight", ones) * np.float32(scale)
    long_rope = config.long_rope
    ours: tuple[Any, Any] = (long_rope.short, long_rope.long) if long_rope else (ones, ones)
    off = []
    for kind, values in zip(("short", "long"), ours):
        expected = tensors.get(f"rope_factors_{kind}.weight", both)
        if len(values) != len(expected) or not np.allclose(values, expected, rtol=1e-6):
            off.append(f"the {kind} rope factors are not those of the file")
    switch = said("rope.scaling.original_context_length", config.max_position)
    if "rope_factors_short.weight" in tensors and long_rope and long_rope.original_max_position != switch:
        off.append(f"LongRoPE switches at {long_rope.original_max_position}, the file says {switch}")
    return off
