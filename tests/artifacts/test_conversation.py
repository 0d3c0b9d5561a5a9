"""The reference of conversations: by hand, and its vectors against each prompt run from the start."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pocketphi.artifacts.kits.conversation import Conversation, MessageTooLong
from pocketphi.artifacts.kits.conversation_vectors import CASES, FORMAT, RULES, STOP, SYSTEMS, Toy, encode, play
from pocketphi.artifacts.kits.reference import Call, Messages, Rules


class Letters:
    """After a prompt it says a, b, c, …; it keeps the calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def run(self, calls: Sequence[Call], tokens: Sequence[int]) -> int:
        self.calls += calls
        return ord("a") if calls[-1].function == "prefill" else tokens[-1] + 1

    def step(self, token: int) -> str:
        return chr(token)


def plain(messages: Messages) -> list[int]:
    """`u` or `a`, the text, and a full stop; then `a`."""
    return [ord(c) for c in "".join(f"{role[0]}{text}." for role, text in messages) + "a"]


def test_a_turn_by_hand() -> None:
    engine = Letters()
    talk = Conversation(Rules(20, 0, 0, None, frozenset({ord("d")})), plain)
    assert list(talk.send("Hi", 9, engine, engine)) == ["a", "b", "c"]
    assert talk.messages == [("user", "Hi"), ("assistant", "abc")]
    assert talk.seen == [ord(c) for c in "uHi.aabc"]
    assert engine.calls == [Call("prefill", 0, 5), Call("decode", 5, 1), Call("decode", 6, 1), Call("decode", 7, 1)]
    assert list(talk.send("?", 2, engine, engine)) == ["a", "b"]
    assert engine.calls[4:] == [Call("prefill", 8, 5), Call("decode", 13, 1)]
    with pytest.raises(MessageTooLong) as caught:
        list(talk.send("12345", 2, engine, engine))
    assert str(caught.value) == (
        "the message has 5 tokens, and there is room for 0: the cache holds 20, the conversation and its template take 19, "
        "and an answer needs at least 1"
    )
    assert talk.messages[-2:] == [("user", "?"), ("assistant", "ab")]


def test_what_a_stop_and_a_failure_leave() -> None:
    engine = Letters()
    talk = Conversation(Rules(99, 0, 0, None, frozenset()), plain, "S")
    pieces = talk.send("Hi", 9, engine, engine)
    assert (next(pieces), next(pieces)) == ("a", "b")
    pieces.close()
    assert talk.messages == [("system", "S"), ("user", "Hi"), ("assistant", "ab")]
    pieces = talk.send("And?", 9, engine, engine)
    next(pieces)
    with pytest.raises(KeyboardInterrupt):
        pieces.throw(KeyboardInterrupt)
    assert talk.messages[-1] == ("assistant", "a")
    talk.reset()
    assert talk.messages == [("system", "S")]


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", CASES)
def test_every_answer_is_that_of_its_messages_alone(name: str, system: str | None, rules: Rules) -> None:
    """A new model that reads the whole prompt says the same: nothing of what was refused, failed or stopped is in the cache."""
    said: Messages = [("system", system)] if system else []
    start = list(said)
    for step in (step for group in play(CASES[name], rules, system) for step in group):
        if "reset" in step:
            said = list(start)
        elif step["pieces"] or len(step["messages"]) > len(said):
            prompt = encode([*said, ("user", step["send"])])
            assert len(prompt) < rules.context
            expected = []
            for _ in step["pieces"]:
                token = Toy().run([Call("prefill", 0, len(prompt))], prompt)
                assert token != STOP
                expected.append(chr(token))
                prompt.append(token)
            assert step["pieces"] == expected
            said += [("user", step["send"]), ("assistant", "".join(expected))]
        else:
            assert step["error"]
        assert step["messages"] == said


def test_the_toy_of_the_vectors() -> None:
    assert FORMAT.render([("user", " a ")]) == "<d><u>a</u><a>"
    hashed = (31 * (31 * 1 + 10) + 20) % 65521  # 1291, which is 15 more than a multiple of 29
    assert (hashed % 29, Toy().run([Call("prefill", 0, 2)], [10, 20])) == (15, 97 + 15)
