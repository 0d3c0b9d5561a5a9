"""What a GGUF file's metadata says of its tokenizer, typed and checked, with llama.cpp's defaults for what it leaves out.

The rules are those of llama.cpp's src/llama-vocab.cpp (llama_vocab::impl::load).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import TokenType

from pocketphi.graph.errors import InputError
from pocketphi.graph.gguf_cuts import ADDS_START
from pocketphi.graph.gguf_keys import check_tokenizer_keys
from pocketphi.graph.gguf_parse import shown
from pocketphi.graph.reading import show, some

_PREFIX = "tokenizer.ggml."
_NO_MODEL = ("none", "no_vocab")
_SPECIAL = ("bos", "eos", "eot", "eom", "unknown", "padding")
_SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unknown": 0}
_ENDS = {
    *("<|end|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "<end_of_turn>"),
    *("<EOT>", "_<EOT>", "[EOT]", "<end_of_utterance>", "<｜end▁of▁sentence｜>"),
    *("<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "[EOS]", "<eos>"),
}
"""Tokens that end an answer, known by their text where the metadata has no key for them. They are control tokens, whatever
the file says, as in llama.cpp."""
_END_WHERE_MARKED = "</s>"  # such a token too, but where the file has it for plain text
_MARKED = (TokenType.CONTROL, TokenType.USER_DEFINED)


def _ties(tokens: list[str], kinds: list[int], scores: list[float]) -> list[str]:
    """A line where tokens that are put together have the score of others: an order of merges cannot say "the left one"."""
    made = [score for token, kind, score in zip(tokens, kinds, scores) if kind == TokenType.NORMAL and len(token) > 1]
    tied = sum(count for count in Counter(made).values() if count > 1)
    if not tied:
        return []
    return [
        f"tokenizer.ggml.scores: {tied} tokens share a score: where two of them overlap in a text, llama.cpp takes the left "
        "one, and the bundle's tokenizer may take the other"
    ]


@dataclass(frozen=True)
class Vocabulary:
    """model: `gpt2` (byte-level) or `llama` (SentencePiece), not checked here; pre: how text is cut, None where not said

    kinds:  a TokenType for each token
    scores: one for each token; empty where the file has none
    ids:    the special tokens that there are, of `bos`, `eos`, `eot`, `eom`, `unknown`, `padding`
    """

    model: str
    pre: str | None
    tokens: list[str]
    kinds: list[int]
    scores: list[float]
    merges: list[str]
    ids: Mapping[str, int]
    adds_bos: bool
    space_prefix: bool
    template: str | None
    notices: tuple[str, ...]

    @staticmethod
    def read(fields: Mapping[str, Any], where: str) -> Vocabulary | None:
        """None where the file has no tokenizer.

        Raises InputError for metadata of another type, of other lengths, or that asks for what cannot be done.
        """
        model = fields.get(f"{_PREFIX}model", "none")
        return None if isinstance(model, str) and model in _NO_MODEL else _Reader(fields, where).read()

    def token(self, name: str) -> str | None:
        """The text of a special token."""
        return self.tokens[self.ids[name]] if name in self.ids else None

    def ends(self) -> tuple[int, ...]:
        """Every token that ends an answer: the declared ones first, then those known by their text."""
        declared = [self.ids[name] for name in ("eos", "eot", "eom") if name in self.ids]
        known = (i for i, token in enumerate(self.tokens) if token in _ENDS or self._ends_marked(i))
        return tuple(dict.fromkeys([*declared, *known]))

    def _ends_marked(self, number: int) -> bool:
        return self.tokens[number] == _END_WHERE_MARKED and self.kinds[number] in _MARKED


class _Reader:
    """Typed access to the keys of one file."""

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        self._fields, self._where = fields, where

    def read(self) -> Vocabulary:
        notices = check_tokenizer_keys(self._fields, self._where)
        model = self._get("model", str, None)
        pre = self._get("pre", str, None) or None
        tokens = self._tokens()
        kinds = self._column("token_type", len(tokens), "iu")
        if not kinds:
            notices.append(
                "tokenizer.ggml.token_type is missing: as in llama.cpp, markers such as <|user|> are read as plain text"
            )
            kinds = [TokenType.NORMAL] * len(tokens)
        elif plain := [t for t, kind in zip(tokens, kinds) if t in _ENDS and kind != TokenType.CONTROL]:
            notices.append(
                f"tokenizer.ggml.token_type: {some(plain, 3)} read as control tokens, as in llama.cpp, though not "
                "marked as such"
            )
        kinds = [TokenType.CONTROL if token in _ENDS else kind for token, kind in zip(tokens, kinds)]
        if model == "gpt2" and pre is None:
            notices.append(
                "tokenizer.ggml.pre is missing: text is cut by llama.cpp's default, which may not be the model's"
            )
        scores = self._column("scores", len(tokens), "fiu")
        if model == "llama" and scores:
            notices += _ties(tokens, kinds, scores)
        adds_bos = self._get("add_bos_token", bool, model == "llama" or pre in ADDS_START)
        return Vocabulary(
            model=str(model),
            pre=pre,
            tokens=tokens,
            kinds=kinds,
            scores=scores,
            merges=self._texts("merges"),
            ids=self._ids(len(tokens), _SENTENCEPIECE_IDS if model == "llama" else {}),
            adds_bos=bool(adds_bos),
            space_prefix=bool(self._get("add_space_prefix", bool, True)),
            template=self._template(),
            notices=tuple(notices),
        )

    def _get(self, key: str, kind: type, default: Any) -> Any:
        value = self._fields.get(f"{_PREFIX}{key}", default)
        if value is not default and not isinstance(value, kind):
            expected = {str: "a text", bool: "true or false"}[kind]
            raise InputError(f"{self._where}: {_PREFIX}{key} is {shown(value)}, expected {expected}")
        return value

    def _texts(self, key: str) -> list[str]:
        value = self._fields.get(f"{_PREFIX}{key}", [])
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self._damage(f"{_PREFIX}{key} is {shown(value)}, expected texts")
        return value

    def _tokens(self) -> list[str]:
        """Empty tokens get a name each, as in llama.cpp: a tokenizer finds a token by its text."""
        tokens = [token or f"[EMPTY_{number}]" for number, token in enumerate(self._texts("tokens"))]
        if not tokens:
            raise self._damage(f"{_PREFIX}tokens has 0 values")
        first: dict[str, int] = {}
        for number, token in enumerate(tokens):
            if first.setdefault(token, number) != number:
                raise self._damage(f"token {show(token)} has the numbers {first[token]} and {number}")
        return tokens

    def _column(self, key: str, count: int, kinds: str) -> list[Any]:
        """One number for each token; empty where there is no such key. kinds: numpy's letters for the types allowed."""
        value = self._fields.get(f"{_PREFIX}{key}")
        if value is None:
            return []
        if isinstance(value, list) and all(type(one) in (int, float) for one in value):
            value = np.array(value)
        if not isinstance(value, np.ndarray) or (len(value) and value.dtype.kind not in kinds):
            raise self._damage(f"{_PREFIX}{key} is {shown(value)}, expected numbers")
        if len(value) != count:
            raise self._damage(f"{_PREFIX}{key} has {len(value)} values for {count} tokens")
        if not np.isfinite(value).all():
            raise self._damage(f"{_PREFIX}{key} holds a value that is not a number")
        return list(value.tolist())

    def _ids(self, count: int, defaults: Mapping[str, int]) -> dict[str, int]:
        """The special tokens. A default is taken only where there is such a token."""
        ids = {name: number for name, number in defaults.items() if number < count}
        for name in _SPECIAL:
            key = f"{_PREFIX}{name}_token_id"
            if key not in self._fields:
                continue
            number = self._fields[key]
            if isinstance(number, bool) or not isinstance(number, int):
                raise self._damage(f"{name}_token_id is {shown(number)}, expected the number of a token")
            if not 0 <= number < count:
                raise self._damage(f"{name}_token_id is {number}, but there are {count} tokens")
            ids[name] = number
        return ids

    def _template(self) -> str | None:
        template = self._fields.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise self._damage(f"tokenizer.chat_template is {shown(template)}, expected a text")
        return template

    def _damage(self, what: str) -> InputError:
        return InputError(f"{self._where}: damaged tokenizer: {what}; convert the model again")
