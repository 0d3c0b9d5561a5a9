"""The address: routes, one answer at a time, and who may ask."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import Any

import anyio
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pocketphi.compiler.serve.answers import Answers, Likely, Piece
from pocketphi.compiler.serve.protocol import ChatAsked, Refused, TextAsked, Wanted, chat_asked, text_asked
from pocketphi.compiler.talker import Talker
from pocketphi.graph.errors import PocketphiError
from pocketphi.graph.reading import named, show

log = logging.getLogger(__name__)

_MOST_BYTES = 16 << 20
"""Of a request: a hundred times what the longest context needs."""
_SSE = "text/event-stream"


class Service:
    """A bundle's answers to requests. They are made one after the other, in the order in which requests came: a runtime has one
    cache, and two at once would be no faster."""

    def __init__(self, talker: Talker) -> None:
        self._talker = talker
        self._answers = Answers(talker)
        self._turn = anyio.Lock()
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
        body = await _body(request)
        adapter, asked = self._adapter(body.get("model")), chat_asked(body)
        reply = _Reply("chatcmpl", "chat.completion", body["model"])
        try:
            tokens = await run_sync(self._talker.encode_chat, self._begun(asked.messages))
        except PocketphiError as error:  # the template refuses them
            raise Refused(str(error), param="messages") from None
        self._answers.check(tokens, asked.wanted)
        pieces = self._pieces(request, tokens, asked.wanted, adapter)
        if asked.wanted.stream:
            return _stream(self._chat_events(reply, asked, len(tokens), pieces))
        text, end, made, likely = await _whole(pieces)
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": self._chat_logprobs(asked, likely), "finish_reason": end}
        return JSONResponse(reply.body([choice], usage=_usage(len(tokens), made)))

    async def _chat_events(
        self, reply: _Reply, asked: ChatAsked, prompt: int, pieces: AsyncGenerator[Piece, None]
    ) -> AsyncIterator[dict[str, Any]]:
        reply.object += ".chunk"
        delta: dict[str, Any] = {"role": "assistant", "content": ""}
        made = 0
        yield reply.body([_chat_choice(delta)])
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                made = piece.made
                if piece.text or piece.likely:
                    yield reply.body([_chat_choice({"content": piece.text}, self._chat_logprobs(asked, piece.likely))])
                if piece.end:
                    yield reply.body([_chat_choice({}, end=piece.end)])
        if asked.wanted.usage:
            yield reply.body([], usage=_usage(prompt, made))

    async def _text(self, request: Request) -> Response:
        body = await _body(request)
        adapter, asked = self._adapter(body.get("model")), text_asked(body)
        reply = _Reply("cmpl", "text_completion", body["model"])
        prompts = [await run_sync(self._tokens, one) for one in asked.prompts]
        if asked.echo and asked.wanted.logprobs is not None and adapter is not None:
            raise Refused("echo with logprobs: without an adapter only", param="model")
        for tokens in prompts:
            self._answers.check(tokens, asked.wanted)
        if asked.wanted.stream:
            return _stream(self._text_events(request, reply, asked, prompts, adapter))
        choices, total = [], 0
        for index, tokens in enumerate(prompts):
            echoed = await self._echo(request, asked, index, tokens)
            text, end, made, likely = await _whole(self._pieces(request, tokens, asked.wanted, adapter))
            total += made
            whole = [*echoed[1], *likely]
            choices.append(self._text_choice(index, echoed[0] + text, whole, asked, end))
        return JSONResponse(reply.body(choices, usage=_usage(sum(map(len, prompts)), total)))

    async def _text_events(
        self, request: Request, reply: _Reply, asked: TextAsked, prompts: Sequence[list[int]], adapter: str | None
    ) -> AsyncIterator[dict[str, Any]]:
        total = 0
        for index, tokens in enumerate(prompts):
            if asked.echo:
                text, scores = await self._echo(request, asked, index, tokens)
                yield reply.body([self._text_choice(index, text, scores, asked, None)])
            made = 0
            async with contextlib.aclosing(self._pieces(request, tokens, asked.wanted, adapter)) as pieces:
                async for piece in pieces:
                    made = piece.made
                    if piece.text or piece.likely or piece.end:
                        yield reply.body([self._text_choice(index, piece.text, piece.likely, asked, piece.end)])
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
        async with self._turn:
            await _still_there(request)
            return text, await run_sync(self._answers.score, tokens, count)

    async def _pieces(
        self, request: Request, tokens: list[int], wanted: Wanted, adapter: str | None
    ) -> AsyncGenerator[Piece, None]:
        """The pieces of an answer, once it is its turn, for as long as somebody listens: a step of the model that has begun is
        waited for before another request comes."""
        async with self._turn:
            await _still_there(request)
            with contextlib.closing(iter(self._answers.pieces(tokens, wanted, adapter))) as pieces:  # type: ignore[type-var]
                while (piece := await run_sync(_next, pieces)) is not None:
                    yield piece
                    await _still_there(request)

    def _begun(self, messages: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        """With the system message of the bundle's prefix, as in `chat`, where a client sends none."""
        if self._talker.shipped is None or any(role == "system" for role, _ in messages):
            return messages
        return [("system", self._talker.shipped), *messages]

    def _tokens(self, prompt: str | tuple[int, ...]) -> list[int]:
        return self._talker.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def _adapter(self, model: Any) -> str | None:
        """Raises Refused for a model that is not served here."""
        if not isinstance(model, str) or model not in self._models:
            what = "no model was named" if model is None else f"there is no model {named(str(model))}"
            raise Refused(f"{what}; this is {', '.join(self._models)}", 404, "model", "model_not_found")
        return self._models[model]

    def _name(self, token: int) -> str:
        return self._talker.tokenizer.decode([token], special=True)

    def _chat_logprobs(self, asked: ChatAsked, likely: Sequence[Likely]) -> dict[str, Any] | None:
        if asked.wanted.logprobs is None:
            return None

        def entry(token: int, logprob: float | None) -> dict[str, Any]:
            text = self._name(token)
            return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

        content = [
            {**entry(one.token, one.logprob), "top_logprobs": [entry(*pair) for pair in one.top]} for one in likely
        ]
        return {"content": content, "refusal": None}

    def _text_choice(
        self, index: int, text: str, likely: Sequence[Likely], asked: TextAsked, end: str | None
    ) -> dict[str, Any]:
        logprobs: dict[str, Any] | None = None
        if asked.wanted.logprobs is not None:
            names, offsets, place = [self._name(one.token) for one in likely], list[int](), 0
            for name in names:
                offsets.append(place)
                place += len(name)
            logprobs = {
                "tokens": names,
                "token_logprobs": [one.logprob for one in likely],
                "top_logprobs": [self._top(one) for one in likely],
                "text_offset": offsets,
            }
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": end}

    def _top(self, one: Likely) -> dict[str, float] | None:
        """By their texts; of tokens with the same text, which are pieces of characters, the likeliest counts."""
        if one.logprob is None:
            return None
        found: dict[str, float] = {}
        for token, logprob in (*one.top, (one.token, one.logprob)):
            name = self._name(token)
            found[name] = max(logprob, found.get(name, logprob))
        return found


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


class Guard:
    """Lets nobody in who is not meant: a page of another origin, in the browser of somebody who runs this, must not use it,
    also not by a name of its own that it lets point here (DNS rebinding). Programs send no Origin."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        """host: that the server listens at, which requests may name as well."""
        self._app, self._names = app, {host.casefold(), "localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (problem := self._problem(Headers(scope=scope))):
            refused = Refused(problem, 403, code="forbidden")
            await JSONResponse(refused.body, refused.status)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _problem(self, headers: Headers) -> str:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            came = show(hosts[0]) if hosts else "missing"
            return f"the Host of the request is {came}; expected localhost, an address, or what --host says"
        origin = headers.get("origin")
        if origin is not None and origin.casefold() != f"http://{hosts[0]}".casefold():
            return f"pages of {show(origin)} may not use this server"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "pages of other sites may not use this server"
        return ""

    def _is_ours(self, host: str) -> bool:
        """A name could be anybody's and point here; an address is what it is."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
        if name.casefold() in self._names:
            return True
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return True


def make_app(talker: Talker, host: str, more: Sequence[Route] = ()) -> ASGIApp:
    """The application. host: that it will listen at; more: routes beside the protocol's."""
    service = Service(talker)
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


async def _body(request: Request) -> dict[str, Any]:
    """Raises Refused for what is no JSON object, or very large."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > _MOST_BYTES:
            raise Refused(f"the request has more than {_MOST_BYTES:,} bytes", 413)
    try:
        body = json.loads(bytes(content), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the request is no JSON: {str(error)[:200]}") from None
    if not isinstance(body, dict):
        raise Refused(f"the request is {show(body)}, expected an object")
    return body


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


async def _still_there(request: Request) -> None:
    if await request.is_disconnected():
        raise ClientDisconnect


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
        except Exception as error:  # the status is out already
            log.exception("an answer failed")
            said = error if isinstance(error, Refused) else Refused(_in_words(error), 500)
            yield f"data: {json.dumps(said.body)}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(
        events(), media_type=_SSE, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )


def _next(pieces: Iterator[Piece]) -> Piece | None:
    return next(pieces, None)


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
    words = f"{request.method} {named(request.url.path)}: there is no such address"
    return JSONResponse(Refused(words, error.status_code, code="not_found").body, error.status_code)


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, PocketphiError) else f"a bug of ours: {type(error).__name__}: {error}"
