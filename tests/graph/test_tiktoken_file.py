"""`*.tiktoken` files against tiktoken itself: what text becomes, what ids become, and what damage is told."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from small_folders import save
from tiktoken_files import CONFIG, FILE, SPECIAL, add_tiktoken, scrambled, tiktokens, trained, written

from pocketphi.graph.errors import InputError
from pocketphi.graph.models.phi3_small import MODEL, VOCABULARY, special_tokens
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.tiktoken_file import merge_of, read_ranks, tokenizer_files
from pocketphi.graph.tokenizer import Tokenizer
from pocketphi.graph.write_checkpoint import write_checkpoint

ROOT = Path(__file__).parents[2]
ALPHABETS = (
    *("abcdefghiklmnorstuy     ", "'sStTlLvVeErRdDmM\u017f", " \n\r\t\u00a0\u2028\x85", "0123456789\u0663\u00b2"),
    *("日本語テスト한국어שלום नमस्ते", "éèàüßñçÀÉ\u0301\ufb01", "😀👩\u200d👧🇫🇷\U000e0041", "".join(map(chr, range(33)))),
    ".,;:!?()[]{}<>|/\\\"'`~@#$%^&*-_=+",
)
EXACT = [
    "",
    " ",
    "a \n ",
    "\n\n  x",
    "I'LL don't 'ſ",
    "12345 ",
    "<|end",
    "<|end|>\n<|assistant|>\n",
    "<|dummy_id_1|>0|>",
]


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    texts = [(ROOT / name).read_text("utf-8") for name in ("LICENSE", "docs/architecture.md")]
    return trained([*texts, "日本語テスト ëëë \n\n\n    return x\n", "1234567890 " * 20], 800)


def ours(ranks: dict[bytes, int]) -> Tokenizer:
    assert MODEL.tiktoken is not None
    return Tokenizer.from_files(tokenizer_files(written(ranks), MODEL.tiktoken, len(ranks) + SPECIAL, {}, FILE))


def texts(ranks: dict[bytes, int], count: int) -> list[str]:
    generator, tokens = random.Random(count), list(ranks)
    special = list(special_tokens(len(ranks) + SPECIAL))

    def part() -> str:
        kind = generator.random()
        if kind < 0.4:
            return generator.choice(tokens).decode("utf-8", "ignore")
        if kind < 0.45:
            return generator.choice(special)
        return "".join(generator.choices(generator.choice(ALPHABETS), k=generator.randint(1, 6)))

    return [*EXACT, *("".join(part() for _ in range(generator.randint(1, 30))) for _ in range(count))]


@pytest.mark.parametrize("kind", ["trained", "scrambled", "scrambled otherwise"])
def test_ids_and_texts_are_those_of_tiktoken(ranks: dict[bytes, int], kind: str) -> None:
    pytest.importorskip("tiktoken")
    if kind != "trained":
        ranks = scrambled(ranks, len(kind))
        assert any(merge_of(token, ranks) is None for token in ranks if len(token) > 1)  # taken whole alone
    made, reference = ours(ranks), tiktokens(ranks)
    every = texts(ranks, 400)
    want = [reference.encode(text, allowed_special="all") for text in every]
    assert [made.encode(text) for text in every] == want  # no start token before a text
    assert sum(map(len, want)) > 5000
    assert len({token for ids in want for token in ids}) > len(ranks) * 0.8

    generator, end = random.Random(2), len(ranks) + 1
    runs = [generator.choices(range(len(ranks) + SPECIAL), k=12) for _ in range(400)]  # parts of characters, too
    shown = [reference.decode([token for token in run if token < end]) for run in runs]
    assert [made.decode(run) for run in runs] == shown
    assert any("\N{REPLACEMENT CHARACTER}" in text for text in shown)


def test_a_merge_is_the_last_step() -> None:
    """The example of the module, and one that a rank between makes another."""
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"abc": 4}
    assert [merge_of(token, ranks) for token in (b"ab", b"abc", b"abab")] == [
        (b"a", b"b"),
        (b"ab", b"c"),
        (b"ab", b"ab"),
    ]
    assert merge_of(b"abc", {**ranks, b"bc": 2}) == (b"a", b"bc")
    assert merge_of(b"cba", ranks) is None


def test_the_published_special_tokens() -> None:
    """As in `tokenization_phi3_small.py`; a small vocabulary has them behind its own, a resized embedding where they were."""
    published = special_tokens(VOCABULARY)
    assert sorted(published.values()) == list(range(100256, 100352))
    named = {
        "endoftext": 100257,
        "fim_suffix": 100260,
        "system": 100261,
        "user": 100262,
        "assistant": 100263,
        "end": 100266,
    }
    named |= {"endofprompt": 100276, "dummy_id_0": 100264, "dummy_id_2": 100256, "dummy_id_3": 100267}
    named |= {"dummy_id_11": 100275, "dummy_id_12": 100277, "dummy_id_86": 100351}
    assert {name: published[f"<|{name}|>"] for name in named} == named
    assert special_tokens(VOCABULARY + 64) == published
    assert {name: number - 99000 for name, number in published.items()} == special_tokens(VOCABULARY - 99000)


def test_a_folder_as_it_is_published(ranks: dict[bytes, int], tmp_path: Path) -> None:
    """Its code is not run; what is written from it has a tokenizer.json, and a tokenizer.json is believed before the file."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    rows = len(ranks) + SPECIAL
    save(tmp_path / "a", vocab_size=rows, bos_token_id=rows - 95, eos_token_id=rows - 95)
    source = open_checkpoint(add_tiktoken(tmp_path / "a", ranks))
    files = source.tokenizer_files()
    assert sorted(files) == ["tokenizer.json", "tokenizer_config.json"]
    said = json.loads(files["tokenizer_config.json"])
    assert "auto_map" not in said
    assert said["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (said["chat_template"], said["model_max_length"]) == (CONFIG["chat_template"], 8192)
    tokenizer = Tokenizer.from_files(files)
    chat = tokenizer.encode_chat([{"role": "user", "content": "Hi"}])
    special = special_tokens(rows)
    assert chat[:2] == [special["<|endoftext|>"], special["<|user|>"]]
    assert tokenizer.decode(chat) == "\nHi\n\n"
    write_checkpoint(source, tmp_path / "b", "fp32")
    assert open_checkpoint(tmp_path / "b").tokenizer_files() == files
    (tmp_path / "b" / FILE).write_bytes(b"damaged")
    assert open_checkpoint(tmp_path / "b").tokenizer_files() == files
    (tmp_path / "a" / FILE).unlink()
    with pytest.raises(
        InputError, match=r"a: neither tokenizer.json nor cl100k_base.tiktoken; put the model's own there"
    ):
        source.tokenizer_files()


def test_a_folder_with_the_file_alone(ranks: dict[bytes, int], tmp_path: Path) -> None:
    save(tmp_path, vocab_size=len(ranks) + SPECIAL)
    assert open_checkpoint(tmp_path).tokenizer_files() == {}
    (tmp_path / FILE).write_bytes(written(ranks).replace(b"\n", b"\r\n"))
    said = json.loads(open_checkpoint(tmp_path).tokenizer_files()["tokenizer_config.json"])
    assert (said["bos_token"], said["eos_token"], said["padding_side"]) == ("<|endoftext|>", "<|endoftext|>", "left")


Lines = list[bytes]
DAMAGES: dict[str, tuple[Callable[[Lines], object], str]] = {
    "not base64": (lambda lines: lines.__setitem__(3, b"\xff! 3"), r"line 4: b'\\xff!' is not base64"),
    "padding missing": (lambda lines: lines.__setitem__(3, b"AAA 3"), r"line 4: b'AAA' is not base64"),
    "an empty token": (lambda lines: lines.__setitem__(3, b" 3"), r"line 4: b' 3', expected a token in base64 and its"),
    "no bytes": (lambda lines: lines.__setitem__(3, b"==== 3"), r"line 4: b'====' is not base64"),
    "no rank": (
        lambda lines: lines.__setitem__(3, b"AAAA"),
        r"line 4: b'AAAA', expected a token in base64 and its rank",
    ),
    "three parts": (lambda lines: lines.__setitem__(3, b"AAAA 3 3"), r"line 4: b'AAAA 3 3', expected a token"),
    "not a number": (lambda lines: lines.__setitem__(3, b"AAAA 3.5"), r"line 4: rank b'3.5', expected a whole number"),
    "below zero": (lambda lines: lines.__setitem__(3, b"AAAA -3"), r"line 4: rank b'-3', expected a whole number"),
    "huge": (lambda lines: lines.__setitem__(3, b"AAAA " + b"9" * 5000), r"line 4: rank b'9{50,60}…, expected a whole"),
    "long": (lambda lines: lines.append(b"A" * 400 + b" 900"), r"a token of 300 bytes, expected 1 to 256"),
    "a token twice": (lambda lines: lines.append(lines[0].split()[0] + b" 900"), r"line 801: b'.+' a second time"),
    "a rank twice": (lambda lines: lines.append(b"AAAA 5"), r"line 801: rank 5 a second time"),
    "a rank missing": (lambda lines: lines.__delitem__(700), r"rank 700 is missing, expected 0 to 798"),
    "a byte missing": (
        lambda lines: lines.__setitem__(0, b"AAAA " + lines[0].split()[1]),
        r"byte \d+ is no token, expected all 256",
    ),
    "cut": (
        lambda lines: lines.__delitem__(slice(750, None)),
        r"holds 750 tokens, expected 800, which with 96 special",
    ),
    "empty": (lambda lines: lines.clear(), r"byte 0 is no token"),
    "a pointer": (
        lambda lines: lines.insert(0, b"version https://git-lfs.github.com/spec/v1"),
        r"a Git LFS pointer, not the file itself",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_line(ranks: dict[bytes, int], damage: str) -> None:
    assert MODEL.tiktoken is not None
    edit, message = DAMAGES[damage]
    in_order = dict(sorted(ranks.items(), key=lambda item: item[1]))
    lines = written(in_order).splitlines()
    edit(lines)
    with pytest.raises(InputError, match=rf"^cl100k_base.tiktoken: .*{message}") as error:
        tokenizer_files(b"\n".join(lines), MODEL.tiktoken, 896, {}, FILE)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_ranks_are_in_order(ranks: dict[bytes, int]) -> None:
    backwards = dict(sorted(ranks.items(), key=lambda item: -item[1]))
    assert list(read_ranks(written(backwards), FILE).items()) == sorted(ranks.items(), key=lambda item: item[1])
