"""Gates on what a suite finds: each is one number of a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pocketphi.compiler.suite.found import ALL, SuiteResult
from pocketphi.compiler.suite.intervals import Figure


@dataclass(frozen=True)
class SuiteGate:
    """kinds: of the lines that it is about; measure: of these. A share is a gate from below, unless it is counted; of groups
    the one with the largest number counts where `worst` is set"""

    kinds: tuple[str, ...]
    measure: str
    least: bool = False
    counted: bool = False
    worst: bool = False
    unit: str = ""


SUITE_GATES: Mapping[str, SuiteGate] = {
    "min_accuracy": SuiteGate(("choice",), "accuracy", least=True),
    "min_same_choices": SuiteGate(("choice",), "same_choice", least=True),
    "min_exact": SuiteGate(("exact",), "exact", least=True),
    "min_contained": SuiteGate(("exact",), "contains", least=True),
    "min_same_refusals": SuiteGate(("behaviour",), "same_refuses", least=True),
    "min_same_stops": SuiteGate(("behaviour",), "same_stops", least=True),
    "max_new_loops": SuiteGate(("behaviour", "language"), "new_loops", counted=True),
    "answer_kl": SuiteGate(("behaviour",), "kl", unit="nats/token"),
    "language_kl": SuiteGate(("language",), "kl", worst=True, unit="nats/token"),
}


def measured(gate: SuiteGate, result: SuiteResult) -> tuple[float, str]:
    """The number that a gate is about, and what to know of it: of how many, and its interval. The result has such lines."""
    if gate.counted:
        found = [one for kind in gate.kinds if (one := result.find(kind, gate.measure))]
        return float(sum(one.yes for one in found)), f"of {sum(one.count for one in found)} answers"
    groups = result.figures[gate.kinds[0]]
    names = [name for name in groups if name != ALL] or [ALL]
    group = max(names, key=lambda name: groups[name][gate.measure].value) if gate.worst else ALL
    figure = groups[group][gate.measure]
    said = _interval(figure, f"{figure.yes} of {figure.count}" if gate.least else f"{figure.count} prompts")
    return figure.value, f"{group}: {said}" if gate.worst else said


def _interval(figure: Figure, count: str) -> str:
    return f"{count}, 95 % interval {figure.low:.2f} to {figure.high:.2f}"
