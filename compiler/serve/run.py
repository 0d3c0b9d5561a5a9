"""`pocketphi serve`: listen until somebody stops it."""

from __future__ import annotations

import errno
import importlib.util
import os
import socket
from collections.abc import Callable
from pathlib import Path

from pocketphi.compiler.talker import Talker
from pocketphi.graph.errors import InputError
from pocketphi.graph.ranges import check_number
from pocketphi.graph.reading import named
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
    """Serve a bundle, opened as `Chat` opens it, until a signal ends it, as `listen` says, with KeyboardInterrupt.

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
        from pocketphi.compiler.serve.app import Service, make_app
        from pocketphi.compiler.serve.server import listen
        from pocketphi.compiler.serve.web import page_routes

        service = Service(talker)
        app = make_app(service, host, page_routes(talker.bundle, target, talker.limit))
        where = f"[{host}]" if ":" in host else host
        address = f"http://{where}:{listening.getsockname()[1]}"
        say(f"{talker.bundle.manifest.source.model}: {address}/ for people, /v1 for programs (Ctrl-C ends it)")
        listen(app, listening, service.turns.stop)
    finally:
        listening.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"--host {named(host)}: is no address or name of this machine ({why}); leave it out to listen for this machine "
            "alone, or say 0.0.0.0 for all that reach it"
        ) from None
    try:
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        advice = "choose another port, or 0"
        if error.errno == errno.EADDRNOTAVAIL:
            advice = "that is no address of this machine: choose another host"
        why = os.strerror(error.errno) if error.errno else error
        raise InputError(f"--host {named(host)} --port {port}: cannot listen there ({why}); {advice}") from None
