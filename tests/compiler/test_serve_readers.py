"""Clients that read slowly, ask for very much, or look closely: nobody else waits for them, and every byte is told."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from letters_bundle import letters_bundle
from served import MODEL, post, said, served
from tokenizers import Tokenizer as Library
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from pocketphi.artifacts.bundle import Bundle, write_manifest
from pocketphi.compiler.serve.answers import Chooser
from pocketphi.compiler.serve.prompts import Prompts
from pocketphi.compiler.talker import Talker

ROOM = 200
FOX = "a\U0001f98ab\u00e9!"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its 256 tokens are the bytes."""
    made = letters_bundle(tmp_path_factory.mktemp("serve") / "bundle")
    library = Library(BPE({piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.save(str(made / "tokenizer.json"))
    write_manifest(made, Bundle.open(made, check=False).manifest)
    return made


@pytest.fixture(scope="module")
def port(bundle: Path) -> Iterator[int]:
    with served(bundle, room=ROOM) as at:
        yield at


@pytest.fixture(scope="module")
def client(port: int) -> Any:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=30)


@pytest.fixture
def says_fox(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer is FOX, over and over."""
    tokens = Talker(bundle, ROOM).tokenizer.encode(FOX)

    def choose(self: Chooser, logits: torch.Tensor) -> int:
        place = getattr(self, "place", 0)
        self.place = place + 1  # type: ignore[attr-defined]
        return tokens[place % len(tokens)]

    monkeypatch.setattr(Chooser, "_choose", choose)


def send(port: int, body: dict[str, Any]) -> socket.socket:
    """A client that has asked, and has read nothing."""
    asking = socket.socket()
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    asking.connect(("127.0.0.1", port))
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    asking.sendall(head.encode() + content)
    return asking


def test_one_who_does_not_read_keeps_nobody_waiting(port: int, client: Any) -> None:
    """What it asked for is more than all the buffers on the way hold."""
    much = {
        "model": MODEL,
        "prompt": ["a", "b", "c"],
        "max_tokens": 150,
        "logprobs": 20,
        "stream": True,
        "temperature": 0,
    }
    with send(port, much) as first, send(port, much) as second:
        time.sleep(0.5)
        assert client.completions.create(model=MODEL, prompt="c", max_tokens=2).choices[0].finish_reason == "length"
        first.settimeout(30)
        came = b""
        while not came.endswith(b"0\r\n\r\n"):
            came += first.recv(1 << 16)
        assert second.fileno() >= 0
    ended = [line for line in came.decode().splitlines() if '"finish_reason": "length"' in line]
    assert (len(ended), came.count(b"[DONE]"), len(came) > 150_000) == (3, 1, True)


def test_a_prompt_of_megabytes_is_refused_at_once(port: int, bundle: Path) -> None:
    text = "a b " * (1 << 13)
    for path, body in (
        ("/v1/completions", {"model": MODEL, "prompt": text}),
        ("/v1/chat/completions", {"model": MODEL, "messages": said(text)}),
        ("/v1/chat/completions", {"model": MODEL, "messages": said(text) * 40}),
    ):
        status, answer = post(port, body, path)
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded"), answer
        assert "and the 200 tokens of the cache hold 200 at the very most" in answer["error"]["message"]
    most = Prompts(Talker(bundle, ROOM)).most_bytes
    assert most == 1024 * 8 * ROOM + (1 << 16)
    status, answer = post(port, b" " * (most + 1))
    assert (status, answer["error"]["code"]) == (413, "context_length_exceeded")
    assert f"more than {most:,} bytes" in answer["error"]["message"]


def test_who_has_the_whole_bundle_is_told_to_be_short(port: int, bundle: Path) -> None:
    with served(bundle, room=Talker(bundle, ROOM).held) as at:
        count = Talker(bundle, ROOM).held
        _, answer = post(at, {"model": MODEL, "prompt": "x" * count}, "/v1/completions")
    assert answer["error"]["message"].endswith("with at least one of an answer; make the prompt shorter")


def test_limits_and_messages_as_openai_has_them(client: Any) -> None:
    messages = [*said("a"), {"role": "assistant", "content": None}, *said("b")]
    made = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=3, extra_body={"max_completion_tokens": None}
    )
    assert made.usage.completion_tokens == 3


@pytest.mark.usefixtures("says_fox")
def test_bytes_are_those_of_the_answer(client: Any) -> None:
    size = len(FOX.encode())
    asked = {"model": MODEL, "messages": said("a"), "max_tokens": size, "logprobs": True, "top_logprobs": 1}
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.message.content == FOX
    assert b"".join(bytes(one.bytes) for one in choice.logprobs.content) == FOX.encode()
    assert all(len(top.bytes) == 1 for one in choice.logprobs.content for top in one.top_logprobs)
    streamed = [one.choices[0].logprobs for one in client.chat.completions.create(**asked, stream=True)]
    assert b"".join(bytes(one.bytes) for some in streamed if some for one in some.content) == FOX.encode()


@pytest.mark.usefixtures("says_fox")
@pytest.mark.parametrize("echo", [False, True])
def test_places_are_those_in_the_text(client: Any, echo: bool) -> None:
    size = len(FOX.encode())
    asked = {"model": MODEL, "prompt": FOX[:2], "max_tokens": 2 * size, "logprobs": 1, "echo": echo}
    choice = client.completions.create(**asked).choices[0]
    text = (FOX[:2] if echo else "") + FOX * 2
    expected = [place for place, one in enumerate(text) for _ in one.encode()]
    assert (choice.text, choice.logprobs.text_offset) == (text, expected)
    streamed = [one.choices[0].logprobs for one in client.completions.create(**asked, stream=True)]
    assert [place for one in streamed if one for place in one.text_offset] == expected


def test_an_answer_goes_on_with_its_text(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SentencePiece writes the space into a token, and its decoder takes it from the start of a text alone."""
    other = shutil.copytree(bundle, tmp_path / "bundle")
    space = "\u2581"
    library = Library(
        BPE({piece: i for i, piece in enumerate(["<s>", "<u>", "<e>", space, *map(chr, range(97, 123))])}, [])
    )
    library.normalizer = normalizers.Sequence([normalizers.Prepend(space), normalizers.Replace(" ", space)])
    library.decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    library.save(str(other / "tokenizer.json"))
    write_manifest(other, Bundle.open(other, check=False).manifest)
    monkeypatch.setattr(Chooser, "_choose", lambda self, logits: 3 + int(getattr(self, "last", None) is not None))
    with served(other, room=ROOM) as at:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{at}/v1", api_key="none", max_retries=0, timeout=30)
        asked: Any = {"model": MODEL, "prompt": "ab c", "max_tokens": 2, "logprobs": 0}
        for echo in (False, True):
            text = "ab c a" if echo else " a"
            choice = client.completions.create(**asked, echo=echo).choices[0]
            assert (choice.text, "".join(choice.logprobs.tokens)) == (text, text)
            assert choice.logprobs.text_offset == ([0] if echo else []) + list(range(len(text)))
            pieces = [one.choices[0] for one in client.completions.create(**asked, echo=echo, stream=True)]
            assert "".join(one.text for one in pieces) == text
        chat = client.chat.completions.create(model=MODEL, messages=said("a"), max_tokens=2, logprobs=True).choices[0]
        assert (chat.message.content, [one.token for one in chat.logprobs.content]) == ("a", ["", "a"])


def test_a_method_that_an_address_does_not_have(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/v1/completions")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
