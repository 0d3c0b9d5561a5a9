"""A short run of `kills.py`, which has a long one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pocketphi.graph.processes import CAN_FORK


@pytest.mark.skipif(not CAN_FORK, reason="forked workers are for Linux")
def test_a_compile_that_is_killed_at_any_moment_recovers() -> None:
    script = Path(__file__).with_name("kills.py")
    done = subprocess.run([sys.executable, str(script), "18", "--seed", "3"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["recovered"] == 18
