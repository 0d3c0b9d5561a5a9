"""What lies in examples/ runs: the steps of the CI workflow on a tiny model and one target of its matrix, and a short text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CI = Path(__file__).resolve().parents[1] / "examples" / "ci"


def build(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """With the cache of the tests, which holds what others have traced."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        [str(CI / "build.sh"), str(folder / "pocketphi.toml"), str(folder / "results"), "--only", "ort-mobile"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "results" / "pocketphi.json").read_text()), done.stderr + done.stdout


def test_the_steps_of_the_workflow(tmp_path: Path) -> None:
    file = (CI / "pocketphi.toml").read_text()
    for said, instead in (
        ("tokens = 512\nwindow = 256", "tokens = 64\nwindow = 64"),
        ('sample = "sample"', 'sample = "random:tiny"'),
        ("ppl = 45 ", "ppl = 400 "),  # random weights know nothing of 256 tokens
    ):
        assert said in file
        file = file.replace(said, instead)
    (tmp_path / "pocketphi.toml").write_text(file)
    results, log = build(tmp_path)
    assert [(r["name"], r["cached"], r["exit_code"]) for r in results] == [("sample-ort-mobile-rtn", False, 0)]
    assert {"gate max_bytes", "gate lowering", "gate kl", "gate ppl"} <= {
        claim["name"] for claim in results[0]["claims"]
    }
    assert "\x1b" not in log
    assert "\r" not in log
    results, log = build(tmp_path)
    assert [(r["cached"], r["changes"]) for r in results] == [(True, [])]
    assert log.count("the same as before") == 1


def test_the_workflow_runs_that_script() -> None:
    workflow = (CI / "build-bundles.yml").read_text()
    assert "- run: ./build.sh pocketphi.toml results" in workflow
    assert "on:" in workflow
