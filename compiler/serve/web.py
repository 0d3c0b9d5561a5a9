"""The page that runs a bundle in the browser of who opens the address, for targets that have one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.serve.protocol import Refused
from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import file_inside, named
from pocketphi.targets import find_target

LIBRARY = Path(__file__).resolve().parents[2] / "build" / "web"
_HEADERS = {
    # so that threads may share memory
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; img-src data:",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
_TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm", ".css": "text/css"}


def page_routes(bundle: Bundle, target: str | None, limit: int, library: Path = LIBRARY) -> list[Route]:
    """`/`, and what the page there loads: its own files, its library, and the files of the bundle that it reads; nothing else.
    limit: tokens of a conversation."""
    name = target or next(iter(bundle.manifest.targets))
    sizes = {file: entry.bytes for file, entry in bundle.manifest.files.items()}
    try:
        page = find_target(name).page(bundle.path, bundle.manifest.targets[name], sizes)
        why = f"a bundle for {name} does not run in a browser"
    except InputError as error:
        page, why = None, str(error)
    if page is not None and (missing := [file for file in page.library if not (library / file).is_file()]):
        page, why = None, f"{library} lacks {missing[0]}: 'make build/web' gets what the page needs"
    if page is None:
        return [Route("/", _sayer(bundle, why), methods=["GET"])]
    held = page.settings["files"]
    said = {**page.settings, "model": bundle.manifest.source.model, "limit": min(limit, page.settings["longest"])}

    async def settings(request: Request) -> Response:
        return JSONResponse(said, headers=_HEADERS)

    return [
        Route("/", _sender({"": page.folder / "page.html"}), methods=["GET"]),
        Route("/page/settings.json", settings, methods=["GET"]),
        Route("/page/{name}", _sender({file: page.folder / file for file in page.files}), methods=["GET"]),
        Route("/library/{name}", _sender({file: library / file for file in page.library}), methods=["GET"]),
        Route("/bundle/{name}", _sender({f: file_inside(bundle.path, f, "bundle") for f in held}), methods=["GET"]),
    ]


def _sender(files: Mapping[str, Path]) -> Callable[[Request], object]:
    async def send(request: Request) -> Response:
        name = request.path_params.get("name", "")
        if name not in files:
            raise Refused(f"{named(request.url.path)}: there is no such file", 404, code="not_found")
        kind = _TYPES.get(files[name].suffix)
        return FileResponse(files[name], media_type=kind, headers=_HEADERS)

    return send


def _sayer(bundle: Bundle, why: str) -> Callable[[Request], object]:
    async def say(request: Request) -> Response:
        words = f"{bundle.manifest.source.model}: programs may ask /v1/chat/completions. There is no page here: {why}."
        return HTMLResponse(f"<!doctype html><title>pocketphi</title><p>{escape(words)}</p>")

    return say
