"""What guessed tokens are measured with: requests, and sums of what answers took."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import Bar, judge, print_table

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


def together(sums: Mapping[str, Sum]) -> Sum:
    """Of the answers that repeat their text."""
    return sum((sums[kind] for kind in REPEATING if kind in sums), Sum())


def finish(sums: Mapping[str, Sum], limits: Sequence[Bar], json_file: Path | None) -> int:
    """Print what answers took and its limits, and write both to a file if that is named. Returns the exit code."""
    rows = [sums[kind].row(kind) for kind in REPEATING if kind in sums] + [together(sums).row("together")]
    rows += [sums["chat"].row("chat")] if "chat" in sums else []
    print_table("Decode", ["answers", "tokens", "different", "tokens a call", "speed with guesses ÷ without"], rows)
    return judge(limits, json_file, {"sums": {k: vars(v) for k, v in sums.items()}})


def requests() -> Iterator[tuple[str, str]]:
    """Kind and text of each."""
    asked = tomllib.loads(REQUESTS.read_text("utf-8"))
    for kind in (*REPEATING, "chat"):
        for request in asked[kind]["requests"]:
            fields = {"text": asked["texts"], "code": asked["programs"]}
            name = next((name for name in fields if f"{{{name}}}" in request), None)
            for value in fields[name] if name else [""]:
                yield kind, request.replace(f"{{{name}}}", value)
