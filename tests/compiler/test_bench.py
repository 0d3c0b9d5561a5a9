"""bench: one runner at a time."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest

from pocketphi.compiler.bench import bench
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import InputError
from pocketphi.targets.ort_mobile.host import OrtHost


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (([0], 8, 4, 1), "--threads 0: expected 1 to 1,024"),
        (([1, -3], 8, 4, 1), "--threads -3: expected 1 to 1,024"),
        (([1], 0, 4, 1), "--prompt-tokens 0: expected 1 to 2,147,483,648"),
        (([1], 8, -1, 1), "--generate -1: expected 1 to"),
        (([1], 8, 4, 0), "--rounds 0: expected 1 to"),
        (([1], 200, 100, 1), "--prompt-tokens 200 and --generate 100: .* holds 256 tokens"),
    ],
)
def test_numbers_out_of_range(numbers: tuple[list[int], int, int, int], message: str, tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match=message):
        bench(tiny_bundle, *numbers, Ui())


def test_a_runner_is_gone_before_the_next_is_made(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for work in one would take the cores from the other."""
    made: list[Any] = []
    real = OrtHost.talker

    def talker(host: OrtHost, *arguments: Any, **options: Any) -> Any:
        assert [one for one in made if one() is not None] == []
        new = real(host, *arguments, **options)
        made.append(weakref.ref(new))
        return new

    monkeypatch.setattr(OrtHost, "talker", talker)
    speeds = bench(tiny_bundle, [1, 2, 1], 8, 4, 2, Ui())
    assert [speed.threads for speed in speeds] == [1, 2, 1]
    assert len(made) == 3
