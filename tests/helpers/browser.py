"""Headless Chromium, driven by its own protocol: pages as a reader's browser shows them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tornado.ioloop import IOLoop
from tornado.websocket import WebSocketClientConnection, websocket_connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = "needs Chromium (Debian's chromium)"
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")


class Page:
    """One tab. said: what its console, and errors that nobody caught, said; asked: the addresses that it asked for."""

    def __init__(self, socket: WebSocketClientConnection, loop: IOLoop) -> None:
        self._socket, self._loop, self._number = socket, loop, 0
        self.said: list[str] = []
        self.asked: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, seconds: float = 60, **given: Any) -> dict[str, Any]:
        """Ask the browser, and hear what happens until it answers."""
        self._number += 1
        number = self._number

        async def ask() -> dict[str, Any]:
            await self._socket.write_message(json.dumps({"id": number, "method": method, "params": given}))
            while True:
                message = await self._socket.read_message()
                assert message is not None, "the browser is gone"
                heard = json.loads(message)
                self._hear(heard)
                if heard.get("id") == number:
                    assert "error" not in heard, heard["error"]
                    return dict(heard["result"])

        return self._loop.run_sync(lambda: asyncio.wait_for(ask(), seconds))  # type: ignore[no-any-return]

    def _hear(self, heard: dict[str, Any]) -> None:
        method, params = heard.get("method"), heard.get("params", {})
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.said.append(" ".join(str(one.get("value", one.get("description"))) for one in params["args"]))
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.said.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.said.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])

    def size(self, width: int, height: int, phone: bool = False, dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def value(self, expression: str, seconds: float = 60) -> Any:
        """Of an expression, or of the promise that it gives."""
        found = self.call("Runtime.evaluate", seconds, expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> float:
        """Until an expression holds; returns the seconds that it took."""
        begin = time.monotonic()
        while not self.value(f"(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()"):
            assert time.monotonic() - begin < seconds, f"{expression} after {seconds} s; it said {self.said}"
            time.sleep(0.05)
        return time.monotonic() - begin

    def picture(self, path: Path, whole: bool = True) -> None:
        """A screenshot, of the whole page if asked."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """A browser with one empty tab, which ends with the context."""
    assert CHROMIUM is not None, MISSING
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [CHROMIUM, *_FLAGS, f"--user-data-dir={folder}", "--remote-debugging-port=0", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        loop = IOLoop(make_current=False)
        try:
            port = _port(Path(folder) / "DevToolsActivePort", process)
            socket = loop.run_sync(lambda: _tab(port))
            yield Page(socket, loop)
        finally:
            process.terminate()
            process.wait(20)
            loop.close()


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    for _ in range(600):
        assert process.poll() is None, "Chromium ended"
        with contextlib.suppress(OSError, IndexError, ValueError):
            return int(file.read_text().split("\n")[0])
        time.sleep(0.1)
    raise AssertionError("Chromium does not start")


async def _tab(port: int) -> WebSocketClientConnection:
    from tornado.httpclient import AsyncHTTPClient

    answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/json/list")
    page = next(one for one in json.loads(answer.body) if one["type"] == "page")
    return await websocket_connect(page["webSocketDebuggerUrl"], max_message_size=1 << 28)
