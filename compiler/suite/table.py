"""What a suite found, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from pocketphi.compiler.suite.found import ALL, SuiteResult
from pocketphi.compiler.suite.intervals import Figure
from pocketphi.graph.terminal import console, plain

_CLOSE = {
    "kl": "KL, nats/token",
    "same_tokens": "same tokens",
    "same_first_token": "same first token",
    "same_start": "same start",
}
_DECISIONS = {
    "refuses": "refuses",
    "reference_refuses": "reference",
    "same_refuses": "same",
    "stops": "stops",
    "reference_stops": "reference",
    "same_stops": "same",
    "loops": "loops",
    "reference_loops": "reference",
    "new_loops": "new",
    "leaves_template": "leaves template",
}
_TABLES: list[tuple[str, str, dict[str, str]]] = [
    (
        "choice",
        "questions with choices",
        {
            "accuracy": "right",
            "reference_accuracy": "reference",
            "accuracy_by_length": "right by length",
            "reference_accuracy_by_length": "reference",
            "same_choice": "same choice",
        },
    ),
    (
        "exact",
        "questions with exact answers",
        {
            "exact": "exact",
            "reference_exact": "reference",
            "contains": "contains",
            "reference_contains": "reference",
            "same_verdict": "same verdict",
        },
    ),
    (
        "text",
        "texts",
        {
            "perplexity": "perplexity",
            "reference_perplexity": "reference",
            "bits_per_byte": "bits/byte",
            "kl": "KL, nats/token",
            "same_tokens": "same tokens",
        },
    ),
    ("behaviour", "how close answers are", _CLOSE),
    ("behaviour", "what answers do", _DECISIONS),
    ("language", "how close answers are, by language", _CLOSE),
    ("language", "what answers do, by language", _DECISIONS),
]
_NO_COUNT = {"perplexity", "reference_perplexity", "bits_per_byte", "kl", "same_tokens", "same_start"}
"""Measures that are means; all others are decisions, which are counted."""


def show_suite(result: SuiteResult) -> None:
    """A row for each group, and one for all of a kind."""
    for kind, title, columns in _TABLES:
        groups = result.figures.get(kind, {})
        if groups and any(name in groups[ALL] for name in columns):
            console().print(plain(f"{result.model}: {title}"), style="italic")
            console().print(_table(groups, columns))
    against = f"reference: {result.reference}; " if result.reference else ""
    console().print(plain(f"{against}in brackets the 95 % interval: what others of the same kind may come to"))


def _table(groups: Mapping[str, Mapping[str, Figure]], columns: Mapping[str, str]) -> Table:
    names = [name for name in columns if name in groups[ALL]]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(columns[name], justify="right")
    for group, figures in groups.items():
        table.add_row(plain(group), *(_cell(name, figures[name], group == ALL) for name in names))
    return table


def _cell(name: str, figure: Figure, interval: bool) -> str:
    """A mean, or a count of so many; with its interval where that is asked for and known."""
    text = f"{figure.value:.3f}" if name in _NO_COUNT else f"{figure.yes} of {figure.count}"
    if name.startswith("reference_") or not interval or figure.low == figure.high:
        return text
    digits = 3 if name in _NO_COUNT else 2
    return f"{text} ({figure.low:.{digits}f}–{figure.high:.{digits}f})"
