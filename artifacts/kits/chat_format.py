"""Read a Jinja chat template by running it: what it writes before and after each message, as an app without Jinja needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from pocketphi.artifacts.kits.reference import WHITE_SPACE, ChatFormat, Messages
from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import show

Render = Callable[[Messages], str]

_MARK = "\N{PILCROW SIGN}%d\N{PILCROW SIGN}"  # nothing that a template writes itself


def read_chat_format(render: Render, words: Iterable[str] = ()) -> ChatFormat:
    """render: (role, content) pairs → prompt; words: texts in the template, which it may look for in a message.

    Raises InputError for a template that does more than join messages.
    """
    try:
        made = _read(render)
    except ValueError:
        raise InputError(f"the chat template {_WANT}") from None
    for messages in [*PROBES, *_LONG, *_holding(words, "system" in made.roles)]:
        if any(role not in made.roles for role, _ in messages):
            continue
        want, came = render(messages), made.render(messages)
        if want != came:
            shown = [show(what, 200) for what in (messages, want, came)]
            raise InputError(f"the chat template {_WANT}; for {shown[0]} it gives {shown[1]}, its parts {shown[2]}")
    return made


_WANT = "does more than write one message after the other, which the kits cannot do without Jinja; simplify it"

PROBES: list[Messages] = [
    [("user", "Hi")],
    [("system", "Be brief."), ("user", "Hi")],
    [("system", " \n Be brief.\n\n"), ("user", "Hi")],
    [("user", "Hi"), ("assistant", "Hello!"), ("user", "Who are you?")],
    [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
    [("user", "  white space \n"), ("assistant", "\n x "), ("user", "line\nline\n\n")],
    [("system", " \n S\n\n"), ("user", "\ta ")],
    [("user", f"{WHITE_SPACE}\u200b x{WHITE_SPACE}"), ("assistant", "\u3000y\xa0"), ("user", "\x0bz\x1f")],
    [("user", "")],
    [("user", "{{ 1 }} <b> \\ \" ' é 日本 \u2028 🙂 $")],
    [("user", "a"), ("assistant", ""), ("user", "b")],
    [("user", "a"), ("assistant", "<think>\nhm\n</think>\n\nb"), ("user", "c")],
]

_LONG: list[Messages] = [
    [("system", "S"), *[("user", "a"), ("assistant", "b")] * 20, ("user", "c")],
    [("user", "a"), ("assistant", "https://example.org/ one word, " * 150), ("user", "https://example.org/ b " * 200)],
]
"""A template may keep the last messages only, or cut a text."""


def _holding(words: Iterable[str], with_system: bool) -> Iterator[Messages]:
    """Messages with a word that the template names at their start, at their end, and in between, and nothing else."""
    for word in words:
        for content in (word, f"{word}a", f"a{word}", f"a {word} {word} b"):
            yield [
                *([("system", content)] if with_system else []),
                ("user", content),
                ("assistant", content),
                ("user", content),
            ]


def _read(render: Render) -> ChatFormat:
    """Marks show where a message's content went; what lies between two of them is one's end and the next one's start."""
    user, reply, second, system = (_MARK % i for i in range(4))
    alone = _cut(render([("user", user)]), [user])
    turns = _cut(render([("user", user), ("assistant", reply), ("user", second)]), [user, reply, second])
    if alone[0] != turns[0] or alone[1] != turns[3]:
        raise ValueError("depends on what follows")
    start, between, next_, rest = turns
    try:
        with_system = _cut(render([("system", system), ("user", user)]), [system, user])
    except (InputError, ValueError):
        with_system = None  # a template that refuses the role, or leaves the message out
    user_before, user_after, reply_before, reply_after, answer = _split(between, next_, rest, start)
    roles = {"user": (user_before, user_after), "assistant": (reply_before, reply_after)}
    default, begin = start.removesuffix(user_before), ""
    if with_system is not None:
        joint = with_system[1].removesuffix(user_before)
        shared = _common_prefix(with_system[0], default)
        begin = shared if default == shared else ""
        roles["system"] = (with_system[0].removeprefix(begin), joint)
    return ChatFormat(begin, default, roles, answer, frozenset(role for role in roles if _strips(render, role)))


def _strips(render: Render, role: str) -> bool:
    padded = f"  {_MARK % 0}\n "
    before = {"user": [], "system": [], "assistant": [("user", "u")]}[role]
    after = [] if role == "user" else [("user", "v")]
    return padded not in render([*before, (role, padded), *after])


def _split(between: str, next_: str, rest: str, start: str) -> tuple[str, str, str, str, str]:
    """(before user, after user, before reply, after reply, answer) from user→reply, reply→user, user→answer, and the start.

    Where one message's end and the next one's start meet, any place to cut gives the same prompts. The natural one is before
    the last tag of what both kinds of message end with; without one, what two neighbours share goes to the user's message.
    """
    end = _common_prefix(between, next_)
    end = end[: end.rindex("<")] if "<" in end else ""
    user_before = next_[len(end) :]
    if end and start.endswith(user_before) and rest.startswith(end):
        return user_before, end, between[len(end) :], end, rest[len(end) :]
    user_after = _common_prefix(between, rest)
    user_before = _common_prefix(start[::-1], next_[::-1])[::-1]
    return user_before, user_after, between[len(user_after) :], next_.removesuffix(user_before), rest[len(user_after) :]


def _cut(text: str, marks: Sequence[str]) -> list[str]:
    """The pieces around the marks, which must each come once and in order."""
    pieces = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            raise ValueError(f"{mark} is not there once")
        pieces.append(before)
    return [*pieces, text]


def _common_prefix(a: str, b: str) -> str:
    count = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return a[:count]
