"""What guessed tokens are measured with: requests, and sums of what answers took."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPEATING = ("answer", "rewrite", "json", "edit")
REQUESTS = Path(__file__).with_name("drafts.toml")


@dataclass
class Sum:
    """tokens: of the answers; different: those that are others with guesses; calls, milliseconds: without, and with them."""

    tokens: int = 0
    different: int = 0
    calls: tuple[int, int] = (0, 0)
    milliseconds: tuple[float, float] = (0.0, 0.0)

    def __add__(self, other: Sum) -> Sum:
        return Sum(
            self.tokens + other.tokens,
            self.different + other.different,
            (self.calls[0] + other.calls[0], self.calls[1] + other.calls[1]),
            (self.milliseconds[0] + other.milliseconds[0], self.milliseconds[1] + other.milliseconds[1]),
        )

    @property
    def speedup(self) -> float:
        return self.milliseconds[0] / self.milliseconds[1]

    def row(self, kind: str) -> list[str]:
        return [
            kind,
            f"{self.tokens:,}",
            str(self.different),
            f"{self.tokens / max(self.calls[1], 1):.2f}",
            f"{self.speedup:.2f}",
        ]


def requests() -> Iterator[tuple[str, str]]:
    """Kind and text of each."""
    asked = tomllib.loads(REQUESTS.read_text("utf-8"))
    for kind in (*REPEATING, "chat"):
        for request in asked[kind]["requests"]:
            fields = {"text": asked["texts"], "code": asked["programs"]}
            name = next((name for name in fields if f"{{{name}}}" in request), None)
            for value in fields[name] if name else [""]:
                yield kind, request.replace(f"{{{name}}}", value)
