"""The reference of the app kits by hand-computed cases, and chat templates turned into strings."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from pocketphi.artifacts.kits.chat_format import PROBES, read_chat_format
from pocketphi.artifacts.kits.reference import Call, ChatFormat, Messages, Rules, Sampler, SplitMix64, stream
from pocketphi.artifacts.kits.vectors import make_vectors
from pocketphi.graph.chat_template import ChatTemplate
from pocketphi.graph.errors import InputError
from pocketphi.graph.tokenizer import Tokenizer

PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
FIRST_PHI3 = (
    "{{ '<s>' }}{% for message in messages %}{% if (message['role'] == 'user') %}"
    "{{'<|user|>' + '\n' + message['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n'}}"
    "{% elif (message['role'] == 'assistant') %}{{message['content'] + '<|end|>' + '\n'}}{% endif %}{% endfor %}"
)
PHI4 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{{ '<|assistant|>' }}"
)
LLAMA2 = (
    "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% elif m['role'] == 'system' %}{{ raise_exception('no system message') }}"
    "{% else %}{{ ' ' + m['content'] | trim + '</s>' }}{% endif %}{% endfor %}"
)
TRIMS_ALL = PHI4.replace("message['content']", "message['content'] | trim")
TRIMS_SYSTEM = PHI4.replace(
    "message['content']", "(message['content'] | trim if message['role'] == 'system' else message['content'])"
)
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ '<|system|>You help.<|end|>' }}{% endif %}" + PHI4


def renderer(template: str) -> Any:
    from tokenizers import Tokenizer as Library
    from tokenizers.models import BPE

    tokenizer = Tokenizer(Library(BPE()), {}, template)
    return lambda messages: tokenizer.render_chat([{"role": r, "content": c} for r, c in messages])


@pytest.mark.parametrize("template", [PHI3, FIRST_PHI3, PHI4, LLAMA2, DEFAULT_SYSTEM, TRIMS_ALL, TRIMS_SYSTEM])
def test_the_strings_of_a_template_give_its_prompts(template: str) -> None:
    render = renderer(template)
    made = read_chat_format(render, ChatTemplate(template).words)
    checked = [messages for messages in PROBES if all(role in made.roles for role, _ in messages)]
    assert len(checked) >= 5
    for messages in checked:
        assert made.render(messages) == render(messages)


def test_cuts_are_where_a_reader_expects_them() -> None:
    made = read_chat_format(renderer(PHI3))
    assert made == ChatFormat(
        begin="",
        default="",
        roles={
            "user": ("<|user|>\n", "<|end|>\n"),
            "assistant": ("<|assistant|>\n", "<|end|>\n"),
            "system": ("<|system|>\n", "<|end|>\n"),
        },
        answer="<|assistant|>\n",
    )
    assert read_chat_format(renderer(DEFAULT_SYSTEM)).default == "<|system|>You help.<|end|>"
    assert read_chat_format(renderer(LLAMA2)).strips == {"user", "assistant"}
    assert read_chat_format(renderer(TRIMS_ALL)).strips == {"user", "assistant", "system"}
    assert read_chat_format(renderer(TRIMS_SYSTEM)).strips == {"system"}
    assert set(read_chat_format(renderer(FIRST_PHI3)).roles) == {"user", "assistant"}


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{{ messages[-1]['content'] }}",
        "{% for m in messages %}{{ loop.index ~ m['role'] ~ ':' ~ m['content'] ~ '<e>' }}{% endfor %}",
        PHI4.replace("message['content']", "message['content'].lstrip()"),
        PHI4.replace("message['content']", "message['content'].strip(' ')"),
        "{% for m in messages %}{{ '<r>' + m['content'] + ('' if 'a' in m['content'] else '!') + '<e>' }}{% endfor %}",
    ],
)
def test_a_template_that_does_more_is_refused(template: str) -> None:
    with pytest.raises(InputError, match="the chat template does more than write one message after the other"):
        read_chat_format(renderer(template))


@pytest.mark.parametrize(
    "content",
    [
        "message['content'].split('</think>')[-1]",
        "message['content'] | replace('<|', '< |')",
        "message['content'].replace('<|end|>', '')",
        r"message['content'] | replace('\r\n', '\n')",
        "(message['content'][9:] if message['content'].startswith('/no_think') else message['content'])",
        "(message['content'] or 'Go on.')",
        "message['content'] | truncate(1000)",
        "message['content'] | urlize",
    ],
)
def test_a_template_that_looks_into_messages_is_refused(content: str) -> None:
    """The kits would write what a message holds, where the template writes something else."""
    template = PHI4.replace("message['content']", f"({content})")
    with pytest.raises(InputError, match="the chat template does more than write one message after the other"):
        read_chat_format(renderer(template), ChatTemplate(template).words)


def test_a_template_that_forgets_is_refused() -> None:
    template = PHI4.replace("in messages", "in messages[-9:]")
    with pytest.raises(InputError, match="the chat template does more than write one message after the other"):
        read_chat_format(renderer(template))


def test_split_mix_is_the_published_one() -> None:
    """The first numbers of seed 1234567, from the test of the C code at prng.di.unimi.it (Rosetta Code lists them too)."""
    random = SplitMix64(1234567)
    assert [random.next() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_sampling() -> None:
    assert Sampler().choose([1.0, 3.0, 3.0]) == 1
    logits = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
    counts = Counter(Sampler(1.0, seed=seed).choose(logits) for seed in range(4000))
    for token, p in enumerate((0.5, 0.3, 0.15, 0.05)):
        assert abs(counts[token] / 4000 - p) < 4 * math.sqrt(p * (1 - p) / 4000)
    assert {Sampler(1.0, top_k=2, seed=seed).choose(logits) for seed in range(200)} == {0, 1}
    assert {Sampler(1.0, top_p=0.81, seed=seed).choose(logits) for seed in range(400)} == {0, 1, 2}
    assert {Sampler(1.0, top_p=0.0, seed=seed).choose(logits) for seed in range(50)} == {0}
    cold = Counter(Sampler(0.5, seed=seed).choose(logits) for seed in range(4000))
    squares = 0.25 / (0.25 + 0.09 + 0.0225 + 0.0025)
    assert abs(cold[0] / 4000 - squares) < 4 * math.sqrt(squares * (1 - squares) / 4000)


def test_calls() -> None:
    plain = Rules(100, 0, 0, None, frozenset())
    assert plain.calls([], [1, 2, 3]) == [Call("prefill", 0, 3)]
    assert plain.calls([1, 2], [1, 2, 3]) == [Call("decode", 2, 1)]
    assert plain.calls([1, 9], [1, 2, 3]) == [Call("prefill", 0, 3)]
    assert plain.calls([1, 2, 3], [1, 2, 3]) == [Call("prefill", 0, 3)]
    chunks = Rules(10, 4, 10, None, frozenset())
    assert chunks.calls([], list(range(10))) == [
        Call("prefill", 0, 4),
        Call("prefill", 4, 4),
        Call("decode", 8, 1),  # a chunk would reach beyond the cache
        Call("decode", 9, 1),
    ]
    assert chunks.calls([0], [0, 1, 2]) == [Call("prefill", 1, 2)]
    rope = Rules(100, 0, 0, 4, frozenset())
    assert rope.calls([0, 1, 2], [0, 1, 2, 3]) == [Call("decode", 3, 1)]
    assert rope.calls([0, 1, 2, 3], [0, 1, 2, 3, 4]) == [Call("prefill", 0, 5)]  # the factors change here
    assert rope.calls([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]) == [Call("decode", 5, 1)]


def test_ends() -> None:
    rules = Rules(10, 0, 0, None, frozenset({2}))
    assert rules.answer(5, 9, [7, 8, 2, 9]) == ([7, 8], "stop")
    assert rules.answer(5, 2, [7, 8, 2]) == ([7, 8], "limit")
    assert rules.answer(8, 9, [7, 8, 9]) == ([7, 8], "context")


def test_streaming() -> None:
    def decode(ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    assert list(stream(decode, "aé🙂".encode())) == ["a", "", "é", "", "", "", "🙂"]


def test_special_tokens_do_not_begin_a_text_anew() -> None:
    """SentencePiece drops the space that a text begins with, and shows no special tokens."""
    pieces = [" a", "", " b"]

    def decode(ids: list[int]) -> str:
        return "".join(pieces[i] for i in ids).removeprefix(" ")

    assert list(stream(decode, [1, 0, 1, 1, 2, 0])) == ["", "a", "", "", " b", " a"]


def test_vectors_hold_something_of_each() -> None:
    messages: Messages = [("user", "Hi")]
    render = renderer(PHI3)
    vectors = make_vectors(read_chat_format(render), render)
    assert {"messages": messages, "prompt": "<|user|>\nHi<|end|>\n<|assistant|>\n"} in vectors["chat"]
    assert len(vectors["integrity"]["refused"]) == 1000
    assert len({str(steps) for steps in vectors["integrity"]["refused"]}) == 1000
    assert {case["end"] for case in vectors["answers"]} == {"stop", "limit", "context"}
    assert any(len(case["calls"]) > 2 for case in vectors["calls"])
    assert len({tuple(case["tokens"]) for case in vectors["sampling"]}) == len(vectors["sampling"])
    assert any("" in case["texts"] for case in vectors["stream"])
    errors = Counter(
        (step["error"] or "none").split(",")[0]
        for case in vectors["conversations"]["cases"]
        for group in case["groups"]
        for step in group
    )
    assert errors["failed"] > 10
    assert len(errors) >= 10  # the messages that are too long
