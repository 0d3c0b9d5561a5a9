"""The tokenizer in a GGUF file's metadata, rebuilt as the files of a Hugging Face tokenizer folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from pocketphi.graph.errors import InputError
from pocketphi.graph.gguf_cuts import CUTS, DIGITS, WORDS_FIRST
from pocketphi.graph.gguf_vocabulary import Vocabulary
from pocketphi.graph.models import find_gguf
from pocketphi.graph.models.base import Gguf
from pocketphi.graph.reading import show

_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_MERGES_A_TOKEN = 64  # ways to put a token together, on average; a SentencePiece vocabulary of 32,000 has 2


def tokenizer_files_from_gguf(fields: Mapping[str, Any], where: str) -> dict[str, bytes]:
    """`tokenizer.json` and the files around it: file name → content; empty when the file has no tokenizer.

    fields: the metadata as plain values; where: the file's name, for messages.

    Raises InputError for a kind of tokenizer, or of text splitting, that is not known, and for a damaged one.
    """
    vocabulary = Vocabulary.read(fields, where)
    if vocabulary is None:
        return {}
    architecture = fields.get("general.architecture")
    tokenizer = _build(vocabulary, find_gguf(architecture, where)[1] if architecture else None, where)
    special = {name: token for name, key in _SPECIAL.items() if (token := vocabulary.token(key)) is not None}
    if vocabulary.adds_bos and "bos" in vocabulary.ids:
        tokenizer.post_processor = _start_first(special["bos_token"], vocabulary.ids["bos"])
    config: dict[str, Any] = {
        # the one class that reads tokenizer.json as it is: others rebuild the pre-tokenizer to their own liking
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "add_bos_token": vocabulary.adds_bos,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        # the class's default has token_type_ids, which `generate(**tokenizer(text))` refuses for a causal model
        "model_input_names": ["input_ids", "attention_mask"],
    }
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=False).encode(),
        "special_tokens_map.json": _json(special),
    }
    if vocabulary.template is not None:
        config["chat_template"] = vocabulary.template
        files["chat_template.jinja"] = vocabulary.template.encode()
    return {**files, "tokenizer_config.json": _json(config)}


def _start_first(token: str, number: int) -> processors.TemplateProcessing:
    """The start token before every text."""
    name = token if re.fullmatch(r"[^$:\s]+", token) else "start"  # a template's own signs: $ : and spaces
    special = {"id": name, "ids": [number], "tokens": [token]}
    return processors.TemplateProcessing([name, "$A"], special_tokens=[special])


def _build(vocabulary: Vocabulary, kind: Gguf | None, where: str) -> Tokenizer:
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if vocabulary.model not in builders:
        raise InputError(f"{where}: unknown tokenizer {show(vocabulary.model)}, expected gpt2 or llama")
    tokenizer = builders[vocabulary.model](vocabulary, where)
    swallow = kind if kind and kind.markers_take_space and vocabulary.model == "llama" else None

    def added(kind: TokenType) -> list[AddedToken]:
        found = (token for token, own in zip(vocabulary.tokens, vocabulary.kinds) if own == kind)
        return [
            AddedToken(t, normalized=False, rstrip=swallow is not None and t not in swallow.keep_space) for t in found
        ]

    tokenizer.add_special_tokens(added(TokenType.CONTROL))
    tokenizer.add_tokens(added(TokenType.USER_DEFINED))
    return tokenizer


def _byte_level(vocabulary: Vocabulary, where: str) -> Tokenizer:
    """GPT-2's kind: bytes spelled as letters, merges from the file."""
    pre = vocabulary.pre or "default"
    if pre not in CUTS:
        raise InputError(
            f"{where}: unknown tokenizer cut {show(pre)} (tokenizer.ggml.pre), expected one that llama.cpp cuts as "
            "default, gpt-2, smollm, llama-bpe, dbrx or gpt-4o"
        )
    if not vocabulary.merges:
        raise InputError(f"{where}: damaged tokenizer: tokenizer.ggml.merges is missing; convert the model again")
    merges = [_halves(merge) for merge in vocabulary.merges]
    numbers = {token: number for number, token in enumerate(vocabulary.tokens)}
    try:
        tokenizer = Tokenizer(BPE(numbers, merges, ignore_merges=pre in WORDS_FIRST))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(
            f"{where}: damaged tokenizer: tokenizer.ggml.merges ({show(str(error))}); convert the model again"
        ) from None
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in CUTS[pre]]
    digits = [pre_tokenizers.Digits(individual_digits=True)] if pre in DIGITS else []
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not cuts)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, *cuts, last])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _halves(merge: str) -> tuple[str, str]:
    """The two sides of a merge: a space stands between them, and the first may begin with one."""
    at = merge.find(" ", 1)
    return (merge[:at], merge[at + 1 :]) if at > 0 else (merge, "")


def _sentencepiece(vocabulary: Vocabulary, where: str) -> Tokenizer:
    """SentencePiece's kind: spaces written as ▁, merges implied by the scores, bytes for what no token covers."""
    if not vocabulary.scores:
        raise InputError(f"{where}: damaged tokenizer: tokenizer.ggml.scores is missing; convert the model again")
    numbers = {token: number for number, token in enumerate(vocabulary.tokens)}
    merges = _merges(vocabulary, numbers, where)
    tokenizer = Tokenizer(
        BPE(numbers, merges, unk_token=vocabulary.token("unknown"), fuse_unk=True, byte_fallback=True)
    )
    prefix = [normalizers.Prepend("▁")] if vocabulary.space_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if vocabulary.space_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(vocabulary: Vocabulary, numbers: Mapping[str, int], where: str) -> list[tuple[str, str]]:
    """Every way to put a token together from two, the best scored token first.

    SentencePiece joins the neighbours whose joint token scores highest, which is byte-pair merging in this order.
    """
    most = _MERGES_A_TOKEN * len(vocabulary.tokens)
    ranked: list[tuple[float, int, int]] = []
    for halves in _ways(vocabulary, numbers):
        if len(ranked) == most:
            raise InputError(
                f"{where}: damaged tokenizer: more than {most} ways to put {len(vocabulary.tokens)} tokens together"
            )
        ranked.append(halves)
    tokens = vocabulary.tokens
    return [(tokens[first], tokens[second]) for _, first, second in sorted(ranked)]


def _ways(vocabulary: Vocabulary, numbers: Mapping[str, int]) -> Iterator[tuple[float, int, int]]:
    """(-score, number of the first half, of the second) for every split of a token into two tokens.

    Of any kind, as in llama.cpp: two ▁ meet in a user-defined ▁▁, which is not found in a text's spaces.
    """
    lengths = sorted({len(token) for token in vocabulary.tokens})  # a half of another length is no token
    for token, score in zip(vocabulary.tokens, vocabulary.scores):
        for length in lengths:
            if length >= len(token):
                break
            first, second = numbers.get(token[:length]), numbers.get(token[length:])
            if first is not None and second is not None:
                yield -score, first, second


def _json(data: object) -> bytes:
    return json.dumps(data, indent=2, ensure_ascii=False).encode()
