"""What was found on each line of a suite, and what that comes to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pocketphi.compiler.suite.intervals import Figure, mean, share

ALL = "all"


@dataclass(frozen=True)
class Found:
    """Of one line. kind: `choice`, `exact`, `text`, `behaviour` or `language`; yes: decisions by name; numbers: others, each
    counting the same as another line's; sums: what is added up over lines, of texts; told: what else to keep of it"""

    kind: str
    group: str
    where: str
    yes: Mapping[str, bool] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    sums: Mapping[str, float] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {"where": self.where, "kind": self.kind, "group": self.group, **self.yes, **self.numbers, **self.told}


@dataclass(frozen=True)
class SuiteResult:
    """figures: kind → group → measure; the group `all` is there for each kind. digest: SHA-256 of the suite's lines"""

    model: str
    suite: tuple[str, ...]
    digest: str
    reference: str | None
    answer_tokens: int
    figures: dict[str, dict[str, dict[str, Figure]]]

    def find(self, kind: str, measure: str, group: str = ALL) -> Figure | None:
        """None where the suite has no such line, or no reference was there."""
        return self.figures.get(kind, {}).get(group, {}).get(measure)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def figures_of(found: Sequence[Found]) -> dict[str, dict[str, dict[str, Figure]]]:
    """By kind and group, in the order in which they came."""
    made: dict[str, dict[str, dict[str, Figure]]] = {}
    for kind in dict.fromkeys(one.kind for one in found):
        lines = [one for one in found if one.kind == kind]
        groups = list(dict.fromkeys(one.group for one in lines))
        parts = {group: [one for one in lines if one.group == group] for group in groups} if len(groups) > 1 else {}
        made[kind] = {group: _measures(part) for group, part in {**parts, ALL: lines}.items()}
    return made


def _measures(lines: Sequence[Found]) -> dict[str, Figure]:
    made = {name: share(sum(one.yes[name] for one in lines), len(lines)) for name in lines[0].yes}
    for name in lines[0].numbers:
        made[name] = mean([one.numbers[name] for one in lines], 1.0 if name.startswith("same_") else math.inf)
    return made | _of_texts(lines) if lines[0].sums else made


def _of_texts(lines: Sequence[Found]) -> dict[str, Figure]:
    """Perplexity, bits a byte and, against a reference, KL and its perplexity: over all tokens, which all count the same. No
    interval: tokens of a text depend on each other."""
    sums = {name: _total(one.sums[name] for one in lines) for name in lines[0].sums}
    tokens = sums["tokens"]
    values = {"perplexity": math.exp(sums["nll"] / tokens), "bits_per_byte": sums["nll"] / math.log(2) / sums["bytes"]}
    if "kl" in sums:
        values |= {"reference_perplexity": math.exp(sums["reference_nll"] / tokens), "kl": sums["kl"] / tokens}
        values["same_tokens"] = sums["agree"] / tokens
    return {name: Figure(value, value, value, int(tokens)) for name, value in values.items()}


def _total(values: Iterable[float]) -> float:
    return math.fsum(values)
