"""An S3 server as a process of its own on the loopback, and a bucket in it: `make build/s3` gets what it needs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PACKAGES = Path(__file__).resolve().parents[2] / "build" / "s3"
MISSING = not (PACKAGES / "moto").is_dir()
SECRET = "no-message-may-hold-this"
_SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.disable()
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Bucket:
    """url: of the bucket; address: of the server."""

    url: str
    address: str

    def objects(self) -> dict[str, int]:
        """Sizes by path in the bucket."""
        found: dict[str, dict[str, Any]] = self._system().find(self.url, detail=True, refresh=True)
        return {path.partition("/")[2]: entry["size"] for path, entry in found.items()}

    def put(self, path: str, content: bytes) -> None:
        self._system().pipe_file(f"{self.url}/{path}", content)

    def get(self, path: str) -> bytes:
        return bytes(self._system().cat_file(f"{self.url}/{path}"))

    def deny(self) -> None:
        """From now on nobody may do anything."""
        _send(f"{self.address}/moto-api/reset-auth", "POST", b"0")

    def _system(self) -> Any:
        import fsspec

        return fsspec.filesystem("s3")


@contextlib.contextmanager
def s3_bucket() -> Iterator[Bucket]:
    """With the environment that leads this process, and those that it starts, to the server."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES)}
    command = [sys.executable, "-c", _SERVER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with (
        subprocess.Popen(command, env=environment, text=True, **pipes) as process,
        pytest.MonkeyPatch.context() as patch,
    ):  # type: ignore[call-overload]
        address = f"http://127.0.0.1:{int(process.stdout.readline())}"
        patch.setattr(sys, "path", [*sys.path, str(PACKAGES)])
        for name, value in {
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": address,
        }.items():
            patch.setenv(name, value)
        _send(f"{address}/shared", "PUT", b"")
        try:
            yield Bucket("s3://shared", address)
        finally:
            process.stdin.close()


def _send(url: str, method: str, data: bytes) -> None:
    with urllib.request.urlopen(
        urllib.request.Request(url, data, {"Content-Type": "text/plain"}, method=method)
    ) as answer:
        answer.read()
