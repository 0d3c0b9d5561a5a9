"""What a pass is: a small class with a name, called on a program, that reports what it changed and what it refused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field

from pocketphi.graph.program import Program


@dataclass
class PassReport:
    """What one pass did.

    applied: rule → how often it applied
    refused: (place, reason) for each place that looked right and was left alone
    removed: dead nodes deleted afterwards
    """

    name: str
    applied: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[str, str]] = field(default_factory=list)
    removed: int = 0

    @property
    def changed(self) -> bool:
        return bool(self.applied)

    def refuse(self, place: str, reason: str) -> None:
        self.refused.append((place, reason))


class Pass(ABC):
    """A rewrite of the whole graph, in place. Running it a second time changes nothing."""

    name: str

    def __call__(self, program: Program) -> PassReport:
        """Rewrite, remove what became dead, check the graph. Raises CompilerBug if the graph is broken afterwards."""
        report = PassReport(self.name)
        self.rewrite(program, report)
        report.removed = program.remove_dead()
        program.check()
        return report

    @abstractmethod
    def rewrite(self, program: Program, report: PassReport) -> None:
        """Change the graph and say in the report what was done."""
