"""The tokenizer in a GGUF file's metadata, rebuilt as the files of a Hugging Face tokenizer folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from pocketphi.graph.errors import InputError

_ENGLISH = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENGLISH}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENGLISH}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
# llama.cpp's names for how text is cut before the merges, src/llama-vocab.cpp; GPT-2's own cut is built into ByteLevel
_CUTS: dict[str, list[str]] = {
    "gpt-2": [],
    "smollm": [],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    "llama-bpe": [_LLAMA3],
    "dbrx": [_LLAMA3],
    "gpt-4o": [_GPT4O],
}
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_KEEP_SPACE = ("<unk>", "<s>", "<|endoftext|>")  # the special tokens of Phi-3 that do not swallow the space after them


def tokenizer_files_from_gguf(fields: Mapping[str, Any], where: str) -> dict[str, bytes]:
    """`tokenizer.json` and the files around it: file name → content; empty when the file has no tokenizer.

    fields: the metadata as plain values; where: the file's name, for messages.

    Raises InputError for a kind of tokenizer, or of text splitting, that is not known, and for a damaged one.
    """
    if "tokenizer.ggml.model" not in fields:
        return {}
    tokenizer = _build(fields, where)
    special = {name: token for name, key in _SPECIAL.items() if (token := _special(fields, key, where)) is not None}
    if _adds_bos(fields) and "bos_token" in special:
        bos = (special["bos_token"], fields["tokenizer.ggml.bos_token_id"])
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos[0]} $A", special_tokens=[bos])
    config: dict[str, Any] = {
        # the one class that reads tokenizer.json as it is: others rebuild the pre-tokenizer to their own liking
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "add_bos_token": _adds_bos(fields),
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        # the class's default has token_type_ids, which `generate(**tokenizer(text))` refuses for a causal model
        "model_input_names": ["input_ids", "attention_mask"],
    }
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=False).encode(),
        "special_tokens_map.json": _json(special),
    }
    template = fields.get("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
        files["chat_template.jinja"] = template.encode()
    return {**files, "tokenizer_config.json": _json(config)}


def _build(fields: Mapping[str, Any], where: str) -> Tokenizer:
    model = fields["tokenizer.ggml.model"]
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if model not in builders:
        raise InputError(f"{where}: unknown tokenizer {model!r}, expected gpt2 or llama")
    tokens, kinds = (_column(fields, key, where) for key in ("tokens", "token_type"))
    tokenizer = builders[model](fields, where)
    swallow = model == "llama" and fields.get("general.architecture") == "phi3"
    for token, kind in zip(tokens, kinds):
        # as llama.cpp's src/llama-vocab.cpp: Phi-3 was trained without the space after <|user|>; no metadata says so
        rstrip = swallow and token not in _KEEP_SPACE
        if kind == TokenType.CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, rstrip=rstrip)])
        elif kind == TokenType.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False, rstrip=rstrip)])
    return tokenizer


def _byte_level(fields: Mapping[str, Any], where: str) -> Tokenizer:
    """GPT-2's kind: bytes spelled as letters, merges from the file."""
    pre = fields.get("tokenizer.ggml.pre", "default")
    if pre not in _CUTS:
        raise InputError(f"{where}: unknown tokenizer cut {pre!r} (tokenizer.ggml.pre), expected {', '.join(_CUTS)}")
    merges = [tuple(merge.split(" ", 1)) for merge in fields.get("tokenizer.ggml.merges", ())]
    if not merges:
        raise InputError(f"{where}: damaged tokenizer: tokenizer.ggml.merges is missing; convert the model again")
    try:
        # Llama 3 takes a word that is a token as that token, even where no merges lead there
        tokenizer = Tokenizer(BPE(_vocabulary(fields), merges, ignore_merges=pre == "llama-bpe"))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(
            f"{where}: damaged tokenizer: tokenizer.ggml.merges ({error}); convert the model again"
        ) from None
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _CUTS[pre]]
    digits = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not cuts)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, *cuts, last])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(fields: Mapping[str, Any], where: str) -> Tokenizer:
    """SentencePiece's kind: spaces written as ▁, merges implied by the scores, bytes for what no token covers."""
    merges = _merges(_vocabulary(fields), _column(fields, "scores", where), _column(fields, "token_type", where))
    unknown = _special(fields, "unknown", where)
    tokenizer = Tokenizer(BPE(_vocabulary(fields), merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefixed = fields.get("tokenizer.ggml.add_space_prefix", True)
    prefix = [normalizers.Prepend("▁")] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(vocabulary: Mapping[str, int], scores: list[float], kinds: list[int]) -> list[tuple[str, str]]:
    """Every way to put a token together from two, the best scored token first.

    SentencePiece joins the neighbours whose joint token scores highest, which is byte-pair merging in this order.
    """
    ranked = []
    for token, number in vocabulary.items():
        if kinds[number] == TokenType.NORMAL:
            halves = ((token[:i], token[i:]) for i in range(1, len(token)))
            pairs = ((a, b) for a, b in halves if a in vocabulary and b in vocabulary)
            ranked += [(-scores[number], vocabulary[a], vocabulary[b], a, b) for a, b in pairs]
    return [(a, b) for *_, a, b in sorted(ranked)]


def _column(fields: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """One value for each token."""
    values = fields.get(f"tokenizer.ggml.{key}", [])
    count = len(fields.get("tokenizer.ggml.tokens", ()))
    if not values or len(values) != count:
        came = f"tokenizer.ggml.{key} has {len(values)} values for {count} tokens"
        raise InputError(f"{where}: damaged tokenizer: {came}; convert the model again")
    return list(values)


def _special(fields: Mapping[str, Any], key: str, where: str) -> str | None:
    """The text of the token that `{key}_token_id` names."""
    number, tokens = fields.get(f"tokenizer.ggml.{key}_token_id"), fields["tokenizer.ggml.tokens"]
    if number is not None and number >= len(tokens):
        raise InputError(f"{where}: damaged tokenizer: {key}_token_id is {number}, but there are {len(tokens)} tokens")
    return None if number is None else str(tokens[number])


def _vocabulary(fields: Mapping[str, Any]) -> dict[str, int]:
    return {token: number for number, token in enumerate(fields["tokenizer.ggml.tokens"])}


def _adds_bos(fields: Mapping[str, Any]) -> bool:
    """Where the file does not say, llama.cpp puts the start token before SentencePiece text, not before byte-level."""
    return bool(fields.get("tokenizer.ggml.add_bos_token", fields["tokenizer.ggml.model"] == "llama"))


def _json(data: object) -> bytes:
    return json.dumps(data, indent=2, ensure_ascii=False).encode()
