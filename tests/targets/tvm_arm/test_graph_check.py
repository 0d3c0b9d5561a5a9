"""A library, and what lies beside it, is compared with what a compile writes: no run sees what these edits do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.files_check import asked_of
from pocketphi.compiler.hosts import open_host
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.rebuild import rebuild
from pocketphi.compiler.ui import Ui
from pocketphi.compiler.verify import _lowered, verify_folder
from pocketphi.graph.errors import InputError
from pocketphi.graph.program import Program
from pocketphi.targets.base import Check
from pocketphi.targets.tvm_arm import library, lower
from pocketphi.targets.tvm_arm.build_runtime import source_names
from pocketphi.targets.tvm_arm.elf import Elf

LIBRARY, ROW = "model.so", '{"kernels": 1, "isa": "neon", "cpu": "any", "form": "decode 1x1 block 32 q+scale", '
Edit = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Made:
    """A bundle, and the program that it was made of."""

    folder: Path
    program: Program

    def check(self, folder: Path) -> Check:
        said = Bundle.open(self.folder, check=False).manifest
        (check,) = open_host(folder, said).graph_checks(self.program, asked_of(said))
        return check


def built(out: Path, **options: str) -> Path:
    compile_model(compile_options("random:tiny", out, ("tvm-arm",), recipe="rtn", verify="never", **options))
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = built(tmp_path_factory.mktemp("tvm") / "b", os="host")
    manifest = Bundle.open(folder).manifest
    rebuilt = rebuild(folder, manifest.recipe, open_host(folder, manifest).weights())
    return Made(folder, _lowered(rebuilt, manifest)[0])


def test_what_a_compile_writes_passes(made: Made) -> None:
    check = made.check(made.folder)
    assert (check.ok, check.detail) == (True, "5 files, model.so built again")


def turned(at: int) -> Edit:
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def said(old: str, new: str) -> Edit:
    def edit(data: bytes) -> bytes:
        assert old.encode() in data
        return data.replace(old.encode(), new.encode(), 1)

    return edit


@pytest.mark.parametrize(
    ("file", "edit", "named"),
    [
        ("libpocketphi.so", turned(300_000), "libpocketphi.so: another runtime"),
        ("libpocketphi.so", lambda data: b"", "libpocketphi.so: another runtime"),
        ("pocketphi_runtime.h", said("int32_t", "int64_t"), "pocketphi_runtime.h: another interface"),
        ("model.json", said('"functions"', '"kept": 1, "functions"'), "model.json: 'kept'"),
        ("model.json", said('"vocab"', '"vocab": 7, "vocab"'), "model.json: its text"),
        ("model.json", said('"library": "model.so"', '"library": "libmodel.a"'), "model.json: 'library'"),
        (
            "tuning.jsonl",
            lambda data: ROW.encode() + b'"schedule": {"units": 4}, "us": 1, "how": "host"}\n',
            "tuning.jsonl: other rows than those of the model's matrices",
        ),
    ],
)
def test_an_edited_file_is_seen(file: str, edit: Edit, named: str, made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(made.folder, folder)
    path = folder / file
    path.write_bytes(edit(path.read_bytes()))
    check = made.check(folder)
    assert (check.ok, check.detail) == (False, f"first {named}")


def test_a_library_that_holds_a_shorter_prompt(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is planned for 160 tokens at once, and a runtime gives it 256: verification runs no prompt as long. Where it
    says that another compiler linked it, machine code is not compared: its calls are."""
    with monkeypatch.context() as patch:
        patch.setattr(lower, "CHUNK", 160)
        folder = built(tmp_path / "b", os="host")
    check = made.check(folder)
    assert (check.ok, check.detail) == (False, f"first {LIBRARY}: other calls, constants or machine code")
    path = folder / LIBRARY
    path.write_bytes(said("GCC: (", "gcc: (")(path.read_bytes()))
    check = made.check(folder)
    assert (check.ok, check.detail) == (False, f"first {LIBRARY}: other calls or constants")


def test_what_was_linked_elsewhere_is_told(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(made.folder, folder)
    path = folder / LIBRARY
    path.write_bytes(said("GCC: (", "gcc: (")(path.read_bytes()))
    manifest = Bundle.open(folder, check=False).manifest
    (caveat,) = open_host(folder, manifest).caveats(8)
    assert caveat.startswith("its library was linked by 'gcc: (")
    check = made.check(folder)
    assert (check.ok, "machine code" in check.detail) == (True, False)
    assert open_host(made.folder, manifest).caveats(8) == []


def test_a_library_that_is_known_is_not_built_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.relax, "build", None)  # would fail if it were called
    assert made.check(made.folder).ok


def test_files_that_do_not_run_here_are_compared(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a bundle for Android only an archive is there, which no machine like this one runs."""
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    folder = built(tmp_path / "b", os="android")
    manifest = Bundle.open(folder).manifest
    (check,) = open_host(folder, manifest).graph_checks(made.program, asked_of(manifest))
    assert (check.ok, check.detail) == (True, f"{3 + len(source_names())} files, libmodel.a built again")
    source = folder / "runtime" / "session.cc"
    source.write_bytes(source.read_bytes() + b"\n")
    (check,) = open_host(folder, manifest).graph_checks(made.program, asked_of(manifest))
    assert (check.ok, check.detail) == (False, "first runtime/session.cc: another runtime")
    source.write_bytes(source.read_bytes()[:-1])
    path = folder / "libmodel.a"
    path.write_bytes(turned(path.stat().st_size // 2)(path.read_bytes()))
    result = verify_folder(folder, manifest, Ui())  # what failed comes before what could not be run
    assert [check.detail for check in result.checks if not check.ok] == [
        "first libmodel.a: other calls, constants or machine code"
    ]


@pytest.mark.parametrize(
    "damage", [lambda d: b"", lambda d: d[:70], lambda d: d[:-300], lambda d: b"\x7fELF" + d[4:99]]
)
def test_a_damaged_library_is_named(damage: Edit, made: Made, tmp_path: Path) -> None:
    path = tmp_path / LIBRARY
    path.write_bytes(damage((made.folder / LIBRARY).read_bytes()))
    with pytest.raises(InputError, match=r"model.so: damaged \(.*\); copy or compile it again"):
        Elf(path).calls()


def test_calls_are_those_that_the_runtime_reads(made: Made) -> None:
    """The text that the library's function `description` returns lies among its constants."""
    calls = Elf(made.folder / LIBRARY).calls()
    described = json.loads((made.folder / "model.json").read_text())
    assert b"relax.VMExecutable" in calls
    assert described["params_digest"].encode() in calls
