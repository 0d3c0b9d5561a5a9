"""Who is next: answers are made one after the other, in the order in which requests came, however slowly they are read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync
from starlette.requests import ClientDisconnect, Request

from pocketphi.compiler.serve.answers import Piece
from pocketphi.compiler.serve.protocol import Refused

T = TypeVar("T")
_Made = asyncio.Queue[Piece | Exception | None]
"""Pieces of an answer, and at last an error, or None."""


class Turns:
    """A runtime has one cache, and two answers at once would be no faster.

    The turn is held while an answer is computed, and not while it is sent: its pieces wait in memory for whoever reads them,
    at most all of one answer for each client. A client that reads nothing keeps nobody else waiting.
    """

    def __init__(self) -> None:
        self._turn = anyio.Lock()
        self._open: dict[_Made, asyncio.Task[None]] = {}
        self._stopped = False

    def stop(self) -> None:
        """Answers that are not whole yet end with an error, now, and no other is begun: the server ends."""
        self._stopped = True
        for made in self._open:
            made.put_nowait(_stopped())

    async def pieces(self, request: Request, begin: Callable[[], Iterator[Piece]]) -> AsyncGenerator[Piece, None]:
        """What `begin` makes, once it is this request's turn, for as long as somebody is there: a step of the model that has
        begun is waited for before another request comes. Raises ClientDisconnect, Refused, and what `begin` raises."""
        made: _Made = asyncio.Queue()
        self._open[made] = asyncio.create_task(self._make(request, begin, made))
        try:
            while (one := await made.get()) is not None:
                if isinstance(one, Exception):
                    raise one
                yield one
        finally:
            self._open.pop(made)

    async def alone(self, request: Request, work: Callable[[], T]) -> T:
        """What `work` returns, once it is this request's turn."""
        async with self._turn:
            await self._go_on(request)
            return await run_sync(work)

    async def _make(self, request: Request, begin: Callable[[], Iterator[Piece]], made: _Made) -> None:
        try:
            async with self._turn:
                await self._go_on(request)
                with contextlib.closing(begin()) as pieces:  # type: ignore[type-var]
                    while made in self._open and (piece := await run_sync(next, pieces, None)) is not None:
                        made.put_nowait(piece)
                        await self._go_on(request)
            made.put_nowait(None)
        except Exception as error:
            made.put_nowait(error)

    async def _go_on(self, request: Request) -> None:
        if self._stopped:
            raise _stopped()
        if await request.is_disconnected():
            raise ClientDisconnect


def _stopped() -> Refused:
    return Refused("the server was stopped before the answer was whole; ask again", 503, code="server_stopped")
