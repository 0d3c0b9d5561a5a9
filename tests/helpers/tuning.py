"""What tests of tuning have in common, and others that build a library of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pocketphi.graph.random_weights import PUBLISHED
from pocketphi.targets.tvm_arm.tune import search

FEW = replace(PUBLISHED["tiny"], layers=2, intermediate_size=64, vocab_size=128)
"""All matrices are 128x64 or 64x64, so that a library has few kernels."""


def few_forms(patch: pytest.MonkeyPatch) -> str:
    """A model of that shape, by its name."""
    patch.setitem(PUBLISHED, "few-forms", FEW)
    return "random:few-forms"


def few_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three for each form: a search of all takes half a minute."""
    real = search.space
    monkeypatch.setattr(search, "space", lambda isa, form: real(isa, form)[:3])
