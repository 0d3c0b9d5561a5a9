"""Who may ask."""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from pocketphi.compiler.serve.protocol import Refused
from pocketphi.graph.reading import show


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
