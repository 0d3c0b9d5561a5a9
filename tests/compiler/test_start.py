"""How a command sets up its process before anything is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="only GNU's OpenMP tells its settings")
@pytest.mark.parametrize("said", [None, "ACTIVE"])
def test_the_threads_of_torch_wait_asleep_unless_the_user_says_otherwise(said: str | None, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "TRUE", **({"OMP_WAIT_POLICY": said} if said else {})}
    call = [sys.executable, "-m", "pocketphi.compiler", "compile", "random:tiny", "--dry-run", "-o", "out"]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"OMP_WAIT_POLICY = '{said or 'PASSIVE'}'" in done.stderr
