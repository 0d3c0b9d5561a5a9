"""What every reader of a tokenizer is tried with, and what transformers and ours answer."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pocketphi.compiler.text import PROBE
from pocketphi.graph.errors import InputError
from pocketphi.graph.template_budget import TooCostly
from pocketphi.graph.tokenizer import Tokenizer, library

TEXTS = (
    PROBE,
    "",
    " ",
    "  two  spaces\n\n\ttabs, 12 345\r\n don't I'LL \u00a0x",
    "What is 1234+5 in \u65e5\u672c? \U0001f600 \U0001f469\u200d\U0001f467 Caf\u00e9 cafe\u0301 \ufb01",
    "def f(x):\n    return [x**2 for _ in range(10)]  # ok\n\n\n",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 "
    "\u0928\u092e\u0938\u094d\u0924\u0947 \uc548\ub155",
    "a\u2581b <0x41> \x1f\x7f <s>[INST]</s> <unk>",
    "https://example.org/?q=1&r=%20 {\"key\": [1.5e-3, null]} \\n '''",
)

NOW = datetime.datetime(2024, 2, 3, 4, 5, 6)
"""The time that templates are told while they are compared."""

_LAST = "Is 2 < 3? Caf\u00e9 & 'tea'"
_TALKS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", _LAST),),
    (("system", "Be brief."), ("user", "Hi")),
    (("system", " \n Be brief.\n\n"), ("user", "Hi")),
    (("system", ""), ("user", "Hi")),
    (("user", "Hi"), ("assistant", "Hello!"), ("user", "Who are you?")),
    (("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")),
    (("user", "  white space \n"), ("assistant", "\n x \t"), ("user", "\u00a0line\nline\n\n")),
    (("user", ""),),
    (("user", "\U0001f600 \u65e5\u672c \u0645\u0631\u062d\u0628\u0627"),),
    (("user", "```python\ndef f(x):\n    return {{ x }}  {# no #} {% if %}\n```"),),
    (("user", "Hi"), ("assistant", "<think>\nhm\n</think>\n\nHello"), ("user", "again")),
    (("user", "a"), ("user", "b")),
    (("assistant", "a"), ("user", "b")),
    (("system", "only this"),),
)

Talk = list[dict[str, str]]
REFUSED, TOO_COSTLY = "refused", "too costly"


class Probes:
    """Questions for the readers of one tokenizer, and the answers of two of them.

    vocabulary: all tokens with their ids; texts: to encode; talks: conversations for the template; runs: ids to decode, from
    all over the vocabulary
    """

    def __init__(self, loaded: Any) -> None:
        """loaded: transformers' tokenizer."""
        added = [token.content for _, token in sorted(loaded.added_tokens_decoder.items())]
        around = [f"a {token} b\n{token}\nc{token}d" for token in added[-12:]]
        self.texts = [*TEXTS, *around, "".join(added[:12]), " ".join(added[:12])]
        forged = (("user", f"x {' '.join(added[-4:])} y"),)
        self.talks = [[{"role": role, "content": text} for role, text in talk] for talk in (*_TALKS, forged)]
        self.vocabulary: dict[str, int] = loaded.get_vocab()
        self.runs = _sampled(self.vocabulary.values())

    def ask_ours(self, ours: Tokenizer) -> Answers:
        chats: list[Any] = []
        for talk in self.talks:
            try:
                prompt = ours.render_chat(talk, now=NOW)
                prompt.encode()
            except TooCostly:
                chats.append(TOO_COSTLY)
            except (InputError, UnicodeEncodeError):  # the latter of half a character
                chats.append(REFUSED)
            else:
                chats.append([prompt, ours.tokens(prompt)])
        streams = [_streamed(ours, ours.tokens(text)) for text in TEXTS]
        decoded = [*map(ours.decode, self.runs), *streams]
        return Answers([ours.encode(text) for text in self.texts], chats, decoded)

    def ask_transformers(self, loaded: Any, ours: Answers) -> Answers:
        """A template that costs us too much is not run without our bounds."""

        def ask() -> Answers:
            ids = [loaded(text).input_ids for text in self.texts]
            chats = [a if a == TOO_COSTLY else _rendered(loaded, talk) for a, talk in zip(ours.chats, self.talks)]
            runs = [*self.runs, *(loaded(text, add_special_tokens=False).input_ids for text in TEXTS)]
            return Answers(ids, chats, [loaded.decode(run, skip_special_tokens=True) for run in runs])

        return library(ask, "the tokenizer")

    def differences(self, kind: str, one: Answers, other: Answers) -> list[tuple[Any, Any, Any]]:
        """(question, answer, other answer) where two readers differ. kind: a field of `Answers`."""
        asked: dict[str, list[Any]] = {
            "ids": self.texts,
            "chats": self.talks,
            "decoded": [*self.runs, *TEXTS],
        }
        pairs = zip(asked[kind], getattr(one, kind), getattr(other, kind))
        return [(question, a, b) for question, a, b in pairs if a != b]


@dataclass(frozen=True)
class Answers:
    """What one reader says: ids of texts that start a sequence, [prompt, ids] of conversations, texts of ids."""

    ids: list[Any]
    chats: list[Any]
    decoded: list[Any]

    def digests(self) -> dict[str, tuple[str, ...]]:
        return {kind: tuple(digest(one) for one in answers) for kind, answers in vars(self).items()}


def digest(answer: object) -> str:
    """Enough of a hash to tell one answer from another: 8 hex digits."""
    return hashlib.sha256(json.dumps(answer).encode()).hexdigest()[:8]


class _Clock:
    @staticmethod
    def now() -> datetime.datetime:
        return NOW


def _rendered(loaded: Any, talk: Talk) -> Any:
    """By transformers, whose templates are told NOW meanwhile."""
    from transformers.utils import chat_template_utils

    module: Any = chat_template_utils
    real, module.datetime = module.datetime, _Clock
    try:
        prompt = loaded.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        return [prompt, loaded(prompt, add_special_tokens=False).input_ids]
    except Exception:  # templates raise anything
        return REFUSED
    finally:
        module.datetime = real


def _streamed(ours: Tokenizer, ids: Sequence[int]) -> str:
    stream = ours.stream()
    return "".join([*map(stream.step, ids), stream.finish()])


def _sampled(ids: Iterable[int], most: int = 512, together: int = 32) -> list[list[int]]:
    ordered = sorted(set(ids))
    chosen = ordered[:: max(1, len(ordered) // most)][:most]
    return [chosen[i : i + together] for i in range(0, len(chosen), together)]
