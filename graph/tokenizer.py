"""Text ↔ token ids at run time, from the files of a Hugging Face tokenizer folder.

What these files mean is what transformers makes of them. `compiler/text_check.py` brings any folder into the form that is read
here, where `tokenizer.json` says everything about ids, and compares the two readers.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tokenizers

from pocketphi.graph.chat_template import ChatTemplate, Messages
from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_folder import read_tokenizer_files
from pocketphi.graph.reading import parse_json, parse_object, show

T = TypeVar("T")

_MOST_GROWTH = 64
"""How many times longer the steps of a tokenizer may make a text, each replacement taken at its worst."""


class Tokenizer:
    """One model's tokenizer and chat template."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any], template: str | None) -> None:
        """config: `tokenizer_config.json`; template: a Jinja chat template, or None."""
        self._tokenizer = tokenizer
        tokenizer.no_truncation()  # of one training call, saved with the rest: transformers asks for neither by itself
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = config.get("split_special_tokens") is True
        self._template = None if template is None else ChatTemplate(template)
        self._tokens = named_tokens(config)
        one = library(lambda: tokenizer.encode("a"), "tokenizer.json")
        marked = itertools.takewhile(lambda pair: pair[1] == 1, zip(one.ids, one.special_tokens_mask))
        self._prefix = [token for token, _ in marked]

    @staticmethod
    def load(folder: Path) -> Tokenizer:
        """Raises InputError for a folder without a tokenizer."""
        return Tokenizer.from_files(read_tokenizer_files(folder), str(folder))

    @staticmethod
    def from_files(
        files: Mapping[str, bytes], where: str = "tokenizer", read: tokenizers.Tokenizer | None = None
    ) -> Tokenizer:
        """files: name → content, as `Checkpoint.tokenizer_files` gives them; read: `tokenizer.json`, where it was read before.

        Raises InputError for damaged ones.
        """
        if "tokenizer.json" not in files:
            came = ", ".join(sorted(files)) or "nothing"
            raise InputError(f"{where}: no tokenizer.json, got {came}; save the model with a fast tokenizer")
        tokenizer = read or read_tokenizer(files["tokenizer.json"], f"{where}: tokenizer.json")
        config = parse_object(files.get("tokenizer_config.json", b"{}"), f"{where}: tokenizer_config.json")
        return Tokenizer(tokenizer, config, _chat_template(files, config, where))

    @property
    def has_template(self) -> bool:
        return self._template is not None

    @property
    def tells_time(self) -> bool:
        """Whether a prompt holds the date of the day."""
        return self._template is not None and self._template.tells_time

    @property
    def template_words(self) -> tuple[str, ...]:
        """The texts in the chat template's expressions, such as those that it looks for in a message."""
        return () if self._template is None else self._template.words

    @property
    def unknown(self) -> int | None:
        """The id of the token that stands for what the tokenizer does not know; None where it knows everything."""
        model = parse_json(self._tokenizer.to_str().encode(), "tokenizer.json")["model"]
        token = model.get("unk_token")
        return model.get("unk_id") if token is None else self._tokenizer.token_to_id(token)

    def definition(self) -> str:
        """`tokenizer.json` as it is used, for a library that reads such files."""
        return str(self._tokenizer.to_str())

    def encode(self, text: str, aside: bool = False) -> list[int]:
        """Ids of a text that starts a sequence: with the start token where the model wants one; aside: as in `tokens`."""
        return [*self._prefix, *self.tokens(text, aside)]

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Text of these ids; special: with special tokens, by their names."""
        work = lambda: self._tokenizer.decode(list(ids), skip_special_tokens=not special)  # noqa: E731
        return str(library(work, "the tokenizer"))

    def stream(self, before: Sequence[int] = ()) -> TextStream:
        """A decoder for ids that come one at a time. before: those of a text that they go on with."""
        return TextStream(self, before)

    def render_chat(self, messages: Messages, **choices: Any) -> str:
        """The prompt up to where the assistant's answer starts. messages: `role` and `content` each; choices: as in
        `ChatTemplate.render`.

        Raises InputError when the model has no chat template or the template refuses the messages.
        """
        if self._template is None:
            raise InputError("chat: this model has no chat template; expected one in tokenizer_config.json")
        return self._template.render(messages, self._tokens, **choices)

    @functools.cached_property
    def special(self) -> frozenset[int]:
        """The ids of all special tokens."""
        return frozenset(n for n, token in self._tokenizer.get_added_tokens_decoder().items() if token.special)

    def special_tokens(self, text: str) -> list[int]:
        """The special tokens in a text, as ids in their order."""
        return [number for number in self.tokens(text) if number in self.special]

    def encode_chat(self, messages: Messages) -> list[int]:
        """Ids of `render_chat`; a start token comes only from the template. Raises InputError where there are none."""
        return self.rendered_tokens(self.render_chat(messages))

    def rendered_tokens(self, text: str, aside: bool = False) -> list[int]:
        """Ids of what `render_chat` gave; aside: as in `tokens`. Raises InputError where there are none."""
        ids = self.tokens(text, aside)
        if not ids:
            raise InputError("chat: the prompt is empty: no message holds a text, and the chat template adds nothing")
        return ids

    def tokens(self, text: str, aside: bool = False) -> list[int]:
        """Ids of a text as it is: what it starts with is up to the text. aside: other threads run meanwhile, for which the
        library's threads are switched off (`TOKENIZERS_PARALLELISM`): it says so in every process that is forked later."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text holds half of a character at {error.start}: {show(text[error.start])}"
            ) from None
        if not aside:
            return list(library(lambda: self._tokenizer.encode(text, add_special_tokens=False), "the tokenizer").ids)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        (found,) = library(lambda: self._tokenizer.encode_batch_fast([text], add_special_tokens=False), "the tokenizer")
        return list(found.ids)


class TextStream:
    """Ids in, completed text out: a character split over several tokens comes with its last one.

    The library's own DecodeStream raises where byte tokens are not valid UTF-8, which a model is free to produce.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._decode = tokenizer.decode
        # the ids of the last completed text: what follows is read together with them
        self._context = [] if self._decode(before).endswith(_INCOMPLETE) else list(before)
        self._pending: list[int] = []

    def step(self, token: int) -> str:
        """The text that this id completes; often empty."""
        self._pending.append(token)
        text = self._rest()
        if text.endswith(_INCOMPLETE):
            return ""
        # a special token shows nothing: what follows is no start of a text because of it
        self._context = self._pending if text else self._context + self._pending
        self._pending = []
        return text

    def finish(self) -> str:
        """What an unfinished character left behind, as replacement characters; empty after whole text."""
        return self._rest()

    def _rest(self) -> str:
        shown, text = self._decode(self._context), self._decode(self._context + self._pending)
        if text.startswith(shown):
            return text[len(shown) :]
        return self._decode(self._pending)  # bad bytes spoil the good ones before them, which are out already


_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def read_tokenizer(content: bytes, where: str) -> tokenizers.Tokenizer:
    """A `tokenizer.json`. Raises InputError for a damaged one, and for one that makes a text very much longer."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text (byte {error.start})") from None
    with quiet_library():
        tokenizer = library(lambda: tokenizers.Tokenizer.from_str(text), where)
    growth = 1.0
    for part in (tokenizer.normalizer, tokenizer.decoder, tokenizer.pre_tokenizer):
        if part is not None:
            growth *= _growth(parse_json(part.__getstate__(), where))
    if growth > _MOST_GROWTH:
        raise InputError(
            f"{where}: its steps may make a text {growth:.3g} times longer, expected {_MOST_GROWTH} at most"
        )
    return tokenizer


def library(work: Callable[[], T], where: str) -> T:
    """What the tokenizers library makes. It raises `Exception` itself, and a panic of its Rust code, which is not even one."""
    try:
        return work()
    except (KeyboardInterrupt, SystemExit, InputError):
        raise
    except BaseException as error:
        raise InputError(f"{where} cannot be read ({' '.join(str(error).split())[:300]})") from None


@contextlib.contextmanager
def quiet_library() -> Iterator[None]:
    """The tokenizers library writes to the process's own output: a backtrace beside a panic, settings that it ignores."""
    try:
        kept = [(stream, os.dup(stream)) for stream in (1, 2)]
    except OSError:  # one is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream, _ in kept:
        os.dup2(nowhere, stream)
    try:
        yield
    finally:
        for stream, copy in kept:
            os.dup2(copy, stream)
            os.close(copy)
        os.close(nowhere)


def named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and all others that `tokenizer_config.json` names: what templates may write."""
    extra = config.get("extra_special_tokens")
    every = {key: value for key, value in config.items() if key.endswith("_token")}
    every |= extra if isinstance(extra, dict) else {}
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in every.items()}
    return {key: value for key, value in texts.items() if isinstance(value, str)}


def _growth(step: Any) -> float:
    """How many times longer a step with all that it consists of can make a text."""
    if isinstance(step, list):
        made = 1.0
        for one in step:
            made = min(made * _growth(one), 1e30)
        return made
    if not isinstance(step, dict):
        return 1.0
    inner = _growth([value for value in step.values() if isinstance(value, dict | list)])
    if step.get("type") != "Replace":
        return inner
    pattern, content = step.get("pattern"), step.get("content")
    literal = pattern.get("String") if isinstance(pattern, dict) else None
    return max(1.0, len(str(content)) / max(1, len(literal or "")))


def _chat_template(files: Mapping[str, bytes], config: Mapping[str, Any], where: str) -> str | None:
    """The one that transformers takes: a file of its own before the one in the configuration, `default` of several."""
    if "chat_template.jinja" in files:
        try:
            return files["chat_template.jinja"].decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: chat_template.jinja is not UTF-8 text (byte {error.start})") from None
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[-1].get("template") if named else None
    if template is not None and not isinstance(template, str):
        raise InputError(f"{where}: chat_template is {show(template)}, expected a text")
    return template
