"""Small Phi-3 folders with a tokenizer of Phi-3's form: SentencePiece pieces, bytes, special tokens that swallow space."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, normalizers, processors
from tokenizers.models import BPE

PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
_MERGES = "▁ t|h e|▁t he|▁ c|a t|▁c at|i n|▁ in|▁ ▁|e l|l o|h el|l lo|hel lo|a n|o n|r e"

Edit = Callable[[dict[str, Any], dict[str, Any], Path], object]
"""(tokenizer.json, tokenizer_config.json, folder) → changed in place."""


def add_tokenizer(
    folder: Path, extra: tuple[str, ...] = (), edit: Edit = lambda tokenizer, config, folder: None
) -> Path:
    """Write `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` as Phi-3's are laid out."""
    merges = [tuple(pair.split(" ")) for pair in _MERGES.split("|")]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *"▁abcdefghijklmnopqrstuvwxyzTHI.,日"]
    pieces += [a + b for a, b in merges if a + b not in pieces]
    backend = tokenizers.Tokenizer(
        BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing("$A", "$A $B", special_tokens=[])
    added = [AddedToken(token, normalized=False, rstrip=token != "<|endoftext|>") for token in (*SPECIAL, *extra)]
    backend.add_special_tokens([*(AddedToken(token, normalized=False) for token in pieces[:3]), *added])
    every = sorted(backend.get_added_tokens_decoder().items())
    flags = ("lstrip", "normalized", "rstrip", "single_word", "special")
    named = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    config = {
        "add_bos_token": False,
        "added_tokens_decoder": {
            str(i): {"content": token.content, **{flag: getattr(token, flag) for flag in flags}} for i, token in every
        },
        **named,
        "chat_template": PHI3,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "LlamaTokenizer",
    }
    data = json.loads(backend.to_str())
    edit(data, config, folder)
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), "utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(named), "utf-8")
    return folder


def model_folder(model: Path, folder: Path, **settings: Any) -> Path:
    """A folder of the same weights, without a tokenizer, with changes to config.json."""
    shutil.copytree(model, folder, copy_function=shutil.copy)
    if settings:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, **settings}), "utf-8")
    return folder


def token_id(folder: Path, token: str) -> int:
    return int(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(token))
