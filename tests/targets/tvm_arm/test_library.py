"""A library is kept for the next model of its shape and formats, and made again where what was kept is not what it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tvm")

import numpy as np
import tvm
from tvm import IRModule, relax, topi
from tvm.script import from_source, ir, tirx
from tvm.script.relax import Tensor

from pocketphi.graph import sealed
from pocketphi.targets.tvm_arm import library, objects
from pocketphi.targets.tvm_arm.platform import Platform

ROOT = Path(__file__).parents[3]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of libraries alone; the runtime is the one of all tests."""
    monkeypatch.setattr(sealed, "default_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache/tvm-library"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was made since the test began: `link` for a library, and `build system_lib` for an archive."""
    calls: list[str] = []

    def count(module: Any, name: str) -> None:
        real = getattr(module, name)

        def counted(*given: Any, **named: Any) -> Any:
            calls.append(" ".join([name, *named]))
            return real(*given, **named)

        monkeypatch.setattr(module, name, counted)

    count(library.objects, "link")
    count(library.relax, "build")
    return calls


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that TVM compiled since the test began."""
    names: list[str] = []
    real = objects.tirx.build

    def counted(module: IRModule, *given: Any) -> Any:
        names.extend(variable.name_hint for variable in module.functions)
        return real(module, *given)

    monkeypatch.setattr(objects.tirx, "build", counted)
    return names


def module(size: int, times: int = 1) -> IRModule:
    """A kernel that adds, and one that multiplies where that is done more than once."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", Tensor((size,), "float32"))
    with builder.function("main", [x]):
        found = builder.emit_te(lambda held: topi.add(held, held), x, primfunc_name_hint="twice")
        for _ in range(times - 1):
            found = builder.emit_te(lambda held: topi.multiply(held, held), found, primfunc_name_hint="square")
        builder.emit_func_output(found)
    return builder.finalize()


def made(folder: Path, size: int = 16, system: str = "host", cpu: str | None = None) -> Path:
    folder.mkdir()
    described = library.build_library(module(size), Platform.of(system, cpu), folder)
    return folder / str(described["library"])


def test_it_is_built_once(cache: Path, built: list[str], tmp_path: Path) -> None:
    first, second = (made(tmp_path / name) for name in "ab")
    assert built == ["link"]
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_mode == second.stat().st_mode

    (entry,) = cache.iterdir()
    for at in (0, 40, entry.stat().st_size - 1):  # the seal, what it is about, the library
        data = bytearray(entry.read_bytes())
        data[at] ^= 1
        entry.write_bytes(data)
        assert made(tmp_path / f"after {at}").read_bytes() == first.read_bytes()
    assert built == ["link"] * 4
    assert list(cache.iterdir()) == [entry]


def test_what_decides_it_makes_another(cache: Path, built: list[str], tmp_path: Path) -> None:
    found = [made(tmp_path / "16").read_bytes(), made(tmp_path / "32", 32).read_bytes()]
    found += [made(tmp_path / f"32 {cpu}", 32, "ios", cpu).read_bytes() for cpu in ("neon", "dotprod")]
    assert built == [*["link"] * 2, *["build system_lib"] * 2]
    assert len(set(found[:3])) == 3
    assert made(tmp_path / "again", 32, "ios", "dotprod").read_bytes() == found[3]
    assert len(built) == len(list(cache.iterdir())) == 4


KERNELS = {
    "as it is": "B[i] = A[i] * T.float32(2)",
    "a constant": "B[i] = A[i] * T.float32(2.0000002)",
    "an operator": "B[i] = A[i] + T.float32(2)",
    "an order": "B[i] = T.float32(2) * A[i]",
    "a place": "B[i] = A[15 - i] * T.float32(2)",
    "a function": 'B[i] = T.call_extern("float32", "sinf", A[i])',
    "another function": 'B[i] = T.call_extern("float32", "cosf", A[i])',
}
HEADS = {
    "a loop": ("T.serial(16)", "T.vectorized(16)"),
    "another loop": ("T.serial(16)", "T.parallel(16)"),
    "a size": ("T.serial(16)", "T.serial(15)"),
    "a type": ('B: T.Buffer((16,), "float32")', 'B: T.Buffer((16,), "float16")'),
    "a shape": ('A: T.Buffer((16,), "float32")', 'A: T.Buffer((17,), "float32")'),
    "an attribute": ('"tirx.noalias": True', '"tirx.noalias": False'),
}


def kernel(name: str) -> str:
    body = KERNELS.get(name, KERNELS["as it is"])
    text = f"""
@I.ir_module
class Module:
    @T.prim_func(s_tir=True)
    def kernel(A: T.Buffer((16,), "float32"), B: T.Buffer((16,), "float32")):
        T.func_attr({{"tirx.noalias": True}})
        for i in T.serial(16):
            {body}
"""
    return text.replace(*HEADS.get(name, ("", "")))


def contents(text: str) -> dict[str, Any]:
    return library._contents(from_source(text, {"I": ir, "T": tirx}))


def test_a_kernel_is_told_from_every_other() -> None:
    found = {name: contents(kernel(name)) for name in (*KERNELS, *HEADS)}
    assert len({repr(one) for one in found.values()}) == len(found)
    renamed = kernel("as it is").replace("for i in", "for j in").replace("[i]", "[j]")
    assert contents(renamed) == found["as it is"]  # no name of a loop is in machine code
    assert contents(kernel("as it is").replace("def kernel", "def other")) != found["as it is"]


def test_another_process_says_the_same() -> None:
    code = "import sys; from tests.targets.tvm_arm.test_library import library, module; print(library._contents(module(16)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == str(library._contents(module(16))), done.stderr


def test_a_cache_that_cannot_be_written_costs_time_only(cache: Path, built: list[str], tmp_path: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder would be")
    assert made(tmp_path / "a").read_bytes() == made(tmp_path / "b").read_bytes()
    assert built == ["link"] * 2


def linked(folder: Path, module: IRModule) -> bytes:
    folder.mkdir()
    platform = Platform.of("host")
    objects.link(module, platform.target(), folder / "x.so", platform.toolchain().fcompile, folder)
    return (folder / "x.so").read_bytes()


def test_a_kernel_is_compiled_once(cache: Path, compiled: list[str], tmp_path: Path) -> None:
    alone = linked(tmp_path / "a", module(16))
    linked(tmp_path / "b", module(16, times=2))
    assert compiled == ["twice", "square"]
    assert linked(tmp_path / "c", module(16)) == alone

    for entry in (cache.parent / "tvm-kernel").iterdir():
        entry.write_bytes(entry.read_bytes()[:-1])
    assert linked(tmp_path / "d", module(16)) == alone
    linked(tmp_path / "e", module(32))
    assert compiled == ["twice", "square", "twice", "twice"]


def test_kernels_give_the_same_one_by_one_and_together(cache: Path, tmp_path: Path) -> None:
    """What `relax.build` makes, as TVM's own machine runs it: cold, and with one of two kernels known."""
    linked(tmp_path / "known", module(16))
    linked(tmp_path / "made", module(16, times=2))
    target = tvm.target.Target(Platform.of("host").target())
    relax.build(module(16, times=2), target).export_library(str(tmp_path / "together.so"))
    x = np.linspace(-2, 2, 16, dtype=np.float32)
    found = []
    for path in (tmp_path / "made/x.so", tmp_path / "together.so"):
        machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
        found.append(machine["main"](tvm.runtime.tensor(x)).numpy())
    assert (found[0] == found[1]).all()
    assert (found[0] == (x + x) ** 2).all()


def test_kernels_that_cannot_be_kept_are_compiled_again(
    compiled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setattr(sealed, "default_folder", lambda: tmp_path / "a file")
    assert linked(tmp_path / "a", module(16)) == linked(tmp_path / "b", module(16))
    assert compiled == ["twice"] * 2
