"""A bundle behind an address, in this process, and who asks it without a client's library."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from pocketphi.compiler.serve.app import Service, make_app
from pocketphi.compiler.serve.web import page_routes
from pocketphi.compiler.talker import Talker

ROOM, MODEL = 128, "random:tiny"


@contextlib.contextmanager
def served(
    bundle: Path,
    host: str = "127.0.0.1",
    shipped: str | None = None,
    room: int = ROOM,
    library: Path | None = None,
) -> Iterator[int]:
    """The port of a server in this process. shipped: the system message of the bundle's prefix; room: tokens of the cache;
    library: of the page, which is served then. Without one, the system holds little of an answer that nobody reads."""
    listening = socket.create_server(("127.0.0.1", 0))
    if library is None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    talker = Talker(bundle, room)
    talker.shipped = shipped
    page = page_routes(talker.bundle, None, talker.limit, library) if library else ()
    app = make_app(Service(talker), host, page)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def post(
    port: int, body: bytes | dict[str, Any], path: str = "/v1/chat/completions", **headers: str
) -> tuple[int, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    given = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection.request("POST", path, content, given)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read() or b"null")
