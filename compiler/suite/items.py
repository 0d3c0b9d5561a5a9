"""The form of a suite: JSON Lines, one question, prompt or text a line. docs/behaviour.md has it for users."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pocketphi.compiler.suite.found import ALL
from pocketphi.graph.errors import InputError
from pocketphi.graph.ranges import check_number
from pocketphi.graph.reading import either, named, nearest, parse_object, path_of, read_whole, show, typed

SHIPPED = {"behaviour": Path(__file__).parent / "behaviour"}
"""Suites that have a name."""

LARGEST = 1 << 26
"""Bytes of the largest file: MMLU's 14,042 questions take 7 MB."""

ANSWER_TOKENS, MOST_ANSWER = 32, 4096
"""Tokens of the longest answer to a prompt that does not say, and of the longest that a line may ask for."""

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Choice:
    """A question with choices, of which the likeliest is taken. answer: the right one, counted from 0; by: what is compared
    after the question, the `letter` in front of each choice, or its whole `text`; subject: the category, as MMLU calls it"""

    question: str
    choices: tuple[str, ...]
    answer: int
    category: str = ""
    by: str = "letter"
    subject: str = ""

    def check(self) -> None:
        if not 2 <= len(self.choices) <= len(_LETTERS):
            raise InputError(f"choices: {len(self.choices)}, expected 2 to {len(_LETTERS)}")
        if not 0 <= self.answer < len(self.choices):
            raise InputError(f"answer is {self.answer}, expected 0 to {len(self.choices) - 1}, the number of a choice")
        if self.by not in ("letter", "text"):
            raise InputError(f"by is {show(self.by)}, expected letter or text")
        if not all(map(str.strip, (self.question, *self.choices))):
            raise InputError("a question or a choice is empty")
        texts = [choice.strip() for choice in self.choices] if self.by == "text" else []
        if twice := [text for i, text in enumerate(texts) if text in texts[:i]]:
            raise InputError(
                f"choices: {show(twice[0])} stands there twice, so that nothing tells the two apart by their text"
            )

    @property
    def context(self) -> str:
        """What stands before the compared texts; with letters it is that of MMLU (arXiv:2009.03300, appendix B)."""
        if self.by == "text":
            return f"Question: {self.question}\nAnswer:"
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(_LETTERS, self.choices))
        return f"{self.question.strip()}\n{listed}\nAnswer:"

    @property
    def compared(self) -> list[str]:
        """The texts whose probabilities are compared, without the space before them."""
        return list(self.choices) if self.by == "text" else list(_LETTERS[: len(self.choices)])


@dataclass(frozen=True)
class Exact:
    """A question with the answers that are accepted. tokens: of the longest answer"""

    question: str
    answers: tuple[str, ...]
    category: str = ""
    tokens: int = 32

    def check(self) -> None:
        if not self.answers or not all(map(str.strip, (self.question, *self.answers))):
            raise InputError("answers: expected at least one, and none that is empty")
        check_number("tokens", self.tokens, 1, MOST_ANSWER)

    @property
    def context(self) -> str:
        return f"Question: {self.question}\nAnswer:"


@dataclass(frozen=True)
class Text:
    """A text to be predicted, token by token."""

    text: str
    category: str = ""

    def check(self) -> None:
        if not self.text.strip():
            raise InputError("text is empty")


@dataclass(frozen=True)
class Prompt:
    """A message, which is answered through the chat template. language: where it is not there to be refused or answered, but
    to compare languages; tokens: of the longest answer, 0 for as many as the command says"""

    prompt: str
    category: str = ""
    language: str = ""
    tokens: int = 0

    def check(self) -> None:
        if not self.prompt.strip():
            raise InputError("prompt is empty")
        check_number("tokens", self.tokens, 0, MOST_ANSWER)


Item = Choice | Exact | Text | Prompt

KINDS: dict[str, type[Choice] | type[Exact] | type[Text] | type[Prompt]] = {
    "choices": Choice,
    "answers": Exact,
    "text": Text,
    "prompt": Prompt,
}
"""The key that tells what a line is."""


@dataclass(frozen=True)
class Line:
    """item: of a line; group: what it is counted under; where: file and number, for messages"""

    item: Item
    group: str
    where: str

    @property
    def kind(self) -> str:
        """What its figures are counted with: `choice`, `exact`, `text`, `behaviour` or `language`."""
        if isinstance(self.item, Prompt):
            return "language" if self.item.language else "behaviour"
        return {Choice: "choice", Exact: "exact", Text: "text"}[type(self.item)]


@dataclass(frozen=True)
class Suite:
    """names: as they were asked for; digest: SHA-256 of what was read"""

    names: tuple[str, ...]
    lines: tuple[Line, ...]
    digest: str


def read_suite(names: Sequence[str], option: str = "--suite") -> Suite:
    """The lines of files, of all `*.jsonl` in folders, and of suites with a name (SHIPPED). option: where the names were said.

    Raises InputError, with the file and the number of the line, for the first one that is not as it should be.
    """
    lines: list[Line] = []
    digest = hashlib.sha256()
    for name in names:
        for path in _files(name, f"{option} {name}"):
            content = read_whole(path, "", LARGEST)
            digest.update(len(content).to_bytes(8, "little") + content)
            lines += _lines(content, path)
    if not lines:
        raise InputError(f"{option} {' '.join(map(named, names))}: holds no line; see docs/behaviour.md for their form")
    return Suite(tuple(names), tuple(lines), digest.hexdigest())


def _files(name: str, where: str) -> list[Path]:
    path = path_of(name)
    if name in SHIPPED and not path.exists():
        path = SHIPPED[name]
    if not path.exists():
        raise InputError(f"{where}: no such file or folder; expected JSON Lines, or a name: {', '.join(SHIPPED)}")
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.jsonl"))
    if not found:
        raise InputError(f"{where}: a folder without a file *.jsonl")
    return found


def _lines(content: bytes, path: Path) -> Iterator[Line]:
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if line.strip():
            yield read_line(line, f"{path}:{number}", path.stem)


def read_line(content: bytes, where: str, group: str) -> Line:
    """group: what a line without a category is counted under."""
    data = parse_object(content, where)
    kinds = [key for key in KINDS if key in data]
    if len(kinds) != 1:
        came = f"has {' and '.join(kinds)}" if kinds else f"has {_keys(data)}"
        raise InputError(f"{where}: {came}; expected one of {either(list(KINDS))}, which tells what the line is")
    kind = KINDS[kinds[0]]
    known = [one.name for one in fields(kind)]
    for key in data:
        if key not in known:
            raise InputError(f"{where}: unknown key {named(key)}; {nearest(key, known)}")
    item: Item = typed(kind, data, where)
    try:
        item.check()
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    subject = item.subject if isinstance(item, Choice) else ""
    language = item.language if isinstance(item, Prompt) else ""
    own = language or item.category or subject
    if (own or group) == ALL:
        said = "its category is 'all'" if own else "it has no category, and its file's name is 'all'"
        raise InputError(f"{where}: {said}, which is what all lines together are called; choose another name")
    return Line(item, own or group, where)


def _keys(data: Iterable[Any]) -> str:
    return ", ".join(named(key) for key in list(data)[:8]) or "no key"
