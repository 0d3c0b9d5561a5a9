"""A user who notes what is said, and what is worked on."""

from __future__ import annotations

from pocketphi.compiler.ui import Ui


class Heard(Ui):
    """lines: what was said; tasks: what was said to be worked on."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.tasks: list[str] = []

    def say(self, text: str) -> None:
        self.lines += text.splitlines()

    def task(self, title: str, total: int, unit: str = ""):  # type: ignore[no-untyped-def]
        self.tasks.append(title)
        return super().task(title, total, unit)
