"""`pocketphi serve`: listen until somebody stops it."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable
from pathlib import Path

from pocketphi.compiler.talker import Talker
from pocketphi.graph.errors import InputError
from pocketphi.graph.ranges import check_number
from pocketphi.targets.base import Draft

LOOPBACK, PORT = "127.0.0.1", 8642


def serve(
    path: Path,
    host: str = LOOPBACK,
    port: int = PORT,
    max_tokens: int | None = None,
    threads: int = 0,
    target: str | None = None,
    draft: Draft = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Serve a bundle, opened as `Chat` opens it, until SIGINT or SIGTERM: answers that are being made then are finished first.

    port: 0 for one that is free; say: is told the address. Raises InputError where a package is missing, and where the address
    cannot be listened at.
    """
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"serving needs the package '{package}'; install it with: pip install 'pocketphi[serve]'")
    check_number("--port", port, 0, 65535)
    listening = _listen(host, port)
    try:
        talker = Talker(path, max_tokens, threads, target, None, draft)
        import uvicorn

        from pocketphi.compiler.serve.app import make_app
        from pocketphi.compiler.serve.web import page_routes

        app = make_app(talker, host, page_routes(talker.bundle, target, talker.limit))
        where = f"[{host}]" if ":" in host else host
        address = f"http://{where}:{listening.getsockname()[1]}"
        say(f"{talker.bundle.manifest.source.model}: {address}/ for people, /v1 for programs (Ctrl-C ends it)")
        config = uvicorn.Config(
            app, log_level="error", access_log=False, lifespan="off", server_header=False, timeout_graceful_shutdown=10
        )
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        listening.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=256)
    except (OSError, UnicodeError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"--host {host} --port {port}: cannot listen there ({why}); choose another port, or 0"
        ) from None
    return listening
