"""coremltools' parts are those that are extended, and an error names the one that is not."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("coremltools")

from pocketphi.graph.errors import InputError
from pocketphi.targets.coreml.coremltools_parts import Builder, MILProtoExporter, check_parts, loader
from pocketphi.targets.coreml.proto import PACKAGE, VERSION


def test_the_pinned_version_is_the_one_that_is_extended() -> None:
    parser = configparser.ConfigParser()
    parser.read(Path(__file__).parents[3] / "setup.cfg")
    assert parser["options.extras_require"]["coreml"].split() == [PACKAGE, "==", VERSION]


def test_the_parts_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    check_parts()
    monkeypatch.setattr(loader, "_load_value", lambda spec: spec)
    with pytest.raises(
        InputError,
        match=r"^coremltools 9\.0: coremltools\.converters\.mil\.frontend\.milproto\.load\._load_value\(context, value_spec\), "
        r"which pocketphi extends, takes \(spec\); pip install --force-reinstall 'coremltools==9\.0'$",
    ):
        check_parts()
    monkeypatch.undo()
    monkeypatch.delattr(MILProtoExporter, "get_milproto_value")
    with pytest.raises(
        InputError, match=r"MILProtoExporter\.get_milproto_value\(self, var\), which .*, is not there; pip"
    ):
        check_parts()
    monkeypatch.undo()
    monkeypatch.delattr(Builder, "name_count")
    with pytest.raises(
        InputError, match=r"^coremltools 9\.0: Builder\.name_count, which pocketphi extends, is not there;"
    ):
        check_parts()


def test_another_version_is_an_error_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "coremltools-9.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: coremltools\nVersion: 9.1\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from pocketphi.targets.coreml.proto import model_pb2"
    done = subprocess.run([sys.executable, "-c", f"{code}; model_pb2()"], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        "pocketphi.graph.errors.InputError: coremltools 9.1: pocketphi extends parts of 9.0 alone; "
        "pip install 'coremltools==9.0'"
    )
