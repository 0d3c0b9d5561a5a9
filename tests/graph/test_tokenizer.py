"""Tokenizers rebuilt from GGUF metadata, and the run-time Tokenizer, against transformers and ONNX Runtime GenAI."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pocketphi.graph.errors import InputError
from pocketphi.graph.gguf_file import GgufFile, sample_path
from pocketphi.graph.gguf_tokenizer import tokenizer_files_from_gguf
from pocketphi.graph.tokenizer import Tokenizer

TEXTS = [
    "What is 1234+5 in 日本? 😀",
    "  two  spaces\n\n\ttabs 12 345\r\n don't I'LL",
    "<|im_start|>user\nHi<|im_end|>\n",
    "def f(x):\n    return x**2  # ok",
    " ",
    "",
]
HELLO = [{"role": "user", "content": "Hello"}]
TEMPLATE = (
    "{% for message in messages %}\n"
    "  {% if message['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\n"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}<|assistant|>\n"
)


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


def fields_of(tokens: list[tuple[str, float, int]], **changes: Any) -> dict[str, Any]:
    """Metadata from (token, score, type) and further `tokenizer.ggml.` keys."""
    names, scores, kinds = (list(column) for column in zip(*tokens))
    values = {"tokens": names, "scores": scores, "token_type": kinds, **changes}
    return {"general.architecture": "phi3", **{f"tokenizer.ggml.{key}": value for key, value in values.items()}}


def phi3_fields(**changes: Any) -> dict[str, Any]:
    """A SentencePiece vocabulary of Phi-3's build, small."""
    words = ["▁t", "he", "▁the", "▁c", "at", "▁cat", "in", "▁in", "▁▁", "el", "hel", "llo", "lo", "hello"]
    tokens = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 4), *((f"<0x{i:02X}>", 0.0, 6) for i in range(256))]
    tokens += [(word, -float(i), 1) for i, word in enumerate(words)]
    tokens += [(letter, -100.0 - i, 1) for i, letter in enumerate("▁abcdefghijklmnopqrstuvwxyz日")]
    tokens += [(f"<|{name}|>", 0.0, 3) for name in ("endoftext", "assistant", "end", "user")]
    ids = {
        "bos_token_id": 1,
        "eos_token_id": len(tokens) - 4,
        "unknown_token_id": 0,
        "padding_token_id": len(tokens) - 4,
    }
    return fields_of(tokens, **{"model": "llama", "pre": "default", "add_bos_token": False, **ids, **changes})


def byte_level_fields(pre: str) -> dict[str, Any]:
    """All bytes, digits that merge, one control and one user-defined token."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merges = ["1 2", "12 3", "123 4", "Ġ 1", "' s", "a b", "ab !", "! !"]
    words = [merge.replace(" ", "") for merge in merges]
    tokens = [*((letter, 0.0, 1) for letter in bytes_to_unicode().values()), *((word, 0.0, 1) for word in words)]
    tokens += [("<|end|>", 0.0, 3), ("<mark>", 0.0, 4), ("1 2 3", 0.0, 5)]
    return fields_of(tokens, model="gpt2", pre=pre, merges=merges, eos_token_id=len(tokens) - 3)


def spelled(tokenizer: Tokenizer, text: str, fields: dict[str, Any]) -> list[str]:
    return [fields["tokenizer.ggml.tokens"][i] for i in tokenizer.encode(text)]


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join([stream.step(i) for i in ids] + [stream.finish()])


def save(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def genai_ids(folder: Path, texts: list[str]) -> list[list[int]]:
    """The same texts by ONNX Runtime GenAI, which reads the folder without a model."""
    genai = pytest.importorskip("onnxruntime_genai")
    decoder = {"filename": "model.onnx", "inputs": {}, "outputs": {}}
    model = {
        "type": "phi3",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "vocab_size": 2,
        "context_length": 8,
        "decoder": decoder,
    }
    (folder / "genai_config.json").write_text(json.dumps({"model": model, "search": {}}))
    tokenizer = genai.Tokenizer(str(folder))
    return [tokenizer.encode(text).tolist() for text in texts]


@pytest.fixture(scope="module")
def sample() -> dict[str, bytes]:
    return GgufFile(sample_path()).tokenizer_files()


@pytest.mark.sample
def test_the_sample_round_trips(sample: dict[str, bytes]) -> None:
    tokenizer = Tokenizer.from_files(sample)
    ids = [tokenizer.encode(text) for text in TEXTS]
    plain = [text.replace("<|im_start|>", "").replace("<|im_end|>", "") for text in TEXTS]
    assert [tokenizer.decode(i) for i in ids] == plain
    assert [streamed(tokenizer, i) for i in ids] == plain
    assert ids[2][0] == 1
    assert ids[2][-2] == 2
    assert max(len(piece) for piece in map(tokenizer.decode, ([i] for i in ids[0])) if piece.strip().isdigit()) == 1


@pytest.mark.sample
def test_the_sample_loads_elsewhere(sample: dict[str, bytes], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = save(sample, tmp_path)
    tokenizer = Tokenizer.load(folder)
    # beside the config of a compiled model, which is what decides on a class when the tokenizer names none
    (folder / "config.json").write_text(json.dumps(GgufFile(sample_path()).config.to_hf()))
    hugging = AutoTokenizer.from_pretrained(str(folder))
    assert [hugging(text).input_ids for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert (hugging.bos_token_id, hugging.eos_token_id, hugging.unk_token_id, hugging.pad_token_id) == (1, 2, 0, 2)
    assert hugging.apply_chat_template(HELLO, add_generation_prompt=True).input_ids == tokenizer.encode_chat(HELLO)
    assert genai_ids(folder, TEXTS) == [tokenizer.encode(text) for text in TEXTS]


@pytest.mark.sample
def test_the_sample_chats(sample: dict[str, bytes]) -> None:
    tokenizer = Tokenizer.from_files(sample)
    want = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.render_chat(HELLO) == want
    assert tokenizer.encode_chat(HELLO) == tokenizer.encode(want)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("the cat in", ["▁the", "▁cat", "▁in"]),
        ("  hello", ["▁▁", "▁", "hello"]),
        ("日本", ["▁", "日", "<0xE6>", "<0x9C>", "<0xAC>"]),
        # the line break after a marker goes, as in training; after text it stays
        ("<|user|>\nthe\n<|end|>\n<|assistant|>\n", ["<|user|>", "▁the", "<0x0A>", "<|end|>", "<|assistant|>"]),
        ("<s> in</s> in", ["<s>", "▁", "▁in", "</s>", "▁in"]),
    ],
)
def test_sentencepiece(text: str, tokens: list[str], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    fields = phi3_fields()
    folder = save(tokenizer_files_from_gguf(fields, "m.gguf"), tmp_path)
    tokenizer = Tokenizer.load(folder)
    assert spelled(tokenizer, text, fields) == tokens
    ids = tokenizer.encode(text)
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)
    assert AutoTokenizer.from_pretrained(str(folder))(text).input_ids == ids
    assert genai_ids(folder, [text]) == [ids]


@pytest.mark.parametrize("changes", [{"add_space_prefix": False}, {}])
def test_sentencepiece_gives_the_text_back(changes: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_files(tokenizer_files_from_gguf(phi3_fields(**changes), "m.gguf"))
    for text in ("the cat", "  hello\n in ", "😀 日本", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_start_token_where_the_file_asks_for_one(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    fields = phi3_fields(add_bos_token=True) | {"tokenizer.chat_template": "{{ bos_token }}" + TEMPLATE}
    folder = save(tokenizer_files_from_gguf(fields, "m.gguf"), tmp_path)
    tokenizer = Tokenizer.load(folder)
    assert spelled(tokenizer, "the", fields) == ["<s>", "▁the"]
    assert AutoTokenizer.from_pretrained(str(folder))("the").input_ids == tokenizer.encode("the")
    assert tokenizer.encode_chat(HELLO).count(1) == 1


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["ab", "!!", "Ġ", "1", "2", "3", "4", "'s"]),
        ("gpt-2", ["ab", "!!", "Ġ", "1234", "'s"]),
        ("default", ["ab", "!!", "Ġ", "123", "4", "'", "s"]),
        ("llama-bpe", ["ab", "!!", "Ġ", "123", "4", "'s"]),
        ("dbrx", ["ab", "!!", "Ġ", "123", "4", "'s"]),
        ("gpt-4o", ["ab", "!!", "Ġ", "123", "4", "'s"]),
    ],
)
def test_byte_level_cuts(pre: str, pieces: list[str]) -> None:
    fields = byte_level_fields(pre)
    tokenizer = Tokenizer.from_files(tokenizer_files_from_gguf(fields, "m.gguf"))
    assert spelled(tokenizer, "ab!! 1234's", fields) == pieces
    # control tokens are special and left out of text, user-defined ones are text; both are found whole
    ids = tokenizer.encode("ab<mark>ab<|end|>")
    assert spelled(tokenizer, "ab<mark>ab<|end|>", fields) == ["ab", "<mark>", "ab", "<|end|>"]
    assert tokenizer.decode(ids) == "ab<mark>ab"


def test_a_stream_holds_back_half_a_character() -> None:
    tokenizer = Tokenizer.from_files(tokenizer_files_from_gguf(byte_level_fields("gpt-2"), "m.gguf"))
    stream = tokenizer.stream()
    assert [stream.step(i) for i in tokenizer.encode("a😀b")] == ["a", "", "", "", "😀", "b"]
    assert stream.finish() == ""
    assert [stream.step(i) for i in tokenizer.encode("😀")[:2]] == ["", ""]
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


def test_a_stream_that_goes_on_with_a_text_keeps_its_space() -> None:
    tokenizer = Tokenizer.from_files(tokenizer_files_from_gguf(phi3_fields(), "m.gguf"))
    before, ids = tokenizer.encode("\u65e5"), tokenizer.encode("\u65e5 in")
    rest = ids[len(before) :]
    assert (ids[: len(before)], streamed(tokenizer, rest)) == (before, "in")
    for text in (before, ids):
        stream = tokenizer.stream(text)
        assert "".join(map(stream.step, rest)) + stream.finish() == " in"
    half = tokenizer.stream([3 + 0xF0])
    assert half.step(3 + 0x41) == "A"


def test_a_stream_of_any_ids_gives_text() -> None:
    """Byte tokens that are no UTF-8: byte-level text is that of decode; SentencePiece's cannot be, it looks back."""
    rng = random.Random(0)
    level = Tokenizer.from_files(tokenizer_files_from_gguf(byte_level_fields("gpt-2"), "m.gguf"))
    piece = Tokenizer.from_files(tokenizer_files_from_gguf(phi3_fields(), "m.gguf"))
    for _ in range(50):
        ids = [rng.randrange(260) for _ in range(40)]
        assert streamed(level, ids) == level.decode(ids)
        assert len(streamed(piece, ids)) > 0
    assert streamed(piece, piece.encode("a😀😀日本本 in")) == "a😀😀日本本 in"
    newline_then_half = [3 + 0x0A, 3 + 0xF0]
    assert streamed(piece, newline_then_half) == "\n\N{REPLACEMENT CHARACTER}"


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    """Special tokens as objects, several templates, a start token that only tokenizer.json speaks of."""
    from transformers import AutoTokenizer

    files = tokenizer_files_from_gguf(phi3_fields(add_bos_token=True), "m.gguf")
    assert json.loads(files["tokenizer_config.json"])["model_input_names"] == ["input_ids", "attention_mask"]
    config = {
        "bos_token": {"content": "<s>", "lstrip": False},
        "eos_token": "</s>",
        "chat_template": [
            {"name": "rag", "template": "x"},
            {"name": "default", "template": "{{ bos_token }}{{ eos_token }}"},
        ],
    }
    save({**files, "tokenizer_config.json": json.dumps(config).encode()}, tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("the")[0] == 1
    assert tokenizer.render_chat(HELLO) == "<s></s>"
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert Tokenizer.load(tmp_path).render_chat(HELLO) == "Hello"
    (tmp_path / "tokenizer_config.json").unlink()  # tokenizer.json alone says what stands before a text
    assert Tokenizer.load(tmp_path).encode("the") == AutoTokenizer.from_pretrained(str(tmp_path))("the").input_ids


def test_chat() -> None:
    fields = phi3_fields() | {"tokenizer.chat_template": TEMPLATE}
    files = tokenizer_files_from_gguf(fields, "m.gguf")
    assert files["chat_template.jinja"].decode() == TEMPLATE
    tokenizer = Tokenizer.from_files(files)
    # blocks leave no blank lines and no indentation behind; the template's own last line break goes, as in transformers
    assert tokenizer.render_chat(HELLO) == "<|user|>\nHello<|end|>\n<|assistant|>"
    with pytest.raises(InputError, match=r"chat: the chat template failed \(no tools\)"):
        tokenizer.render_chat([{"role": "tool", "content": "x"}])
    with pytest.raises(InputError, match=r"the chat template failed \('list object' has no attribute 'x'\)"):
        Tokenizer.from_files({**files, "chat_template.jinja": b"{{ messages.x.y }}"}).render_chat(HELLO)
    unsafe = {**files, "chat_template.jinja": b"{{ messages.__class__.__mro__ }}"}
    with pytest.raises(InputError, match=r"failed \(access to attribute '__class__' of 'list' object is unsafe.\)"):
        Tokenizer.from_files(unsafe).render_chat(HELLO)


def test_a_prompt_of_nothing_is_refused() -> None:
    files = tokenizer_files_from_gguf(
        phi3_fields() | {"tokenizer.chat_template": "{{ messages[0].content }}"}, "m.gguf"
    )
    with pytest.raises(
        InputError, match=r"chat: the prompt is empty: no message holds a text, and the chat template adds"
    ):
        Tokenizer.from_files(files).encode_chat([{"role": "user", "content": ""}])


def test_half_of_a_character_is_refused() -> None:
    tokenizer = Tokenizer.from_files(tokenizer_files_from_gguf(phi3_fields(), "m.gguf"))
    for text in ("a\ud800", "\udcff"):
        with pytest.raises(InputError, match=r"the text holds half of a character at \d: '\\ud"):
            tokenizer.encode(text)


def test_space_after_a_special_token_is_streamed() -> None:
    tokenizer = Tokenizer.from_files(tokenizer_files_from_gguf(phi3_fields(), "m.gguf"))
    ids = tokenizer.encode("the<s> cat <|end|>in</s></s> hello")
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)
    assert streamed(tokenizer, [1, 1, *tokenizer.encode("the")]) == tokenizer.decode([1, 1, *tokenizer.encode("the")])


def test_truncation_and_padding_are_switched_off() -> None:
    files = tokenizer_files_from_gguf(phi3_fields(), "m.gguf")
    want = Tokenizer.from_files(files).encode("the cat in the cat")
    data = json.loads(files["tokenizer.json"])
    data["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    pad = {"pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>", "pad_to_multiple_of": None}
    data["padding"] = {"strategy": {"Fixed": 64}, "direction": "Right", **pad}
    assert (
        Tokenizer.from_files({**files, "tokenizer.json": json.dumps(data).encode()}).encode("the cat in the cat")
        == want
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "Prepend", "prepend": 5}}, r"tokenizer: tokenizer.json cannot be read \("),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, r"tokenizer: tokenizer.json cannot be read \("),
        (
            {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}},
            r"tokenizer.json cannot be read \(range end index",  # a panic
        ),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 40}},
            r"tokenizer.json: its steps may make a text 1.1e\+12 times longer, expected 64 at most",
        ),
        ({"decoder": {"type": "Sequence", "decoders": [REPLACE] * 7}}, r"its steps may make a text 128 times longer"),
        (
            {"normalizer": {"type": "Replace", "pattern": {"Regex": "a*"}, "content": "b" * 65}},
            r"a text 65 times longer",
        ),
    ],
)
def test_refuses_a_tokenizer(change: dict[str, Any], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    files = tokenizer_files_from_gguf(phi3_fields(), "m.gguf")
    data = {**json.loads(files["tokenizer.json"]), **change}
    with pytest.raises(InputError, match=message):
        Tokenizer.from_files({**files, "tokenizer.json": json.dumps(data).encode()})
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", b"[]", "tokenizer_config.json: expected a JSON object, got list"),
        ("tokenizer_config.json", b"[" * 100_000, "tokenizer_config.json: not valid JSON"),
        ("tokenizer_config.json", b'{"chat_template": 5}', "tokenizer: chat_template is 5, expected a text"),
        ("tokenizer_config.json", b'{"chat_template": "{% for %}"}', "chat: the chat template failed"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is not UTF-8 text .byte 0."),
        ("tokenizer.json", b"\xff", "tokenizer.json is not UTF-8 text .byte 0."),
    ],
)
def test_refuses_what_is_no_configuration(name: str, content: bytes, message: str) -> None:
    files = tokenizer_files_from_gguf(phi3_fields(), "m.gguf")
    with pytest.raises(InputError, match=message):
        Tokenizer.from_files({**files, name: content})


def test_no_tokenizer_no_files() -> None:
    assert tokenizer_files_from_gguf({"general.architecture": "phi3"}, "m.gguf") == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (phi3_fields(model="t5"), "m.gguf: unknown tokenizer 't5', expected gpt2 or llama"),
        (byte_level_fields("tekken"), "m.gguf: unknown tokenizer cut 'tekken' .*, expected one that llama.cpp"),
        (
            phi3_fields(scores=[0.5]),
            "m.gguf: damaged tokenizer: tokenizer.ggml.scores has 1 values for 305 tokens; convert",
        ),
        (
            phi3_fields() | {"tokenizer.ggml.tokens": []},
            "m.gguf: damaged tokenizer: tokenizer.ggml.tokens has 0 values; convert",
        ),
        (byte_level_fields("smollm") | {"tokenizer.ggml.merges": ["x yz"]}, r"tokenizer.ggml.merges \(.*; convert"),
        (byte_level_fields("smollm") | {"tokenizer.ggml.merges": []}, "tokenizer.ggml.merges is missing; convert"),
        (phi3_fields(bos_token_id=9999), "m.gguf: damaged tokenizer: bos_token_id is 9999, but there are 305 tokens"),
    ],
)
def test_refuses_metadata(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokenizer_files_from_gguf(fields, "m.gguf")


def test_refuses_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer.json, got nothing; save the model with a fast tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(InputError, match=r"tokenizer: no tokenizer.json, got tokenizer.model;"):
        Tokenizer.from_files({"tokenizer.model": b""})
    with pytest.raises(InputError, match=r"tokenizer.json cannot be read \(expected value at line 1 column 1\)"):
        Tokenizer.from_files({"tokenizer.json": b"?"})
    files = tokenizer_files_from_gguf(phi3_fields(), "m.gguf")
    with pytest.raises(InputError, match=r"tokenizer_config.json: not valid JSON \(expected value at line 1"):
        Tokenizer.from_files({**files, "tokenizer_config.json": b"?"})
    with pytest.raises(
        InputError, match=r"chat: this model has no chat template; expected one in tokenizer_config.json"
    ):
        Tokenizer.from_files(files).encode_chat(HELLO)
