"""A conversation with a bundle: what is too long, stopped, or fails. Greedy answers of a fresh runner are the reference."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from pocketphi.artifacts.kits.conversation import MessageTooLong
from pocketphi.compiler import cli
from pocketphi.compiler.chat import _OPTIONS, Chat
from pocketphi.compiler.numerics import generate
from pocketphi.graph import stopping
from pocketphi.graph.errors import InputError
from pocketphi.graph.tokenizer import Tokenizer
from pocketphi.targets.ort_mobile.host import OrtRunner

END, ROOM = 2, 128


@pytest.fixture(scope="module")
def bundle(talking_bundle: Path) -> Path:
    return talking_bundle


def greedy(bundle: Path, *turns: str, count: int = 200) -> str:
    """The answer to user's and assistant's messages in turn, of at most `count` tokens, where the cache holds ROOM."""
    roles = ["user", "assistant"] * len(turns)
    tokenizer = Tokenizer.load(bundle)
    prompt = tokenizer.encode_chat([{"role": role, "content": text} for role, text in zip(roles, turns)])
    count = min(count, ROOM - len(prompt))
    made: list[int] = generate(OrtRunner(bundle, ROOM), torch.tensor([prompt]), count)[0][0].tolist()
    return tokenizer.decode(made[: made.index(END)] if END in made else made)


def test_turns(bundle: Path) -> None:
    chat = Chat(bundle, ROOM)
    first = chat.say("Hello")
    assert first.text == greedy(bundle, "Hello")
    assert first.tokens == len(first.text)
    assert Chat(bundle, ROOM).say("Hello", limit=3).text == greedy(bundle, "Hello", count=3)


def test_a_message_that_is_too_long_leaves_no_trace(bundle: Path) -> None:
    chat = Chat(bundle, ROOM)
    said = ("Hi", stopped(chat, "Hi", 4))
    taken = len("<user>Hi</><assistant>" + said[1] + "</><user></><assistant>")
    message = (
        f"the message has 100 tokens, and there is room for {ROOM - 1 - taken}: the cache holds {ROOM}, the conversation "
        f"and its template take {taken}, and an answer needs at least 1; raise --max-tokens, up to 256"
    )
    for _ in range(2):
        with pytest.raises(MessageTooLong) as caught:
            chat.say("x" * 100)
        assert str(caught.value) == message
    just = "y" * (ROOM - 1 - taken)
    assert chat.say(just).text == greedy(bundle, *said, just, count=1)


def test_the_limit_of_the_model_itself(bundle: Path) -> None:
    chat = Chat(bundle)
    with pytest.raises(
        MessageTooLong, match=r"the cache holds 256, .* at least 1; say it in fewer words, or start a new"
    ):
        chat.say("x" * 300)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"max_tokens": 257}, "--max-tokens 257: expected 2 to 256; {} holds no more"),
        ({"max_tokens": 1}, "--max-tokens 1: expected 2 to 256"),
        ({"max_tokens": -5}, "--max-tokens -5: expected 2 to 256"),
        ({"threads": -3}, "--threads -3: expected 0 to 1,024"),
        ({"threads": 100_000}, "--threads 100000: expected 0 to 1,024"),
    ],
)
def test_numbers_out_of_range(numbers: dict[str, int], message: str, bundle: Path) -> None:
    with pytest.raises(InputError) as caught:
        Chat(bundle, **numbers)
    assert str(caught.value) == message.format(bundle)


def stopped(chat: Chat, text: str, after: int) -> str:
    """Ctrl-C while the piece is shown. Returns what was shown."""
    shown: list[str] = []

    def show(piece: str) -> None:
        shown.append(piece)
        if len(shown) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.say(text, show=show)
    return "".join(shown)


@pytest.mark.parametrize("after", [1, 3])
def test_a_stopped_answer_is_what_was_shown(bundle: Path, after: int) -> None:
    chat = Chat(bundle, ROOM)
    shown = stopped(chat, "Hello", after)
    assert shown == greedy(bundle, "Hello")[:after]
    assert chat.say("And?").text == greedy(bundle, "Hello", shown, "And?")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("at", [1, 4])
def test_a_run_that_fails_half_way(bundle: Path, error: type[BaseException], at: int) -> None:
    """The first run is the prompt's: its message was never said."""
    chat = Chat(bundle, ROOM)
    real: Callable[[torch.Tensor], torch.Tensor] = chat._runner.step
    runs = 0

    def step(tokens: torch.Tensor) -> torch.Tensor:
        nonlocal runs
        runs += 1
        logits = real(tokens)  # the cache is longer now, and nobody hears of it
        if runs == at:
            raise error
        return logits

    chat._runner.step = step  # type: ignore[method-assign]
    shown: list[str] = []
    with pytest.raises(error):
        chat.say("Hello", show=shown.append)
    assert len(shown) == at - 1
    said = ("Hello", "".join(shown), "And?") if shown else ("And?",)
    assert chat.say("And?").text == greedy(bundle, *said)


def test_two_threads_take_turns(bundle: Path) -> None:
    chat = Chat(bundle, ROOM)
    answers: dict[str, str] = {}
    begun = threading.Event()

    def say(text: str) -> None:
        answers[text] = chat.say(text, show=lambda piece: begun.set()).text

    first = threading.Thread(target=say, args=("Hi",))
    first.start()
    begun.wait(60)
    with pytest.raises(MessageTooLong):  # waited for: the first answer has filled the cache
        chat.say("And?")
    first.join(60)
    assert answers == {"Hi": greedy(bundle, "Hi")}


def test_a_conversation_at_the_prompt(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["x" * 300, "", "Hello", "And?"])
    written: list[str] = []

    def write(text: str) -> None:
        written.append(text)
        if len(written) == 3:
            monkeypatch.setattr(stopping._State, "heard", 1)  # as its handler does
            raise KeyboardInterrupt

    def read(prompt: str) -> Any:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(cli, "_write", write)
    assert cli.main(["chat", str(bundle), "--max-tokens", str(ROOM)]) == 0
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("pocketphi: the message has 300 tokens, and there is room for ")
    shown = "".join(written[:3])
    assert shown == greedy(bundle, "Hello")[:3]
    rest = "".join(written[3:])
    answer = greedy(bundle, "Hello", shown, "And?")
    assert rest.startswith(f"\n  [stopped]\n{answer}\n  [{len(answer)} tokens, ")
    assert not stopping.was_heard()  # the next one stops again, and the end is no stop


@pytest.mark.parametrize("temperature", ["nan", "inf", "-1"])
def test_temperatures_that_are_none(temperature: str, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", str(bundle), "--prompt", "Hello", f"--temperature={temperature}"]) == 2
    assert "expected 0 or a positive number" in capsys.readouterr().err


def test_a_tiny_temperature_is_greedy(bundle: Path) -> None:
    for temperature in (1e-40, 1e-300, 5e-324):
        assert Chat(bundle, ROOM).say("Hello", temperature=temperature, limit=4).text == greedy(
            bundle, "Hello", count=4
        )


def test_a_session_needs_a_runtime_that_keeps_some(bundle: Path, tmp_path: Path) -> None:
    message = "--session: the runtime of ort-mobile keeps no conversations in files; leave it out"
    with pytest.raises(InputError, match=re.escape(message)):
        Chat(bundle, session=tmp_path / "talk")
    assert list(tmp_path.iterdir()) == []


def test_what_the_runtime_says_is_said_as_options() -> None:
    """Its words are those of its sources."""
    sources = resources.files("pocketphi.targets").joinpath("tvm_arm/runtime/model.cc").read_text("utf-8")
    assert [told for told in _OPTIONS if told not in sources] == []


def test_a_target_that_the_bundle_lacks(bundle: Path) -> None:
    with pytest.raises(InputError, match=r"--target tvm-arm: .* holds ort-mobile"):
        Chat(bundle, target="tvm-arm")
