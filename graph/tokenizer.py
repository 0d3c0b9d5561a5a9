"""Text ↔ token ids at run time, from the files of a Hugging Face tokenizer folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_folder import TOKENIZER_FILES


class Tokenizer:
    """One model's tokenizer and chat template."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any], template: str | None) -> None:
        """config: `tokenizer_config.json`; template: a Jinja chat template, or None."""
        self._tokenizer = tokenizer
        self._template = template
        self._tokens = {name: _content(config[name]) for name in _TOKEN_NAMES if config.get(name)}
        bos = tokenizer.token_to_id(self._tokens.get("bos_token", ""))
        adds = config.get("add_bos_token")
        if adds is None:  # then what tokenizer.json itself does
            adds = bos in tokenizer.encode("").ids
        self._prefix = [bos] if adds and bos is not None else []

    @staticmethod
    def load(folder: Path) -> Tokenizer:
        """Raises InputError for a folder without a tokenizer."""
        paths = (folder / name for name in TOKENIZER_FILES)
        return Tokenizer.from_files({path.name: path.read_bytes() for path in paths if path.is_file()}, str(folder))

    @staticmethod
    def from_files(files: Mapping[str, bytes], where: str = "tokenizer") -> Tokenizer:
        """files: name → content, as `Checkpoint.tokenizer_files` gives them. Raises InputError for damaged ones."""
        if "tokenizer.json" not in files:
            came = ", ".join(sorted(files)) or "nothing"
            raise InputError(f"{where}: no tokenizer.json, got {came}; save the model with a fast tokenizer")
        try:
            tokenizer = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode("utf-8"))
        except Exception as error:  # the library raises nothing narrower
            raise InputError(f"{where}: tokenizer.json cannot be read ({error})") from None
        try:
            config = json.loads(files.get("tokenizer_config.json", b"{}"))
        except ValueError as error:
            raise InputError(f"{where}: tokenizer_config.json is not valid JSON ({error})") from None
        return Tokenizer(tokenizer, config, _chat_template(files, config))

    def encode(self, text: str) -> list[int]:
        """Ids of a text that starts a sequence: with the start token where the model wants one."""
        return [*self._prefix, *self._tokenizer.encode(text, add_special_tokens=False).ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of these ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def stream(self) -> TextStream:
        """A decoder for ids that come one at a time."""
        return TextStream(self)

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt up to where the assistant's answer starts. messages: `role` and `content` each.

        Raises InputError when the model has no chat template or the template refuses the messages.
        """
        if self._template is None:
            raise InputError("chat: this model has no chat template; expected one in tokenizer_config.json")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        try:
            template = environment.from_string(self._template)
            return template.render(messages=messages, add_generation_prompt=True, **self._tokens)
        except jinja2.TemplateError as error:
            raise InputError(f"chat: the chat template failed ({error})") from None

    def special_tokens(self, text: str) -> list[int]:
        """The special tokens in a text, as ids in their order."""
        special = {number for number, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        return [number for number in self._tokenizer.encode(text, add_special_tokens=False).ids if number in special]

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of `render_chat`; a start token comes only from the template."""
        return list(self._tokenizer.encode(self.render_chat(messages), add_special_tokens=False).ids)


class TextStream:
    """Ids in, completed text out: a character split over several tokens comes with its last one.

    The library's own DecodeStream raises where byte tokens are not valid UTF-8, which a model is free to produce.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decode = tokenizer.decode
        self._context: list[int] = []  # the ids of the last completed text: what follows is read together with them
        self._pending: list[int] = []

    def step(self, token: int) -> str:
        """The text that this id completes; often empty."""
        self._pending.append(token)
        text = self._rest()
        if text.endswith(_INCOMPLETE):
            return ""
        self._context, self._pending = self._pending, []
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
_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _chat_template(files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
