"""The address: OpenAI's own client against it, greedy answers of `Chat` as the reference, many at once, and who may ask."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from letters_bundle import letters_bundle
from served import MODEL, ROOM, post, said, served

from pocketphi.compiler.chat import Chat
from pocketphi.compiler.cli import main
from pocketphi.compiler.serve import answers
from pocketphi.compiler.serve.answers import Answers, Chooser, Holder
from pocketphi.compiler.serve.protocol import Wanted
from pocketphi.compiler.talker import Talker
from pocketphi.targets.ort_mobile.host import OrtRunner


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters_bundle(tmp_path_factory.mktemp("serve") / "bundle")


@pytest.fixture(scope="module")
def port(bundle: Path) -> Iterator[int]:
    with served(bundle) as at:
        yield at


@pytest.fixture(scope="module")
def client(port: int) -> Any:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)


def ask(client: Any, text: str = "Hello", **more: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=said(text), **{"temperature": 0, **more})


def test_an_answer_is_that_of_chat(client: Any, bundle: Path) -> None:
    expected = Chat(bundle, ROOM).say("Hello")
    whole = ask(client)
    (choice,) = whole.choices
    assert choice.message.content == expected.text
    assert choice.finish_reason == "length"  # the cache is full
    prompt = len("<user>Hello</><assistant>")
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (prompt, expected.tokens)
    pieces = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(one.choices[0].delta.content or "" for one in pieces if one.choices) == expected.text
    assert [one.choices[0].finish_reason for one in pieces if one.choices][-1] == "length"
    assert (pieces[0].choices[0].delta.role, pieces[-1].usage) == ("assistant", whole.usage)
    assert len({one.id for one in pieces}) == 1


def test_a_conversation_goes_on(client: Any, bundle: Path) -> None:
    chat = Chat(bundle, ROOM)
    first = chat.say("Hi", limit=5).text
    messages = [*said("Hi"), {"role": "assistant", "content": first}, *said("So?")]
    made = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=6)
    assert made.choices[0].message.content == chat.say("So?", limit=6).text
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    made = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": parts}], temperature=0, max_completion_tokens=5
    )
    assert made.choices[0].message.content == first


def test_a_shipped_prefix_is_the_system_message_where_none_is_sent(bundle: Path) -> None:
    with served(bundle, shipped="Be brief.") as at:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{at}/v1", api_key="none", max_retries=0, timeout=120)

        def asked(*before: dict[str, str]) -> tuple[str | None, int]:
            messages: Any = [*before, *said("Hello")]
            made = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=4, temperature=0)
            assert made.usage is not None
            return made.choices[0].message.content, made.usage.prompt_tokens

        assert asked() == asked({"role": "system", "content": "Be brief."})
        assert asked({"role": "system", "content": "No."})[1] < asked()[1]


def test_it_stops_where_it_is_told(client: Any) -> None:
    text = ask(client, max_tokens=24).choices[0].message.content
    stop = text[9:12]
    made = ask(client, stop=[stop, "\n\n"], max_tokens=24).choices[0]
    assert (made.message.content, made.finish_reason) == (text[: text.index(stop)], "stop")
    pieces = list(ask(client, stop=stop, max_tokens=24, stream=True))
    assert "".join(one.choices[0].delta.content or "" for one in pieces) == text[: text.index(stop)]


def test_text_that_may_begin_a_stop_waits() -> None:
    holder = Holder(["END", "EX"])
    assert [holder.add(piece) for piece in ("aE", "N", "bE", "NDc")] == [
        ("a", False),
        ("", False),
        ("ENb", False),
        ("", True),
    ]
    holder.add("xE")
    assert holder.rest("") == "E"
    long = Holder(["x" * (1 << 22)])  # of which a token is compared with its own length alone
    assert [long.add(piece) for piece in ("x", "xy")] == [("", False), ("xxy", False)]


def test_chance_is_what_was_asked_for(client: Any) -> None:
    def made(**more: Any) -> str:
        return str(ask(client, max_tokens=20, **more).choices[0].message.content)

    assert made(temperature=1.5, seed=7) == made(temperature=1.5, seed=7) != made(temperature=1.5, seed=8)
    assert made(temperature=1.5, seed=7, top_p=1e-9) == made()
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    chooser = Chooser(Wanted(None, 1.0, 0.75, 3, (), None, False, False))
    counts = torch.bincount(torch.tensor([chooser(logits) for _ in range(4000)]), minlength=4)
    share, spread = 0.5 / 0.8, math.sqrt(4000 * 0.625 * 0.375)
    assert counts[2:].tolist() == [0, 0]  # the first two reach 0.75
    assert abs(int(counts[0]) - 4000 * share) < 5 * spread


def test_how_likely_a_prompt_is(client: Any, bundle: Path) -> None:
    """As lm-eval asks it: tokens, echo, one more token. The runner by itself is the reference."""
    talker = Talker(bundle, ROOM)
    prompts = [talker.tokenizer.encode("The quick fox"), talker.tokenizer.encode("jumps")]
    made = client.completions.create(
        model=MODEL, prompt=prompts, max_tokens=1, logprobs=2, echo=True, temperature=0, seed=1
    )
    for choice, prompt in zip(made.choices, prompts):
        logits = OrtRunner(bundle, ROOM).step(torch.tensor([prompt]))  # the last place alone
        found = choice.logprobs
        assert len(found.tokens) == len(prompt) + 1
        assert choice.text == "".join(found.tokens)
        assert found.token_logprobs[0] is None
        rows = [OrtRunner(bundle, ROOM).step(torch.tensor([prompt[: i + 1]]))[0, -1] for i in (0, 3)]
        for i, row in zip((0, 3), rows):
            expected = float(row.log_softmax(-1)[prompt[i + 1]])
            assert found.token_logprobs[i + 1] == pytest.approx(expected, abs=1e-4)  # float32 over a few layers
            assert max(found.top_logprobs[i + 1].values()) == pytest.approx(float(row.log_softmax(-1).max()), abs=1e-4)
        assert found.token_logprobs[-1] == pytest.approx(float(logits[0, -1].log_softmax(-1).max()), abs=1e-4)
    assert made.usage.prompt_tokens == sum(map(len, prompts))
    pieces = list(
        client.completions.create(model=MODEL, prompt="The", max_tokens=2, echo=True, temperature=0, stream=True)
    )
    whole = client.completions.create(model=MODEL, prompt="The", max_tokens=2, echo=True, temperature=0)
    assert "".join(one.choices[0].text for one in pieces) == whole.choices[0].text
    likely = ask(client, max_tokens=3, logprobs=True, top_logprobs=2).choices[0]
    assert "".join(one.token for one in likely.logprobs.content) == likely.message.content
    assert all(one.logprob == one.top_logprobs[0].logprob for one in likely.logprobs.content)


def test_models(client: Any) -> None:
    assert [one.id for one in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "pocketphi"
    with pytest.raises(openai.NotFoundError, match="there is no model gpt-4; this is random:tiny") as caught:
        client.chat.completions.create(model="gpt-4", messages=said("Hi"))
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"messages": []}, r"messages is \[\], expected a list of messages"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages.0.role is 'boss', expected one of system"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "this model reads text only"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "the request is no JSON: .*hex escape at line 1"),
        ({"messages": said("x" * 200)}, "the prompt has 220 tokens, and the cache holds 128"),
        ({"temperature": 3}, "temperature is 3, expected a number from 0 to 2"),
        ({"temperature": True}, "temperature is True, expected"),
        ({"temperature": 10**400}, "temperature is a number of 1329 bits, expected a number from 0 to 2"),
        ({"top_p": -(10**400)}, "top_p is a number of 1329 bits, expected"),
        ({"seed": 10**400}, "seed is a number of 1329 bits, expected a whole number"),
        ({"n": 10**400}, "n: a number of 1329 bits is not possible here"),
        ({"model": ["x" * 100]}, "there is no model"),
        ({"\ud800": 1}, "the request is no JSON"),
        ({"metadata": {"a": ["\udc00"]}}, "the request is no JSON"),
        ({"x" * 10_000: 1}, "unknown key 'x+…; expected one of"),
        ({"top_p": -1}, "top_p is -1, expected a number from 0 to 1"),
        ({"max_tokens": 0}, "max_tokens is 0, expected a whole number from 1"),
        ({"max_tokens": 0, "max_completion_tokens": None}, "max_tokens is 0, expected"),
        ({"max_tokens": 5, "max_completion_tokens": 0}, "max_completion_tokens is 0, expected"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content is None, expected a text"),
        ({"stop": [""]}, "none empty"),
        ({"n": 2}, "n: 2 is not possible here; it may be nothing or 1"),
        ({"tools": [{"type": "function"}]}, "tools: .* is not possible here"),
        ({"stream_options": {}}, "expected an object, with stream = true"),
        ({"stream": True, "stream_options": {"include_usage": "no"}}, "include_usage is 'no', expected true or false"),
        ({"top_logprobs": 2}, "needs logprobs to be true"),
        ({"temprature": 1}, "unknown key temprature; did you mean temperature"),
    ],
)
def test_what_cannot_be_answered(port: int, more: dict[str, Any], words: str) -> None:
    status, body = post(port, {"model": MODEL, "messages": said("Hi"), **more})
    assert (status, body["error"]["type"]) == (404 if "model" in more else 400, "invalid_request_error")
    assert re.search(words, body["error"]["message"])


def test_what_is_no_request(port: int) -> None:
    for content, status, words in (
        (b"{", 400, "no JSON"),
        (b"[" * 100_000, 400, "no JSON"),
        (b'{"model": NaN}', 400, "no JSON: expected value at line 1"),
        (b"[]", 400, "expected an object"),
        (b" " * (17 << 20), 413, "more than 16,842,752 bytes"),
    ):
        came, body = post(port, content)
        assert (came, words in body["error"]["message"]) == (status, True)
    assert post(port, {}, "/v1/embeddings")[0] == 404
    status, body = post(port, {}, "/v1/models")
    assert (status, body["error"]["code"]) == (405, "method_not_allowed")
    assert body["error"]["message"] == "POST /v1/models: it may be asked with GET, HEAD"
    for path in (
        "/manifest.json",
        "/../manifest.json",
        "/v1/models/../../manifest.json",
        "/v1/models/%2e%2e%2fconfig.json",
    ):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (answer.status, "error" in json.loads(answer.read())) == (404, True)


def test_a_page_of_somebody_else_may_not_ask(port: int) -> None:
    hello = {"model": MODEL, "messages": said("Hi"), "max_tokens": 1}
    for headers in (
        {"Host": "evil.example"},
        {"Host": f"evil.example:{port}"},
        {"Host": f"localhost.evil.example:{port}"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Host": f"localhost:{port}", "Origin": "http://localhost:1"},
        {"Sec_Fetch_Site": "cross-site"},
    ):
        status, body = post(port, hello, **headers)
        assert (status, body["error"]["code"]) == (403, "forbidden"), headers
    for headers in (
        {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"},
        {"Host": "[::1]"},
        {"Host": "192.168.1.5:80"},
        {},
    ):
        assert post(port, hello, **headers)[0] == 200, headers


def test_a_hundred_in_turn_and_eight_at_once(client: Any) -> None:
    """None is lost, and each has its own answer."""
    alone = {str(i): ask(client, str(i), max_tokens=2).choices[0].message.content for i in range(8)}
    assert len(set(alone.values())) > 4
    for i in range(100):
        assert ask(client, str(i % 8), max_tokens=2).choices[0].message.content == alone[str(i % 8)]

    def one(i: int) -> bool:
        if i % 2:
            return bool(ask(client, str(i % 8), max_tokens=2).choices[0].message.content == alone[str(i % 8)])
        pieces = ask(client, str(i % 8), max_tokens=2, stream=True)
        return "".join(piece.choices[0].delta.content or "" for piece in pieces) == alone[str(i % 8)]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(32)))


@pytest.mark.parametrize("stream", [True, False])
def test_nobody_waits_for_one_who_left(port: int, client: Any, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    real = Answers._run

    def slow(self: Answers, engine: Any, tokens: list[int]) -> int:
        steps.append(len(tokens))
        time.sleep(0.05)
        return real(self, engine, tokens)

    monkeypatch.setattr(answers.Answers, "_run", slow)
    content = json.dumps({"model": MODEL, "messages": said("Hello"), "temperature": 0, "stream": stream}).encode()
    leaving = socket.create_connection(("127.0.0.1", port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    leaving.sendall(head.encode() + content)
    while len(steps) < 4:
        time.sleep(0.01)
    leaving.close()
    assert ask(client, "Yes", max_tokens=2).choices[0].finish_reason == "length"
    assert len(steps) < 4 + 10 + 2  # of the hundred that it would have made


def test_a_failure_in_the_middle_is_said(port: int, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = OrtRunner.step

    def breaks(self: OrtRunner, tokens: torch.Tensor) -> torch.Tensor:
        if tokens.shape[1] == 1:
            raise RuntimeError("the model broke")
        return real(self, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(OrtRunner, "step", breaks)
        status, body = post(port, {"model": MODEL, "messages": said("Hi")})
        assert (status, body["error"]["type"]) == (500, "server_error")
        with pytest.raises(openai.APIError, match="the model broke"):
            list(ask(client, "Hi", stream=True))
    assert ask(client, "Hi", max_tokens=3).choices[0].message.content


def test_another_target(tmp_path: Path) -> None:
    """tests/compiler/test_models.py has the third, where its library is built already."""
    made = letters_bundle(tmp_path / "bundle", "coreml", context=64)
    expected = Chat(made, 48).say("Hey", limit=6).text
    found = Answers(Talker(made, 48))
    tokens = found.talker.encode_chat([("user", "Hey")])
    greedy = Wanted(6, 0.0, 1.0, None, (), None, False, False)
    assert "".join(piece.text for piece in found.pieces(tokens, greedy)) == expected


@contextlib.contextmanager
def started(bundle: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """The command in a process of its own, and a client of it."""
    command = [sys.executable, "-m", "pocketphi.compiler", "serve", str(bundle), "--port", "0", *more]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.fullmatch(
            r"random:tiny: (http://127\.0\.0\.1:\d+)/ for people, /v1 for programs \(Ctrl-C ends it\)\n", line
        )
        assert found is not None, line
        yield process, openai.OpenAI(base_url=f"{found[1]}/v1", api_key="none", max_retries=0, timeout=60)
        process.kill()


STOPPED = "pocketphi: stopped; nothing was left half-written\n"


def test_the_command(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with started(bundle, "--max-tokens", "64") as (process, client):
        assert ask(client, max_tokens=2).usage.completion_tokens == 2
        process.send_signal(signal.SIGINT)
        assert (process.wait(30), process.stderr and process.stderr.read()) == (130, STOPPED)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(bundle), "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot listen there (Address already in use); choose another port, or 0" in capsys.readouterr().err
    assert main(["serve", str(bundle), "--host", "nowhere.invalid"]) == 2
    assert "--host nowhere.invalid: is no address or name of this machine (" in capsys.readouterr().err
    assert main(["serve", str(bundle), "--host", "192.0.2.1"]) == 2
    assert "that is no address of this machine: choose another host" in capsys.readouterr().err
    assert main(["serve", str(bundle), "--port", "70000"]) == 2
    assert main(["serve", str(bundle), "--json"]) == 2
    assert "--json: a server has no end to print" in capsys.readouterr().err


SLOW = """
import time
from pocketphi.compiler.serve import answers, server
real = answers.Answers._run
def slow(self, engine, tokens):
    time.sleep(0.1)
    return real(self, engine, tokens)
answers.Answers._run = slow
server.FINISH_SECONDS = {seconds}
from pocketphi.compiler.start import entry
raise SystemExit(entry())
"""


@pytest.mark.parametrize(("seconds", "sent"), [(30, signal.SIGINT), (0.2, signal.SIGHUP)])
def test_answers_are_finished_or_said_to_be_stopped(bundle: Path, seconds: float, sent: signal.Signals) -> None:
    command = [sys.executable, "-c", SLOW.format(seconds=seconds), "serve", str(bundle), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stderr is not None
        port = int(re.findall(r":(\d+)/", process.stderr.readline())[0])
        hello = {"model": MODEL, "messages": said("Hi"), "max_tokens": 8, "temperature": 0, "stream": True}
        waiting = {**hello, "stream": False}
        with ThreadPoolExecutor(1) as pool:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", "/v1/chat/completions", json.dumps(hello).encode())
            answer = connection.getresponse()
            answer.readline()
            second = pool.submit(post, port, waiting)
            time.sleep(0.2)
            process.send_signal(sent)
            lines = [line.decode().strip() for line in answer if line.strip()]
            status, body = second.result()
        assert (process.wait(30), process.stderr.read()) == (130, STOPPED)
    assert lines[-1] == "data: [DONE]"
    if seconds > 20:
        assert (status, '"finish_reason": "length"' in lines[-2]) == (200, True)
    else:
        assert (status, body["error"]["code"]) == (503, "server_stopped")
        assert json.loads(lines[-2].removeprefix("data: "))["error"] == body["error"]
