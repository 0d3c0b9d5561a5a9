"""Whether tokenizer files made of a GGUF file's metadata say what the metadata says, as the gguf library reads it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from pocketphi.graph.models import find_gguf
from pocketphi.graph.models.base import Gguf

_CONTROL, _USER_DEFINED = 3, 4
_CUT_DIGITS = {"gpt-2": [4], "smollm": [1, 1, 1, 1], "llama-bpe": [3, 1], "llama3": [3, 1], "dbrx": [3, 1]}
"""How llama.cpp cuts a number of four digits, by the name of the cut."""
_LLAMA3 = ("llama-bpe", "llama3")
_TEXTS = ("Grüße, 日本  🙂 hello", "the cat is in\n\nthe hat 1234")


def gguf_text_off(files: Mapping[str, bytes], fields: Mapping[str, Any]) -> list[str]:
    """files: the tokenizer folder's; fields: plain values by key. Lines on what differs."""
    said = {key.removeprefix("tokenizer.ggml."): value for key, value in fields.items()}
    if "tokenizer.json" not in files or not said.get("tokens"):
        return []
    made, data = Tokenizer.from_str(files["tokenizer.json"].decode()), json.loads(files["tokenizer.json"])
    sentencepiece, kind = said.get("model") == "llama", find_gguf(fields["general.architecture"], "the file")[1]
    template = json.loads(files["tokenizer_config.json"]).get("chat_template")
    starts = said.get("add_bos_token", sentencepiece or said.get("pre") in _LLAMA3)
    start = [said.get("bos_token_id", 1)] if starts and (sentencepiece or "bos_token_id" in said) else []
    checks = {
        "tokens": all(made.id_to_token(i) == (token or f"[EMPTY_{i}]") for i, token in enumerate(said["tokens"])),
        "special tokens": _special_same(data, said, kind if sentencepiece and kind.markers_take_space else None),
        "merges": _merges_same(data["model"], said, sentencepiece),
        "the chat template": template == fields.get("tokenizer.chat_template"),
        "the start token before a text": made.encode("").ids == start,
        "the cut": _cut_same(made, data["model"], said, sentencepiece),
    }
    return [f"{what} of the tokenizer" for what, same in checks.items() if not same]


def _special_same(data: Mapping[str, Any], said: Mapping[str, Any], swallow: Gguf | None) -> bool:
    """Which tokens are found in a text as a whole, are left out of an answer, and take the space behind them."""
    if "token_type" not in said:
        return True
    expected = {
        (i, kind == _CONTROL, swallow is not None and token not in swallow.keep_space)
        for i, (token, kind) in enumerate(zip(said["tokens"], said["token_type"]))
        if kind in (_CONTROL, _USER_DEFINED)
    }
    came = {(token["id"], token["special"], token["rstrip"]) for token in data["added_tokens"]}
    named = {value for key, value in said.items() if key.endswith("_token_id")} | {0, 1, 2}
    # transformers adds those with a name
    return expected <= came and {number for number, _, _ in came - expected} <= named


def _merges_same(model: Mapping[str, Any], said: Mapping[str, Any], sentencepiece: bool) -> bool:
    pairs = [pair if isinstance(pair, list) else pair.split(" ", 1) for pair in model["merges"]]
    if not sentencepiece:
        return [" ".join(pair) for pair in pairs] == list(said.get("merges", []))
    score = dict(zip(said["tokens"], said["scores"]))
    scores = [score[first + second] for first, second in pairs]
    return all(a >= b for a, b in itertools.pairwise(scores))


def _cut_same(made: Tokenizer, model: Mapping[str, Any], said: Mapping[str, Any], sentencepiece: bool) -> bool:
    if sentencepiece:
        prefix = "▁" if said.get("add_space_prefix", True) else ""
        back = [made.decode(made.encode(text, add_special_tokens=False).ids) for text in _TEXTS]
        return made.normalizer.normalize_str("a b") == f"{prefix}a▁b" and back == list(_TEXTS)
    pre = said.get("pre")
    if pre not in _CUT_DIGITS:
        return True
    cut = [stop - start for _, (start, stop) in made.pre_tokenizer.pre_tokenize_str("1234")]
    return cut == _CUT_DIGITS[pre] and bool(model.get("ignore_merges")) == (pre in _LLAMA3)
