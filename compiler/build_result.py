"""What a matrix build found out about a bundle: claims that hold or do not, and what changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketphi.compiler.diff import Change

NOT_VERIFIED = 'the bundle was not verified; build with verify = "always"'


@dataclass(frozen=True)
class Claim:
    """A check of the verification or a gate: `measured` must not exceed `bound`, or not be less where that is the `least`; None
    where it was not measured, for the reason `missing`. detail: what to know of the number"""

    name: str
    measured: float | None
    bound: float
    unit: str = ""
    missing: str = NOT_VERIFIED
    least: bool = False
    detail: str = ""

    @property
    def ok(self) -> bool:
        if self.measured is None:
            return False
        return self.measured >= self.bound if self.least else self.measured <= self.bound  # false for NaN as well

    def as_json(self) -> dict[str, Any]:
        told = {"name": self.name, "measured": self.measured, "bound": self.bound, "unit": self.unit, "ok": self.ok}
        return told | ({"least": True} if self.least else {}) | ({"detail": self.detail} if self.detail else {})

    def described(self) -> str:
        """What came, and by how much it is over, or under."""
        if self.measured is None:
            return f"{self.name}: not measured: {self.missing}"
        unit = f" {self.unit}" if self.unit else ""
        detail = f" ({self.detail})" if self.detail else ""
        if self.ok:
            how = f"at {'least' if self.least else 'most'}"
        else:
            how = f"{abs(self.measured - self.bound):,.6g} {'under' if self.least else 'over'}"
        return f"{self.name}: {self.measured:,.6g}{unit}, {how} {self.bound:,.6g}{detail}"


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
