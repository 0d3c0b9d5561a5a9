"""What a matrix build found out about a bundle: claims that hold or do not, and what changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketphi.compiler.diff import Change

NOT_VERIFIED = 'the bundle was not verified; build with verify = "always"'


@dataclass(frozen=True)
class Claim:
    """A check of the verification or a gate: `measured` must not exceed `bound`; None where it was not measured,
    for the reason `missing`."""

    name: str
    measured: float | None
    bound: float
    unit: str = ""
    missing: str = NOT_VERIFIED

    @property
    def ok(self) -> bool:
        return self.measured is not None and self.measured <= self.bound

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "measured": self.measured, "bound": self.bound, "unit": self.unit, "ok": self.ok}

    def described(self) -> str:
        """What came, and by how much it is over."""
        if self.measured is None:
            return f"{self.name}: not measured: {self.missing}"
        unit = f" {self.unit}" if self.unit else ""
        if self.ok:
            return f"{self.name}: {self.measured:,.6g}{unit}, at most {self.bound:,.6g}"
        return f"{self.name}: {self.measured:,.6g}{unit}, {self.measured - self.bound:,.6g} over {self.bound:,.6g}"


@dataclass
class Result:
    """One bundle of the matrix. seconds: of wall time; error: why there is none; exit_code: as of the command line;
    not_verified: why not, if it is not."""

    name: str
    bundle: Path
    key: str = ""
    cached: bool = False
    seconds: float = 0.0
    bytes: int = 0
    claims: list[Claim] = field(default_factory=list)
    changes: list[Change] | None = None
    error: str | None = None
    exit_code: int = 0
    not_verified: str | None = None

    def as_json(self) -> dict[str, Any]:
        data = {**vars(self), "bundle": str(self.bundle), "seconds": round(self.seconds, 3)}
        data["claims"] = [claim.as_json() for claim in self.claims]
        data["changes"] = None if self.changes is None else [vars(change) for change in self.changes]
        return data

    def summary(self) -> str:
        """Lines for a log."""
        if self.error:
            return f"  failed: {self.error}"
        how = "found in the cache" if self.cached else "built"
        lines = [f"  {how} in {self.seconds:.1f} s: {self.bytes:,} bytes, {self.bundle}"]
        if self.not_verified:
            lines.append(f"  not verified: {self.not_verified}")
        lines += [f"  not met: {claim.described()}" for claim in self.claims if not claim.ok]
        if self.changes is not None:
            lines.append("  the same as before" if not self.changes else "  against the one before:")
            lines += [f"    {change.described()}" for change in self.changes]
        return "\n".join(lines)
