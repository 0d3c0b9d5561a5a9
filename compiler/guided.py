"""Answers in a form that was asked for: JSON by a schema, or what a grammar says. A mask over logits, for every runtime.

Which tokens may come next is said by llguidance, the library that onnxruntime-genai has inside. What is asked for is looked at
before anything is computed.
"""

from __future__ import annotations

import codecs
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketphi.compiler.talker import Choose
from pocketphi.graph.errors import CannotRun, CheckFailed, InputError
from pocketphi.graph.reading import parse_object
from pocketphi.graph.tokenizer import Tokenizer

_SPACE = {"whitespace_flexible": True, "whitespace_pattern": r"[ \t\n]{0,8}"}
"""Between the parts of JSON. A model that begins a line of spaces would else have no reason to end it."""
_MOST = 1 << 20
"""Bytes of a schema or a grammar."""
_FORCED = 256
"""Tokens without a choice that are tried before anything is computed."""


class AnswerCut(CheckFailed):
    """An answer that ended before it had the form that was asked for. text: as far as it went."""

    def __init__(self, text: str, tokens: int) -> None:
        self.text = text
        super().__init__(
            f"the answer was cut after {tokens} tokens, before it had the form that was asked for; ask for a shorter one "
            "(maxLength and maxItems in a schema), or raise --max-tokens"
        )


class Forms:
    """The forms that a model's answers may have."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, ends: frozenset[int]) -> None:
        """vocabulary: logits of a token; ends: tokens that end an answer.

        Raises InputError for a model without such a token, CannotRun where llguidance is not installed.
        """
        if not ends:
            raise InputError("the model has no token that ends an answer, so that none is known to have its form")
        try:
            self._tokens = _library().LLTokenizer(tokenizer.definition(), n_vocab=vocabulary, eos_token=sorted(ends))
        except Exception as error:
            if isinstance(error, CannotRun):
                raise
            raise InputError(f"llguidance cannot read the model's tokenizer: {_line(error)}") from None
        self._ends = ends

    def form(self, grammar: str, where: str) -> Form:
        """grammar: of `schema_grammar` or `lark_grammar`; where: for messages. Raises InputError for one that is none."""
        wrong, told = _library().LLMatcher.validate_grammar_with_warnings(grammar, self._tokens)
        if wrong:
            raise InputError(f"{where}: {_line(told[0])}")
        first = _library().LLMatcher(self._tokens, grammar, log_level=0)
        if why := _fails_at_once(first.deep_copy()):
            raise InputError(
                f"{where}: allows no answer that ends ({why}); does a rule need itself, with nothing beside it?"
            )
        return Form(first, self._ends)


class Form:
    """The form of an answer, compiled for a tokenizer once."""

    def __init__(self, first: Any, ends: frozenset[int]) -> None:
        self._first, self._ends = first, ends

    def start(self) -> Guide:
        """For one answer."""
        return Guide(self._first.deep_copy(), self._ends)


class Guide:
    """What may come next in an answer."""

    def __init__(self, matcher: Any, ends: frozenset[int]) -> None:
        self._matcher, self._ends, self._ended = matcher, ends, False

    def masked(self, logits: torch.Tensor) -> torch.Tensor:
        """float32 [V] → the same, with no chance for what the form does not allow. Raises CheckFailed where nothing is left."""
        allowed = torch.from_numpy(_allowed(self._matcher)[: len(logits)]).bool()
        if self._matcher.is_error() or not allowed.any():
            raise CheckFailed(f"the form of the answer cannot be followed further: {_why(self._matcher)}")
        return logits.masked_fill(~allowed, -torch.inf)

    def took(self, token: int) -> None:
        """The token that was chosen."""
        if token in self._ends:
            self._ended = True
        elif not self._matcher.consume_token(token):
            raise CheckFailed(f"the form of the answer was left: {_why(self._matcher)}")

    @property
    def whole(self) -> bool:
        """Whether the answer may end here."""
        return self._ended or bool(self._matcher.is_accepting())


def schema_grammar(path: Path) -> str:
    """Of a JSON schema in a file. Raises InputError for what is none, or asks for what cannot be followed."""
    where = f"--json-schema {path}"
    schema = parse_object(_read(path, "--json-schema"), where)
    try:
        return str(_library().LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_SPACE))
    except ValueError as error:
        raise InputError(f"{where}: {_line(error)}") from None


def lark_grammar(path: Path) -> str:
    """Of a grammar in Lark's form in a file. Raises InputError for what is no text."""
    content = _read(path, "--grammar")
    if not content.strip():
        raise InputError(f'--grammar {path}: is empty; expected rules, such as start: "yes" | "no"')
    try:
        return str(_library().LLMatcher.grammar_from_lark(content.decode()))
    except UnicodeDecodeError as error:
        raise InputError(f"--grammar {path}: not UTF-8 text (byte {error.start})") from None


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST + 1)
    except OSError as error:
        raise InputError(f"{what} {path}: cannot be read: {error.strerror}") from None
    if len(content) > _MOST:
        raise InputError(f"{what} {path}: has more than {_MOST:,} bytes")
    return content.removeprefix(codecs.BOM_UTF8)


def _library() -> Any:
    if importlib.util.find_spec("llguidance") is None:
        raise CannotRun(
            "answers in a form need the package 'llguidance'; install it with: pip install 'pocketphi[json]'"
        )
    import llguidance

    return llguidance


def _fails_at_once(matcher: Any) -> str:
    """Why a form cannot be begun, or not be followed as far as it leaves no choice; "" for every other one."""
    for _ in range(_FORCED):
        allowed = _allowed(matcher).nonzero()[0]
        if matcher.is_error():
            break
        if len(allowed) != 1 or matcher.is_accepting():
            return ""
        matcher.consume_token(int(allowed[0]))
    return _why(matcher) if matcher.is_error() else ""


def _allowed(matcher: Any) -> Any:
    """uint8 [V, filled up]: 1 for the tokens that may come next."""
    return np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")


def _why(matcher: Any) -> str:
    """Why a matcher stopped, without the state of its parser, which follows in the library's message."""
    said = matcher.get_error().partition("<state>")[0]
    return "nothing can come next" if "NoExtensionBias" in said else _line(said)


def _line(said: object) -> str:
    """A message of the library in one line."""
    return " ".join(str(said).split())[:300] or "no reason was given"


def guided(guide: Guide, choose: Choose) -> Choose:
    """The choice among the tokens that keep to a form."""

    def chosen(logits: torch.Tensor) -> int:
        token = choose(guide.masked(logits))
        guide.took(token)
        return token

    return chosen
