"""The bound on characters against the tokenizers library itself, and the tokenizers for which there is none."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordLevel

from pocketphi.graph.text_room import TextRoom, text_room
from pocketphi.graph.token_bytes import TokenBytes

BELL = "\u0107"
"""A control character, as byte-level pieces spell it."""
BYTES = [f"<0x{i:02X}>" for i in range(256)]
TEXTS = ("", "the cat", "  the   the ", "\u65e5\u672c", "\U0001f98a!", "a" * 40, "\u03b1\u0313\u0300\u0345" * 9)


def phi3(**more: Any) -> tokenizers.Tokenizer:
    """Of Phi-3's form: pieces of SentencePiece, bytes for the rest, special tokens that swallow blanks."""
    pieces = ["<unk>", *BYTES, *"\u2581theca", "th", "the", "\u2581the"]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the")]
    made = tokenizers.Tokenizer(BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>", **more))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    made.add_special_tokens([AddedToken("<|end|>", rstrip=True, normalized=False)])
    return made


def byte_level() -> tokenizers.Tokenizer:
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the"]
    made = tokenizers.Tokenizer(BPE({p: i for i, p in enumerate(pieces)}, [("t", "h"), ("th", "e")]))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def room_of(made: tokenizers.Tokenizer, **edits: Any) -> TextRoom | None:
    return text_room({**json.loads(made.to_str()), **edits})


@pytest.mark.parametrize(
    ("made", "expected"),
    [(phi3(fuse_unk=True, byte_fallback=True), TextRoom(7, False)), (byte_level(), TextRoom(12, True))],
)
def test_no_text_that_fits_is_longer(made: tokenizers.Tokenizer, expected: TextRoom) -> None:
    room = room_of(made)
    assert room == expected
    over = [text for text in TEXTS if room.count(text) > room.most(len(made.encode(text).ids))]
    assert over == []
    assert room.count("a b") == (3 if room.blanks else 2)


def test_tokenizers_that_may_drop_a_text() -> None:
    made = byte_level()
    assert room_of(phi3(fuse_unk=True)) is None  # any number of unknown characters is one token
    assert room_of(phi3()) == TextRoom(7, False)
    unknown = {"type": "Split", "pattern": {"String": "x"}, "behavior": "Removed", "invert": False}
    level = {"type": "ByteLevel"}
    assert room_of(made, pre_tokenizer={"type": "Sequence", "pretokenizers": [unknown, level]}) is None
    unknown["behavior"] = "Isolated"
    assert room_of(made, pre_tokenizer={"type": "Sequence", "pretokenizers": [unknown, level]}) == TextRoom(12, True)
    for normalizer in ({"type": "StripAccents"}, {"type": "Replace", "pattern": {"String": "x"}, "content": ""}):
        assert room_of(made, normalizer=normalizer) is None
    shorter = {"type": "Replace", "pattern": {"String": "four"}, "content": "4"}
    assert room_of(made, normalizer=shorter) == TextRoom(12, True)
    model = json.loads(made.to_str())["model"]
    some = {piece: i for piece, i in model["vocab"].items() if piece not in (BELL, "\u00f1")}
    room = room_of(made, model={**model, "vocab": some})
    assert room == TextRoom(12, True, b"\x07\xf1")
    assert room.count("a\a\a\u00e9\U0001f98a\U00040000") == 3
    fewer = {piece: i for piece, i in some.items() if piece != "\u00a9"}  # inside of many characters
    assert room_of(made, model={**model, "vocab": fewer}) is None
    assert room_of(tokenizers.Tokenizer(WordLevel({"<unk>": 0}, "<unk>"))) is None
    assert room_of(tokenizers.Tokenizer(Unigram([("<unk>", 0.0)], 0))) is None


@pytest.mark.parametrize("made", [phi3(fuse_unk=True, byte_fallback=True), byte_level()])
def test_bytes_of_tokens_are_those_of_the_text(made: tokenizers.Tokenizer) -> None:
    spelled = TokenBytes(json.loads(made.to_str()))
    for text in ("the cat \U0001f98a the\u65e5", " the", "\u00e9"):
        ids = made.encode(text).ids
        found = b"".join(spelled.of(token, first=i == 0) or b"" for i, token in enumerate(ids))
        assert found.decode() == made.decode(ids) == text
    assert b"".join(spelled.of(token) or b"" for token in made.encode("\u00e9").ids)[-2:] == "\u00e9".encode()


def decoded_by(decoder: Any, *added: str) -> tokenizers.Tokenizer:
    made = byte_level() if isinstance(decoder, decoders.ByteLevel) else phi3(fuse_unk=True, byte_fallback=True)
    made.decoder = decoder
    made.add_tokens([AddedToken(one, normalized=False) for one in added])
    return made


@pytest.mark.parametrize(
    "made",
    [
        decoded_by(decoders.Metaspace(prepend_scheme="always"), "\u2581\u2581x"),
        decoded_by(decoders.Metaspace(prepend_scheme="never"), "\u2581\u2581x"),
        decoded_by(phi3().decoder, "<a\u2581\xe9>"),
        decoded_by(decoders.ByteLevel(), "\xc3\xa9", "\xe9 \u65e5"),
    ],
    ids=["Metaspace", "Metaspace that adds nothing", "Phi-3", "bytes"],
)
def test_bytes_of_any_tokens_are_those_of_the_text(made: tokenizers.Tokenizer) -> None:
    spelled, rng, size = TokenBytes(json.loads(made.to_str())), random.Random(0), made.get_vocab_size()
    whole = [token for token in range(size) if "\ufffd" not in made.decode([token], skip_special_tokens=False)]
    for first in whole:
        ids = [first, *rng.choices([*whole[-20:], *whole], k=3)]
        texts = [token for token in ids if spelled.of(token) is not None]
        found = b"".join(spelled.of(token, first=i == 0) or b"" for i, token in enumerate(texts))
        assert found.decode() == made.decode(ids), ids


def test_a_special_token_is_no_text() -> None:
    made = phi3(fuse_unk=True, byte_fallback=True)
    spelled, end = TokenBytes(json.loads(made.to_str())), made.token_to_id("<|end|>")
    assert (spelled.of(end), spelled.name(end)) == (None, "<|end|>")
