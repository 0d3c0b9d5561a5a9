"""What changed from one bundle to another: files, errors, operators. Only what differs is listed."""

from __future__ import annotations

from dataclasses import dataclass

from pocketphi.artifacts.manifest import Manifest

_KINDS = ("adapter", "bytes", "contents", "verified", "error", "operators")


@dataclass(frozen=True)
class Change:
    """kind: `adapter` (by name and digest), `bytes`, `contents` (of a file of the same size), `verified` (1 or 0),
    `error` or `operators`; before, after: None where there was none, or is none any more, and of contents."""

    kind: str
    name: str
    before: float | None
    after: float | None

    def described(self) -> str:
        """One line, with the difference in percent where both are there."""
        if self.kind == "contents":
            return f"{self.name}: other contents"
        before, after = (_shown(self.kind, value) for value in (self.before, self.after))
        more = ""
        if self.before and self.after is not None and self.kind not in ("verified", "adapter"):
            more = f" ({(self.after - self.before) / self.before:+.1%})"
        return f"{self.name}: {before} → {after}{more}"


def changes(old: Manifest, new: Manifest) -> list[Change]:
    """Sizes of files and of all, files with other contents, what the verification measured, operators of graph and targets."""
    before, after = _values(old), _values(new)
    found = [
        Change(*key, before.get(key), after.get(key))
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]
    for name, entry in new.files.items():
        was = old.files.get(name)
        if was is not None and was.bytes == entry.bytes and was.sha256 != entry.sha256:
            found.append(Change("contents", name, None, None))
    return sorted(found, key=lambda change: _KINDS.index(change.kind))


def _values(manifest: Manifest) -> dict[tuple[str, str], float]:
    """By kind and name."""
    found = {("adapter", f"adapter {one.name} {one.blake3[:12]}"): one.weight for one in manifest.source.adapters}
    found |= {("adapter", f"switched adapter {one.name} {one.values[:12]}"): one.weight for one in manifest.adapters}
    found |= {("bytes", "all files"): manifest.bytes}
    found |= {("bytes", name): entry.bytes for name, entry in manifest.files.items()}
    found["verified", "verified"] = float(manifest.verified)
    found |= {("error", check.name): check.measured for check in manifest.checks}
    found |= {("operators", name): count for name, count in manifest.operators.items()}
    for target, record in manifest.targets.items():
        found |= {("operators", f"{target} {name}"): count for name, count in record.operators.items()}
    return found


def _shown(kind: str, value: float | None) -> str:
    if value is None:
        return "none"
    if kind == "verified":
        return "yes" if value else "no"
    if kind == "adapter":
        return f"weight {value:g}"
    return f"{value:.2g}" if kind == "error" else f"{value:,.0f}"
