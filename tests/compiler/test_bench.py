"""bench: one runner at a time."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest

from pocketphi.compiler.bench import bench
from pocketphi.compiler.ui import Ui
from pocketphi.targets.ort_mobile.host import OrtHost


def test_a_runner_is_gone_before_the_next_is_made(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for work in one would take the cores from the other."""
    made: list[Any] = []
    real = OrtHost.runner

    def runner(host: OrtHost, *arguments: Any, **options: Any) -> Any:
        assert [one for one in made if one() is not None] == []
        new = real(host, *arguments, **options)
        made.append(weakref.ref(new))
        return new

    monkeypatch.setattr(OrtHost, "runner", runner)
    speeds = bench(tiny_bundle, [1, 2, 1], 8, 4, 2, Ui())
    assert [speed.threads for speed in speeds] == [1, 2, 1]
    assert len(made) == 3
