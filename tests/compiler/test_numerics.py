"""The numeric checks where LongRoPE changes its factors inside of the text that is run: what came before stays as it was in a
decode, and is computed again in a prompt. The saved files are right; a check that expects something else would fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.ui import Ui
from pocketphi.compiler.verify import verify_folder
from pocketphi.graph import random_weights
from pocketphi.graph.config import LongRope
from pocketphi.graph.random_weights import PUBLISHED

PROMPT, STEPS = 65, 64
pytestmark = pytest.mark.usefixtures("whole_decode")


@pytest.mark.parametrize(
    "switch",
    [PROMPT - 1, PROMPT, 100, PROMPT + STEPS - 1],
    ids=["in the prompt", "behind it", "in the decode", "its end"],
)
def test_a_switch_inside_of_the_text(switch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rope = LongRope(tuple([1.0] * 8), tuple(1.0 + i for i in range(8)), switch)
    config = replace(PUBLISHED["tiny"], layers=1, sliding_window=None, long_rope=rope)
    monkeypatch.setitem(random_weights.PUBLISHED, "tiny-long", config)
    options = compile_options("random:tiny-long", tmp_path / "b", recipe="rtn", verify="never")
    bundle = compile_model(options)
    checks = {check.name: check for check in verify_folder(bundle.path, bundle.manifest, Ui()).checks}
    assert [name for name, check in checks.items() if not check.ok] == []
    assert checks["KL decode, exact"].detail.startswith(f"{STEPS} positions")
