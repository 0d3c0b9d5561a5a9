"""What tests of tuning have in common."""

from __future__ import annotations

import pytest

from pocketphi.targets.tvm_arm.tune import search


def few_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three for each form: a search of all takes half a minute."""
    real = search.space
    monkeypatch.setattr(search, "space", lambda isa, form: real(isa, form)[:3])
