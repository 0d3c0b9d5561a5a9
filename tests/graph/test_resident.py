"""Memory of a process: what is resident now is not the most that ever was."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pocketphi.compiler.options import compile_options
from pocketphi.compiler.plan import compile_memory
from pocketphi.compiler.precision import asked_policy
from pocketphi.graph import resident
from pocketphi.graph.published import PUBLISHED
from pocketphi.graph.resident import forget_peak, resident_now, resident_peak

LARGE = 300_000_000
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems tell no more than a peak")


def test_memory_that_was_given_back_does_not_count(tmp_path: Path) -> None:
    """As after an earlier bundle of a matrix: its memory is no part of what the next one takes. In a process of its own: what
    other tests have left may go at any moment."""
    script = f"import sys; from tests.graph.test_resident import given_back; given_back({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def given_back(out: str) -> None:
    options = compile_options("random:tiny", Path(out), recipe="rtn")
    forget_peak()
    policy = asked_policy(options, tied=False)
    before, planned = resident_now(), compile_memory(PUBLISHED["tiny"], options, policy)
    block = bytearray(b"x") * LARGE
    assert resident_now() > before + LARGE * 0.9
    assert compile_memory(PUBLISHED["tiny"], options, policy) > planned + LARGE * 0.9
    del block
    assert resident_peak() > before + LARGE * 0.9
    assert compile_memory(PUBLISHED["tiny"], options, policy) < planned + LARGE * 0.1
    forget_peak()
    assert resident_peak() < before + LARGE * 0.1


def test_the_unit_is_that_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /proc does not tell: kilobytes on Linux, bytes on macOS."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr("pathlib.Path.read_text", lambda path: "")
    assert resident_now() >= used * 1024
    monkeypatch.setattr(resident, "_UNIT", 1)
    assert used <= resident_now() < used * 1024
    assert used <= resident_peak() < used * 1024
