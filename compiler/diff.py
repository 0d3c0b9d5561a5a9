"""What changed from one bundle to another: sizes, errors, operators. Only what differs is listed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pocketphi.artifacts.manifest import Manifest


@dataclass(frozen=True)
class Change:
    """kind: `bytes`, `verified` (1 or 0), `error` or `operators`; before, after: None where there was none, or is none any
    more."""

    kind: str
    name: str
    before: float | None
    after: float | None

    def described(self) -> str:
        """One line, with the difference in percent where both are there."""
        before, after = (_shown(self.kind, value) for value in (self.before, self.after))
        more = ""
        if self.before and self.after is not None and self.kind != "verified":
            more = f" ({(self.after - self.before) / self.before:+.1%})"
        return f"{self.name}: {before} → {after}{more}"


def changes(old: Manifest, new: Manifest) -> list[Change]:
    """Sizes of files and of all, what the verification measured, operators of graph and targets."""
    return [
        Change(kind, name, before.get(name), after.get(name))
        for kind, values in (("bytes", _bytes), ("verified", _verified), ("error", _errors), ("operators", _operators))
        for before, after in [(values(old), values(new))]
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def _bytes(manifest: Manifest) -> dict[str, float]:
    return {"all files": manifest.bytes, **{name: entry.bytes for name, entry in manifest.files.items()}}


def _verified(manifest: Manifest) -> dict[str, float]:
    return {"verified": float(manifest.verified)}


def _errors(manifest: Manifest) -> dict[str, float]:
    return {check.name: check.measured for check in manifest.checks}


def _operators(manifest: Manifest) -> dict[str, float]:
    def counts() -> Iterator[tuple[str, float]]:
        yield from manifest.operators.items()
        for name, target in manifest.targets.items():
            yield from ((f"{name} {operator}", count) for operator, count in target.operators.items())

    return dict(counts())


def _shown(kind: str, value: float | None) -> str:
    if value is None:
        return "none"
    if kind == "verified":
        return "yes" if value else "no"
    return f"{value:.2g}" if kind == "error" else f"{value:,.0f}"
