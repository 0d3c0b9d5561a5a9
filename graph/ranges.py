"""Numbers that a user may choose within a range: outside of it is an error, never another number in silence."""

from __future__ import annotations

from pocketphi.graph.errors import InputError

MOST_THREADS = 1024
_MOST = 1 << 31


def check_number(option: str, value: int, least: int = 1, most: int = _MOST, why: str = "") -> None:
    """Raise InputError where an option's number is not within `least` to `most`. why: what the upper end is."""
    if not least <= value <= most:
        end = f"; {why}" if why and value > most else ""
        raise InputError(f"{option} {value}: expected {least:,} to {most:,}{end}")


def check_threads(threads: int, least: int = 0) -> None:
    """Raise InputError for a number of CPU threads that no machine has. least: 0 where that stands for all cores."""
    check_number("--threads", threads, least, MOST_THREADS)
