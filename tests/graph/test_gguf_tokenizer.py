"""Tokenizers of GGUF files against transformers' own reading of the file, and against the tokenizers that they come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import pre_tokenizers, trainers

from pocketphi.graph.errors import InputError
from pocketphi.graph.gguf_cuts import CUTS
from pocketphi.graph.gguf_file import GgufFile
from pocketphi.graph.gguf_tokenizer import tokenizer_files_from_gguf
from pocketphi.graph.gguf_vocabulary import Vocabulary
from pocketphi.graph.tokenizer import Tokenizer
from tests.graph.test_gguf_file import random_tensors, write
from tests.graph.test_tokenizer import TEXTS, byte_level_fields, phi3_fields, spelled

TEXT = [
    "the cat is in the hat, isn't it? I'LL say 1234567 times: 日本 日本, déjà vu",
    "def f(x):\n    return x ** 2\n\n\n\t# 12 345",
]
MORE = [*TEXTS, *TEXT, "the  cat\r\n\r\n in", "ab!! 1234's", "½ ² x³ ٣", "don't DON'T", "\u00a0x", "héllo wörld"]


def build(fields: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_files(tokenizer_files_from_gguf(fields, "m.gguf"))


def notices(fields: dict[str, Any]) -> tuple[str, ...]:
    vocabulary = Vocabulary.read(fields, "m.gguf")
    assert vocabulary
    return vocabulary.notices


def without(fields: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key.removeprefix("tokenizer.ggml.") not in keys}


@pytest.mark.parametrize("kind", ["phi3", "llama-bpe", "gpt-2"])
def test_transformers_reads_the_file_alike(tmp_path: Path, kind: str) -> None:
    from transformers import AutoTokenizer

    arch = "phi3" if kind == "phi3" else "llama"
    fields = phi3_fields() if kind == "phi3" else byte_level_fields(kind)
    count = len(fields["tokenizer.ggml.tokens"])
    weights = random_tensors(arch)
    weights |= {name: np.zeros((count, 64), np.float32) for name in ("token_embd.weight", "output.weight")}
    keys = {key: value for key, value in fields.items() if key.startswith("tokenizer.")}
    path = write(tmp_path / "m.gguf", arch, weights, fields=keys)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path), gguf_file="m.gguf")
    ours = Tokenizer.from_files(GgufFile(path).tokenizer_files())
    texts = [text for text in MORE if "<|" not in text]  # markers: transformers does not know what Phi-3's swallow
    assert [ours.encode(text) for text in texts] == [theirs(text, add_special_tokens=False).input_ids for text in texts]
    assert [ours.decode(ours.encode(text)) for text in texts] == texts


LLAMA3 = (  # as Llama 3's tokenizer.json has it
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ORIGINALS = {
    "gpt-2": [],
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
    "starcoder": [pre_tokenizers.Digits(individual_digits=True)],
    "dbrx": [pre_tokenizers.Split(tokenizers.Regex(LLAMA3), "isolated")],
    "llama3": [pre_tokenizers.Split(tokenizers.Regex(LLAMA3), "isolated")],
}


@pytest.mark.parametrize("pre", sorted(ORIGINALS))
def test_as_the_tokenizer_that_it_comes_from(pre: str) -> None:
    """A byte-level tokenizer is trained, written as metadata, as converters do, and read back."""
    cuts = ORIGINALS[pre]
    original = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=pre == "llama3"))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not (cuts and pre in ("dbrx", "llama3")))
    original.pre_tokenizer = pre_tokenizers.Sequence([*cuts, level])
    letters = pre_tokenizers.ByteLevel.alphabet()
    original.train_from_iterator(
        TEXT * 3,
        trainers.BpeTrainer(vocab_size=330, initial_alphabet=letters, special_tokens=["<|end|>"], show_progress=False),
    )
    saved = json.loads(original.to_str())["model"]
    tokens = sorted(saved["vocab"], key=saved["vocab"].get)
    metadata = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [3 if token == "<|end|>" else 1 for token in tokens],
        "merges": [" ".join(merge) for merge in saved["merges"]],
        "add_bos_token": False,
    }
    ours = build(
        {"general.architecture": "llama", **{f"tokenizer.ggml.{key}": value for key, value in metadata.items()}}
    )
    texts = [*MORE, "the cat<|end|>in"]
    assert len(tokens) > 300
    assert [ours.encode(text) for text in texts] == [original.encode(text).ids for text in texts]


GROUPS = {
    "default": "",
    "gpt-2": "phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert mpt olmo jais trillion "
    "granite-docling exaone4",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b mellum2",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    "dbrx": "smaug-bpe chatglm-bpe",
    "glm4": "",
    "gpt-4o": "llama4 kanana2 talkie minimax-m2",
}


def test_every_alias_is_cut_as_its_group_and_groups_differ() -> None:
    bos = key("bos_token_id", 3)
    made = {pre: tokenizer_files_from_gguf(byte_level_fields(pre) | bos, "m")["tokenizer.json"] for pre in CUTS}
    groups = {name: [name, *aliases.split()] for name, aliases in GROUPS.items()}
    assert {name: {made[pre] for pre in names} for name, names in groups.items()} == {
        name: {made[name]} for name in groups
    }
    assert len({made[name] for name in groups}) == len(groups)
    assert sorted(CUTS) == sorted(name for names in groups.values() for name in names)


def first(fields: dict[str, Any]) -> str:
    return spelled(build(fields), "ab", fields)[0]


def test_where_the_file_does_not_say_llama_3_begins_with_its_start_token() -> None:
    """As llama.cpp: SentencePiece and Llama 3's group begin with it, other byte-level tokenizers do not."""
    for pre, starts in {"llama-bpe": True, "falcon3": True, "gpt-2": False, "dbrx": False}.items():
        fields = byte_level_fields(pre) | {"tokenizer.ggml.bos_token_id": 3}
        marker = fields["tokenizer.ggml.tokens"][3]
        assert (first(fields) == marker) is starts, pre
        assert first(fields | {"tokenizer.ggml.add_bos_token": not starts}) == ("ab" if starts else marker)
    assert first(without(phi3_fields(), "add_bos_token", "bos_token_id")) == "<s>"  # token 1 where no key says which


@pytest.mark.parametrize("token", ["$A", "a:1", "two words", "<s>"])
def test_a_start_token_of_any_letters(token: str) -> None:
    fields = phi3_fields(add_bos_token=True)
    fields["tokenizer.ggml.tokens"][1] = token
    assert spelled(build(fields), "the", fields) == [token, "▁the"]
    files = tokenizer_files_from_gguf(fields, "m.gguf")
    assert tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode()).encode("the").ids[0] == 1


@pytest.mark.parametrize("missing", [{}, {"tokenizer.ggml.pre": ""}])
def test_without_a_cut_llama_cpps_default_and_a_line(missing: dict[str, Any]) -> None:
    fields = without(byte_level_fields("gpt-2"), "pre") | missing
    assert [
        n for n in notices(fields) if n.startswith("tokenizer.ggml.pre is missing: text is cut by llama.cpp's default")
    ]
    default = build(byte_level_fields("default"))
    assert [build(fields).encode(text) for text in MORE] == [default.encode(text) for text in MORE]
    assert build(byte_level_fields("gpt-2")).encode("1234's") != default.encode("1234's")
    assert notices(byte_level_fields("default")) == ()


@pytest.mark.parametrize("fields", [phi3_fields(), byte_level_fields("smollm")], ids=["sentencepiece", "byte-level"])
def test_without_token_types(fields: dict[str, Any]) -> None:
    """As llama.cpp: every token is text but those that end an answer, which it knows by name."""
    bare = without(fields, "token_type")
    assert notices(fields) == ()
    assert "tokenizer.ggml.token_type is missing" in notices(bare)[0]
    tokenizer, typed = build(bare), build(fields)
    end = fields["tokenizer.ggml.tokens"].index("<|end|>")
    assert tokenizer.encode("ab<|end|>")[-1] == end
    assert tokenizer.decode([end]) == ""
    assert [tokenizer.encode(text) for text in TEXT] == [typed.encode(text) for text in TEXT]
    marker = "<|user|>" if "<|user|>" in fields["tokenizer.ggml.tokens"] else "<mark>"
    assert len(typed.encode(f"{marker}ab")) < len(tokenizer.encode(f"{marker}ab"))


@pytest.mark.parametrize("kind", [1, 4], ids=["plain", "user-defined"])
@pytest.mark.parametrize("fields", [phi3_fields(), byte_level_fields("smollm")], ids=["sentencepiece", "byte-level"])
def test_a_token_that_ends_an_answer_is_a_control_token(fields: dict[str, Any], kind: int) -> None:
    """llama.cpp finds it in a prompt, and never shows it, whatever the file's type says."""
    end = fields["tokenizer.ggml.tokens"].index("<|end|>")
    types = list(fields["tokenizer.ggml.token_type"])
    types[end] = kind
    changed = fields | key("token_type", types)
    assert build(changed).encode("ab<|end|>a") == build(fields).encode("ab<|end|>a")
    assert build(changed).decode([end]) == ""
    assert notices(changed) == (
        "tokenizer.ggml.token_type: <|end|> read as control tokens, as in llama.cpp, though not marked as such",
    )


def test_what_ends_an_answer_by_its_text() -> None:
    """What llama_vocab_is_eog of llama.cpp b11739 said of such a file."""
    known = ["<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "[EOS]", "<eos>", "<|eom_id|>", "<|im_end|>", "[EOT]"]
    fields = pieces(["<unk>", "<s>", "</s>", "a", *known, "<|eos|>", "<|turn_end|>"]) | key("eos_token_id", 3)
    for kind, more in {1: [], 3: [2], 4: [2]}.items():
        fields["tokenizer.ggml.token_type"][2] = kind
        vocabulary = Vocabulary.read(fields, "m")
        assert vocabulary
        assert sorted(vocabulary.ends()) == sorted([*more, *range(3, 4 + len(known))]), kind


def test_spaces_meet_in_a_user_defined_token() -> None:
    """llama.cpp's answers: a merge may lead to a token of any type."""
    fields = pieces(["<unk>", "<s>", "</s>", "▁", "a", "▁▁", "▁a"]) | key("scores", [0.0, 0, 0, -9, -9, -1, -2])
    for kind in (1, 4, 5):
        fields["tokenizer.ggml.token_type"][5] = kind
        assert spelled(build(fields), "  a", fields) == ["<s>", "▁▁", "▁a"], kind


def test_glm_4_takes_words_first() -> None:
    """llama.cpp's answers for a token that no merges lead to."""
    for pre, tokens in {"glm4": ["axb"], "chatglm-bpe": ["a", "x", "b"]}.items():
        fields = byte_level_fields(pre)
        fields = fields | {
            f"tokenizer.ggml.{k}": [*fields[f"tokenizer.ggml.{k}"], v]
            for k, v in {"tokens": "axb", "scores": 0.0, "token_type": 1}.items()
        }
        assert spelled(build(fields), "axb", fields) == tokens


def test_tokens_of_one_score_are_told() -> None:
    fields = phi3_fields()
    tied = fields["tokenizer.ggml.tokens"].index("hel")
    fields["tokenizer.ggml.scores"][tied - 1] = fields["tokenizer.ggml.scores"][tied]
    assert [line.split(":")[1] for line in notices(fields)] == [" 2 tokens share a score"]


def test_empty_tokens_get_a_name() -> None:
    fields = byte_level_fields("gpt-2")
    fields["tokenizer.ggml.tokens"] += ["", ""]
    fields["tokenizer.ggml.scores"] += [0.0, 0.0]
    fields["tokenizer.ggml.token_type"] += [1, 1]
    count = len(fields["tokenizer.ggml.tokens"])
    tokenizer = build(fields)
    assert tokenizer.decode([count - 2]) == f"[EMPTY_{count - 2}]"
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXT] == TEXT


def test_a_merge_may_begin_with_a_space() -> None:
    fields = phi3_fields() | {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2"}
    fields["tokenizer.ggml.tokens"][3:5] = [" ", "  "]
    assert build(fields | {"tokenizer.ggml.merges": ["   "]}).encode("a")
    with pytest.raises(InputError, match=r"damaged tokenizer: tokenizer.ggml.merges \(.*; convert the model again"):
        build(fields | {"tokenizer.ggml.merges": ["ab"]})


def key(name: str, value: Any) -> dict[str, Any]:
    return {f"tokenizer.ggml.{name}": value}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            key("remove_extra_whitespaces", True),
            "tokenizer.ggml.remove_extra_whitespaces is not read for this kind of tokenizer",
        ),
        (
            key("precompiled_charsmap", np.zeros(9, np.uint8)),
            "tokenizer.ggml.precompiled_charsmap is not read for this kind",
        ),
        (
            {"tokenizer.chat_template.tool_use": "x"},
            "'tokenizer.chat_template.tool_use' is not taken over: a bundle has one",
        ),
        (key("add_eos_token", False), None),
        (key("suppress_tokens", np.zeros(0, np.int32)), None),
        (key("fim_pre_token_id", 3), None),
        (key("mask_token_id", 3), None),
        ({"tokenizer.chat_templates": ["tool_use"]}, None),
    ],
)
def test_keys_that_do_no_harm(changes: dict[str, Any], line: str | None) -> None:
    fields = phi3_fields() | {"tokenizer.chat_template": "x"}
    assert tokenizer_files_from_gguf(fields | changes, "m.gguf") == tokenizer_files_from_gguf(fields, "m.gguf")
    found = notices(fields | changes)
    assert len(found) == bool(line)
    assert not line or line in found[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            key("add_eos_token", True),
            "m.gguf: 'tokenizer.ggml.add_eos_token' is True, expected False: it is not supported",
        ),
        (key("add_sep_token", True), "'tokenizer.ggml.add_sep_token' is True, expected False"),
        (key("normalizer.lowercase", True), "'tokenizer.ggml.normalizer.lowercase' is True, expected False"),
        (
            key("suppress_tokens", np.array([1, 2])),
            r"'tokenizer.ggml.suppress_tokens' is \[1, 2\]: it is not supported",
        ),
        (key("new_rule", 1), "'tokenizer.ggml.new_rule' is 1: it is not supported"),
        ({"tokenizer.rwkv.world": "x"}, "'tokenizer.rwkv.world' is 'x': it is not supported"),
        ({"tokenizer.chat_template": 5}, "damaged tokenizer: tokenizer.chat_template is 5, expected a text"),
        (key("add_bos_token", 1), "tokenizer.ggml.add_bos_token is 1, expected true or false"),
        (key("add_space_prefix", "no"), "tokenizer.ggml.add_space_prefix is 'no', expected true or false"),
        (key("model", 3), "tokenizer.ggml.model is 3, expected a text"),
        (key("model", "gpt2") | key("pre", ["x"]), r"tokenizer.ggml.pre is \['x'\], expected a text"),
        (key("tokens", "abc"), "damaged tokenizer: tokenizer.ggml.tokens is 'abc', expected texts"),
        (key("merges", np.array([1])), r"damaged tokenizer: tokenizer.ggml.merges is \[1\], expected texts"),
        (key("scores", None), "damaged tokenizer: tokenizer.ggml.scores is missing; convert the model again"),
        (key("scores", ["a"] * 305), "damaged tokenizer: tokenizer.ggml.scores is list of 305, expected numbers"),
        (key("scores", [0.0] * 304 + [float("nan")]), "tokenizer.ggml.scores holds a value that is not a number"),
        (key("token_type", np.ones(4, np.int32)), "tokenizer.ggml.token_type has 4 values for 305 tokens"),
        (
            key("token_type", [1.0] * 305),
            "tokenizer.ggml.token_type is list of 305, expected numbers|is .*expected numbers",
        ),
        (key("bos_token_id", 305), "damaged tokenizer: bos_token_id is 305, but there are 305 tokens"),
        (key("eos_token_id", -1), "damaged tokenizer: eos_token_id is -1, but there are 305 tokens"),
        (key("padding_token_id", "x"), "damaged tokenizer: padding_token_id is 'x', expected the number of a token"),
        (key("unknown_token_id", True), "damaged tokenizer: unknown_token_id is True, expected the number of a token"),
        (key("eot_token_id", 2.0), "damaged tokenizer: eot_token_id is 2.0, expected the number of a token"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    fields = {key: value for key, value in (phi3_fields() | changes).items() if value is not None}
    with pytest.raises(InputError, match=message):
        tokenizer_files_from_gguf(fields, "m.gguf")


def test_refuses_a_token_that_stands_twice() -> None:
    fields = byte_level_fields("gpt-2")
    fields["tokenizer.ggml.tokens"][7] = fields["tokenizer.ggml.tokens"][5]
    with pytest.raises(
        InputError, match=r"damaged tokenizer: token '&' has the numbers 5 and 7; convert the model again"
    ):
        build(fields)


def pieces(tokens: Sequence[str]) -> dict[str, Any]:
    """A SentencePiece vocabulary of these tokens."""
    columns = {"tokens": list(tokens), "scores": [0.0] * len(tokens), "token_type": [1] * len(tokens), "model": "llama"}
    return {f"tokenizer.ggml.{key}": value for key, value in columns.items()}


def test_a_vocabulary_of_any_shape_is_bounded() -> None:
    """A token of a megabyte has few halves that are tokens; a thousand tokens of one letter have half a million."""
    assert build(pieces(["<unk>", "<s>", "</s>", "a" * 500_000, "a" * 500_001, "a"])).encode("a")
    with pytest.raises(InputError, match=r"damaged tokenizer: more than 64192 ways to put 1003 tokens together"):
        build(pieces(["<unk>", "<s>", "</s>", *("a" * length for length in range(1, 1001))]))


def test_many_special_tokens_are_added_at_once() -> None:
    """One by one they took a time that grows with the square of their number."""
    fields = pieces(["<unk>", "<s>", "</s>", *(f"<|{i}|>" for i in range(20_000))])
    fields["tokenizer.ggml.token_type"][3:] = [3] * 20_000
    assert build(fields).encode("<|7|><|19999|>") == [1, 10, 20_002]
