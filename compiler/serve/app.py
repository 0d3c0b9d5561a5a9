"""The address: routes, and what is answered there."""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from functools import partial
from typing import Any

from anyio.to_thread import run_sync
from pydantic_core import from_json
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from pocketphi.compiler.serve.answers import Answers, Likely, Piece
from pocketphi.compiler.serve.guard import Guard
from pocketphi.compiler.serve.prompts import Prompts
from pocketphi.compiler.serve.protocol import ChatAsked, Refused, TextAsked, Wanted, chat_asked, text_asked
from pocketphi.compiler.serve.spelling import Spelling
from pocketphi.compiler.serve.turns import Turns
from pocketphi.compiler.talker import Talker
from pocketphi.graph.errors import PocketphiError
from pocketphi.graph.reading import named, show

log = logging.getLogger(__name__)

_SSE = "text/event-stream"


class Service:
    """A bundle's answers to requests."""

    def __init__(self, talker: Talker) -> None:
        self._talker = talker
        self._answers = Answers(talker)
        self._prompts = Prompts(talker)
        self.turns = Turns()
        manifest = talker.bundle.manifest
        self._models = {manifest.source.model: None, **{f"{manifest.source.model}:{n}": n for n in manifest.switched}}

    def routes(self) -> list[Route]:
        return [
            Route("/v1/models", self._list, methods=["GET"]),
            Route("/v1/models/{model:path}", self._one, methods=["GET"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._text, methods=["POST"]),
        ]

    async def _list(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(name) for name in self._models]})

    async def _one(self, request: Request) -> Response:
        name = request.path_params["model"]
        self._adapter(name)
        return JSONResponse(_model(name))

    async def _chat(self, request: Request) -> Response:
        body = await _body(request, self._prompts.most_bytes)
        adapter, asked = self._adapter(body.get("model")), chat_asked(body)
        reply = _Reply("chatcmpl", "chat.completion", body["model"])
        tokens = await run_sync(self._prompts.of_chat, asked.messages)
        self._answers.check(tokens, asked.wanted)
        pieces = self._pieces(request, tokens, asked.wanted, adapter)
        if asked.wanted.stream:
            return _stream(self._chat_events(reply, asked, len(tokens), pieces))
        text, end, made, likely = await _whole(pieces)
        message = {"role": "assistant", "content": text, "refusal": None}
        logprobs = self._spelling(asked.wanted)
        told = logprobs and logprobs.for_chat(likely)
        choice = {"index": 0, "message": message, "logprobs": told, "finish_reason": end}
        return JSONResponse(reply.body([choice], usage=_usage(len(tokens), made)))

    async def _chat_events(
        self, reply: _Reply, asked: ChatAsked, prompt: int, pieces: AsyncGenerator[Piece, None]
    ) -> AsyncIterator[dict[str, Any]]:
        reply.object += ".chunk"
        delta: dict[str, Any] = {"role": "assistant", "content": ""}
        made, spelling = 0, self._spelling(asked.wanted)
        yield reply.body([_chat_choice(delta)])
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                made = piece.made
                if piece.text or piece.likely:
                    told = spelling and spelling.for_chat(piece.likely)
                    yield reply.body([_chat_choice({"content": piece.text}, told)])
                if piece.end:
                    yield reply.body([_chat_choice({}, end=piece.end)])
        if asked.wanted.usage:
            yield reply.body([], usage=_usage(prompt, made))

    async def _text(self, request: Request) -> Response:
        body = await _body(request, self._prompts.most_bytes)
        adapter, asked = self._adapter(body.get("model")), text_asked(body)
        reply = _Reply("cmpl", "text_completion", body["model"])
        prompts = [await run_sync(self._prompts.of_text, one) for one in asked.prompts]
        if asked.echo and asked.wanted.logprobs is not None and adapter is not None:
            raise Refused("echo with logprobs: without an adapter only", param="model")
        for tokens in prompts:
            self._answers.check(tokens, asked.wanted)
        if asked.wanted.stream:
            return _stream(self._text_events(request, reply, asked, prompts, adapter))
        choices, total = [], 0
        for index, tokens in enumerate(prompts):
            spelling = self._spelling(asked.wanted, () if asked.echo else tokens)
            echoed, scores = await self._echo(request, asked, index, tokens)
            text, end, made, likely = await _whole(self._pieces(request, tokens, asked.wanted, adapter, True))
            total += made
            told = spelling and _joined(spelling.for_text(scores, echoed), spelling.for_text(likely))
            choices.append(_text_choice(index, echoed + text, told, end))
        return JSONResponse(reply.body(choices, usage=_usage(sum(map(len, prompts)), total)))

    async def _text_events(
        self, request: Request, reply: _Reply, asked: TextAsked, prompts: Sequence[list[int]], adapter: str | None
    ) -> AsyncIterator[dict[str, Any]]:
        total = 0
        for index, tokens in enumerate(prompts):
            spelling = self._spelling(asked.wanted, () if asked.echo else tokens)
            if asked.echo:
                text, scores = await self._echo(request, asked, index, tokens)
                yield reply.body([_text_choice(index, text, spelling and spelling.for_text(scores, text))])
            made = 0
            async with contextlib.aclosing(self._pieces(request, tokens, asked.wanted, adapter, True)) as pieces:
                async for piece in pieces:
                    made = piece.made
                    if piece.text or piece.likely or piece.end:
                        told = spelling and spelling.for_text(piece.likely)
                        yield reply.body([_text_choice(index, piece.text, told, piece.end)])
            total += made
        if asked.wanted.usage:
            yield reply.body([], usage=_usage(sum(map(len, prompts)), total))

    async def _echo(
        self, request: Request, asked: TextAsked, index: int, tokens: list[int]
    ) -> tuple[str, list[Likely]]:
        """The prompt as a part of the answer, and how likely its tokens were, where that is wanted."""
        if not asked.echo:
            return "", []
        prompt, count = asked.prompts[index], asked.wanted.logprobs
        text = prompt if isinstance(prompt, str) else self._talker.tokenizer.decode(tokens, special=True)
        if count is None:
            return text, []
        return text, await self.turns.alone(request, partial(self._answers.score, tokens, count))

    def _pieces(
        self, request: Request, tokens: list[int], wanted: Wanted, adapter: str | None, goes_on: bool = False
    ) -> AsyncGenerator[Piece, None]:
        return self.turns.pieces(request, partial(self._answers.pieces, tokens, wanted, adapter, goes_on))

    def _spelling(self, wanted: Wanted, before: Sequence[int] = ()) -> Spelling | None:
        """For an answer that is to say how likely its tokens were. before: tokens of a text that it goes on with."""
        return None if wanted.logprobs is None else Spelling(self._prompts.spelled, before)

    def _adapter(self, model: Any) -> str | None:
        """Raises Refused for a model that is not served here."""
        if not isinstance(model, str) or model not in self._models:
            what = "no model was named" if model is None else f"there is no model {named(str(model))}"
            raise Refused(f"{what}; this is {', '.join(self._models)}", 404, "model", "model_not_found")
        return self._models[model]


class _Reply:
    """What is the same in all parts of an answer."""

    def __init__(self, prefix: str, kind: str, model: str) -> None:
        self._id, self._model, self.object = f"{prefix}-{secrets.token_hex(12)}", model, kind
        self._created = int(time.time())

    def body(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> dict[str, Any]:
        made = {
            "id": self._id,
            "object": self.object,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
        return made if usage is None else {**made, "usage": usage}


def make_app(service: Service, host: str, more: Sequence[Route] = ()) -> ASGIApp:
    """The application. host: that it will listen at; more: routes beside the protocol's."""
    handlers = {
        Refused: _refused,
        PocketphiError: _failed,
        ClientDisconnect: _gone,
        404: _unknown,
        405: _unknown,
        500: _failed,
    }
    app = Starlette(routes=[*service.routes(), *more], exception_handlers=handlers)
    return Guard(app, host)


async def _body(request: Request, most: int) -> dict[str, Any]:
    """Raises Refused for what is no JSON object, holds what JSON cannot (NaN, half of a character), or has more than `most`
    bytes."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > most:
            raise Refused(
                f"the request has more than {most:,} bytes, which is more than the cache can hold; send a shorter prompt, or "
                "fewer at once",
                413,
                code="context_length_exceeded",
            )
    try:
        body = from_json(bytes(content), allow_inf_nan=False)
    except ValueError as error:
        raise Refused(f"the request is no JSON: {str(error)[:200]}") from None
    if not isinstance(body, dict):
        raise Refused(f"the request is {show(body)}, expected an object")
    return body


async def _whole(pieces: AsyncGenerator[Piece, None]) -> tuple[str, str, int, list[Likely]]:
    """Text, why it ended, tokens, and how likely they were."""
    text, end, made, likely = "", "length", 0, list[Likely]()
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            text, end, made = text + piece.text, piece.end or end, piece.made
            likely += piece.likely
    return text, end, made, likely


def _stream(bodies: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    async def events() -> AsyncIterator[str]:
        try:
            async for body in bodies:
                yield f"data: {json.dumps(body)}\n\n"
        except ClientDisconnect:
            return
        except Refused as error:  # the status is out already
            yield f"data: {json.dumps(error.body)}\n\n"
        except Exception as error:
            log.exception("an answer failed")
            yield f"data: {json.dumps(Refused(_in_words(error), 500).body)}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(
        events(), media_type=_SSE, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )


def _joined(first: dict[str, list[Any]], then: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {key: [*first[key], *then[key]] for key in first}


def _text_choice(index: int, text: str, logprobs: Any = None, end: str | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": end}


def _chat_choice(delta: dict[str, Any], logprobs: Any = None, end: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": end}


def _usage(prompt: int, made: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "pocketphi"}


async def _refused(request: Request, error: Refused) -> Response:
    return JSONResponse(error.body, error.status)


async def _failed(request: Request, error: Exception) -> Response:
    log.error("a request failed", exc_info=error)
    return JSONResponse(Refused(_in_words(error), 500).body, 500)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _unknown(request: Request, error: Any) -> Response:
    where = f"{request.method} {named(request.url.path)}"
    if error.status_code == 405:
        methods = ", ".join(sorted(error.headers["Allow"].split(", ")))
        refused = Refused(f"{where}: it may be asked with {methods}", 405, code="method_not_allowed")
    else:
        refused = Refused(f"{where}: there is no such address", error.status_code, code="not_found")
    return JSONResponse(refused.body, refused.status, headers=error.headers)


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, PocketphiError) else f"a bug of ours: {type(error).__name__}: {error}"
