"""What this machine's CPU can do, as Linux says it."""

from __future__ import annotations

from pathlib import Path

_INFO = Path("/proc/cpuinfo")


def cpu_flags() -> set[str]:
    """Features of this machine's CPU by Linux' names; empty where /proc does not tell."""
    return {flag for value in _values("flags", "Features") for flag in value.split()}


def cpu_maker() -> str:
    """Who made it, as far as /proc tells: libraries of mathematics choose their kernels by it too."""
    return " ".join(sorted(set(_values("vendor_id", "CPU implementer"))))


def _values(*keys: str) -> list[str]:
    lines = _INFO.read_text().splitlines() if _INFO.is_file() else []
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for key, _, value in pairs if key.strip() in keys]
