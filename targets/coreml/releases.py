"""What a package may be made for: releases of Apple's systems, by the number of iOS."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """specification: version of the package; macos: the release with the same Core ML; swift_tools: the first version of
    Swift's package manager that knows both."""

    specification: int
    macos: int
    swift_tools: str


RELEASES = {18: Release(9, 15, "6.0"), 26: Release(10, 26, "6.2")}
"""iOS 18 is the first with states and int4 in blocks. iOS 26 takes scales in blocks behind a table, and has no new operator."""
CHAINS = 26
"""The first whose packages have constants that are decoded by two operators, one behind the other."""
OLDEST, NEWEST = min(RELEASES), max(RELEASES)
