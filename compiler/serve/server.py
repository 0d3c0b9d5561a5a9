"""The server of HTTP, uvicorn, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

FINISH_SECONDS = 10
"""For answers that are being made when the server is told to end."""
_READ_SECONDS = 2
"""For clients to read what is said at the end."""


def listen(app: ASGIApp, listening: socket.socket, stop: Callable[[], None]) -> None:
    """Serve until a signal comes: SIGINT, SIGTERM, or SIGHUP where it is not ignored. Answers that are being made, or wait,
    have FINISH_SECONDS then. stop: ends those that are left, each with an error that its client reads.

    Raises KeyboardInterrupt, so that `serve` ends as every command does that is stopped; a second SIGINT does so at once.
    """
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=FINISH_SECONDS + _READ_SECONDS,
    )
    server = _Server(config)
    server.stop = stop
    server.run(sockets=[listening])
    raise KeyboardInterrupt


class _Server(uvicorn.Server):
    stop: Callable[[], None]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # who has not read his answer by the end is cut off: no error of ours
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        ending = asyncio.get_running_loop().call_later(FINISH_SECONDS, self.stop)
        await super().shutdown(sockets)
        ending.cancel()
        self.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Of the base class's, and of a terminal that is closed."""
        with super().capture_signals():
            before = signal.getsignal(signal.SIGHUP)
            if before is not signal.SIG_IGN:
                signal.signal(signal.SIGHUP, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(signal.SIGHUP, before)
