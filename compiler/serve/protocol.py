"""What a request asks, checked: OpenAI's chat-completions and completions, as far as one local model can answer them.

What is not understood is refused by name, unless leaving it out changes no answer. Errors have OpenAI's form.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pocketphi.graph.reading import named, nearest, show

_NO_MATTER = (
    *("model", "stream", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("parallel_tool_calls", "reasoning_effort", "verbosity"),
)
"""Keys that change no answer of one local model, or are looked at elsewhere."""
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "suffix": (None, ""),
    "web_search_options": (None,),
}
"""Keys that may have these values alone."""
_SHARED = ("max_tokens", "temperature", "top_p", "seed", "stop", "stream_options", "logprobs")
_CHAT = (*_SHARED, "messages", "max_completion_tokens", "top_logprobs")
_TEXT = (*_SHARED, "prompt", "echo")
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_MOST_STOPS, _MOST_LOGPROBS, MOST_PROMPTS = 16, 20, 1024


class Refused(Exception):
    """An answer that is an error. status: of HTTP; param: the key that is wrong; code: OpenAI's word for it."""

    def __init__(
        self, message: str, status: int = 400, param: str | None = None, code: str | None = None, kind: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class Wanted:
    """How to answer. limit: tokens, as many as fit if None; seed: None for another answer each time; stops: texts before which
    an answer ends; logprobs: None for none, else how many of the likeliest tokens go along"""

    limit: int | None
    temperature: float
    top_p: float
    seed: int | None
    stops: tuple[str, ...]
    logprobs: int | None
    stream: bool
    usage: bool


@dataclass(frozen=True)
class ChatAsked:
    """A chat completion. messages: (role, content) of each."""

    messages: tuple[tuple[str, str], ...]
    wanted: Wanted


@dataclass(frozen=True)
class TextAsked:
    """Completions. prompts: texts, or tokens; echo: the prompt is part of the answer."""

    prompts: tuple[str | tuple[int, ...], ...]
    echo: bool
    wanted: Wanted


def chat_asked(body: Mapping[str, Any]) -> ChatAsked:
    """Raises Refused."""
    _check_keys(body, _CHAT)
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise _wrong("messages", given, "a list of messages, at least one")
    messages = tuple(_message(i, one) for i, one in enumerate(given))
    limit = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    top = _whole(body, "top_logprobs", 0, _MOST_LOGPROBS)
    likely = (top or 0) if _flag(body, "logprobs") else None
    if top and likely is None:
        raise Refused("top_logprobs: needs logprobs to be true", param="top_logprobs")
    return ChatAsked(messages, _wanted(body, None, likely, limit))


def text_asked(body: Mapping[str, Any]) -> TextAsked:
    """Raises Refused."""
    _check_keys(body, _TEXT)
    echo, given = _flag(body, "echo"), body.get("prompt")
    if isinstance(given, str) or (isinstance(given, list) and given and _is_token(given[0])):
        given = [given]
    if not isinstance(given, list) or not 0 < len(given) <= MOST_PROMPTS:
        raise _wrong("prompt", given, "a text, a list of texts, tokens, or a list of lists of tokens")
    likely = _whole(body, "logprobs", 0, _MOST_LOGPROBS)
    return TextAsked(tuple(_prompt(one) for one in given), echo, _wanted(body, 16, likely, least=0 if echo else 1))


def _wanted(
    body: Mapping[str, Any], limit: int | None, logprobs: int | None, limit_key: str = "max_tokens", least: int = 1
) -> Wanted:
    stop = body.get("stop")
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if (
        not isinstance(stops, list)
        or len(stops) > _MOST_STOPS
        or not all(isinstance(one, str) and one for one in stops)
    ):
        raise _wrong("stop", stop, f"a text, or a list of at most {_MOST_STOPS}, none empty")
    streams, options = _flag(body, "stream"), body.get("stream_options")
    if options is not None and (not streams or not isinstance(options, dict)):
        raise _wrong("stream_options", options, "an object, with stream = true")
    found = _whole(body, limit_key, least, 1 << 31)
    return Wanted(
        limit=limit if found is None else found,
        temperature=_number(body, "temperature", 1.0, 2.0),
        top_p=_number(body, "top_p", 1.0, 1.0),
        seed=_whole(body, "seed", -(1 << 63), (1 << 63) - 1),
        stops=tuple(stops),
        logprobs=logprobs,
        stream=streams,
        usage=_flag(options or {}, "include_usage"),
    )


def _message(number: int, one: Any) -> tuple[str, str]:
    where = f"messages.{number}"
    if not isinstance(one, dict):
        raise _wrong(where, one, "an object with role and content")
    role, content = one.get("role"), one.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        raise _wrong(f"{where}.role", role, f"one of {', '.join(_ROLES)}")
    if one.get("tool_calls") or one.get("function_call"):
        raise Refused(f"{where}: this model calls no tools", param=where)
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        if any(not isinstance(part, str) for part in parts):
            raise Refused(f"{where}.content: this model reads text only", param=f"{where}.content")
        content = "".join(map(str, parts))
    if content is None and role == "assistant":  # as OpenAI's own answers may have it
        content = ""
    if not isinstance(content, str):
        raise _wrong(f"{where}.content", content, "a text, or a list of parts of type text")
    return _ROLES[role], content


def _prompt(one: Any) -> str | tuple[int, ...]:
    if isinstance(one, str):
        return one
    if isinstance(one, list) and one and all(map(_is_token, one)):
        return tuple(one)
    raise _wrong("prompt", one, "a text, or a list of tokens")


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _check_keys(body: Mapping[str, Any], known: Collection[str]) -> None:
    for key, value in body.items():
        if key in _ONLY:
            if not any(value == one and type(value) is not bool for one in _ONLY[key]):
                may = " or ".join("nothing" if one is None else show(one) for one in _ONLY[key])
                raise Refused(f"{key}: {show(value)} is not possible here; it may be {may}", param=key)
        elif key not in known and key not in _NO_MATTER:
            raise Refused(f"unknown key {named(key)}; {nearest(key, known)}", 400, named(key), "unknown_parameter")


def _flag(body: Mapping[str, Any], key: str) -> bool:
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise _wrong(key, value, "true or false")
    return bool(value)


def _whole(body: Mapping[str, Any], key: str, least: int, most: int) -> int | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _wrong(key, value, f"a whole number from {least:,} to {most:,}")
    return value


def _number(body: Mapping[str, Any], key: str, default: float, most: float) -> float:
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise _wrong(key, value, f"a number from 0 to {most:g}")
    return float(value)


def _wrong(key: str, value: Any, expected: str) -> Refused:
    return Refused(f"{key} is {show(value)}, expected {expected}", param=key)
