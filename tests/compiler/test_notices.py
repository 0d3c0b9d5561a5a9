"""What was found in a checkpoint and is not used: said, shown and recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hf_folders import configure, save, tensors

from pocketphi.compiler.cli import main

KEY = "not used, as transformers' Phi-3 has no such setting: 'mine' = '[/red]'"
FILE = "read model.safetensors, as transformers does; not read: pytorch_model.bin"


def test_notices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, bundle = tmp_path / "model", tmp_path / "bundle"
    folder.mkdir()
    configure(save(folder, tensors()), mine="[/red]")  # not to be taken for a colour
    (folder / "pytorch_model.bin").write_bytes(b"x")
    notices = [f"{folder}/config.json: {KEY}", f"{folder}: {FILE}"]

    assert main(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notices"] == notices
    assert main(["inspect", str(folder)]) == 0
    assert "'[/red]'" in capsys.readouterr().out

    assert main(["make-checkpoint", str(folder), "-o", str(tmp_path / "copy"), "--fold-norms"]) == 0
    assert capsys.readouterr().err.splitlines()[:2] == notices

    compile_it = ["compile", str(folder), "--recipe", "rtn", "--block", "32", "-o", str(bundle)]
    assert main([*compile_it, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"][:2] == notices
    assert main([*compile_it, "--verify", "never"]) == 0
    assert capsys.readouterr().err.splitlines()[:2] == notices
    assert json.loads((bundle / "manifest.json").read_text())["source"]["notices"] == notices
