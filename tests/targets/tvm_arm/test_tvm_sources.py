"""What is taken of TVM's insides: its wheels' sources, by hash, and the structures between a kernel and its caller."""

from __future__ import annotations

import configparser
import shutil
import sys
from pathlib import Path

import pytest
import tvm
import tvm_ffi

from pocketphi.graph.errors import InputError
from pocketphi.targets.tvm_arm.toolchain import SOURCES, find_toolchain, host_arch
from pocketphi.targets.tvm_arm.tvm_sources import UNITS, WHEELS, copy_sources, listed


def test_the_pinned_versions_are_those_of_the_table() -> None:
    parser = configparser.ConfigParser()
    parser.read(Path(__file__).parents[3] / "setup.cfg")
    pins = [line.split(" == ") for line in parser["options.extras_require"]["tvm"].splitlines() if " == " in line]
    assert sorted(tuple(pin) for pin in pins) == sorted(WHEELS.values())


def test_the_sources_are_the_listed_ones(tmp_path: Path) -> None:
    copy_sources(tmp_path)
    taken = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.cc") if path.parent != tmp_path}
    assert taken == {source for sources in UNITS.values() for source in sources}
    assert len(taken) == 22


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the listed files of both wheels, which Python finds before the real ones."""
    roots = {"tvm": Path(tvm.__file__).parent, "tvm_ffi": Path(tvm_ffi.__file__).parent}
    for name in listed():
        package, _, path = name.partition("/")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(roots[package] / path, tmp_path / name)
    for package in roots:
        (tmp_path / package / "__init__.py").touch()
        monkeypatch.delitem(sys.modules, package)  # find_spec would answer with what was imported
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_wheel_with_other_sources_is_named(wheels: Path, tmp_path: Path) -> None:
    copy_sources(tmp_path / "whole")
    path = wheels / "tvm/src/runtime/rpc/rpc_session.cc"
    path.write_text(path.read_text() + "\n")
    message = (
        r"^apache-tvm 0\.27\.0\.post1: tvm/src/runtime/rpc/rpc_session\.cc, of which the RPC server is built, is {}; "
        r"pip install --force-reinstall 'apache-tvm==0\.27\.0\.post1'$"
    )
    with pytest.raises(InputError, match=message.format("another one")):
        copy_sources(tmp_path / "changed")
    path.unlink()
    with pytest.raises(InputError, match=message.format("missing")):
        copy_sources(tmp_path / "lacking")


def test_another_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "apache_tvm_ffi-0.2.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: apache-tvm-ffi\nVersion: 0.2.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        InputError,
        match=r"^apache-tvm-ffi 0\.2\.0: pocketphi extends parts of 0\.1\.14\.post1 alone; pip install 'apache-tvm-ffi==0",
    ):
        copy_sources(tmp_path / "sources")


SAME = r"""
#include <tvm/ffi/c_api.h>
#include <tvm/runtime/c_backend_api.h>

#include <cstddef>
#include <type_traits>

#include "backend.h"

namespace ours = pocketphi_runtime;

#define SAME_PLACE(type, field, ours_type, ours_field) \
  static_assert(offsetof(type, field) == offsetof(ours::ours_type, ours_field) && \
                sizeof(type::field) == sizeof(ours::ours_type::ours_field), #ours_type "." #ours_field)
#define SAME_SIZE(type, ours_type) static_assert(sizeof(type) == sizeof(ours::ours_type), #ours_type)

SAME_SIZE(DLDataType, DataType);
SAME_PLACE(DLDataType, code, DataType, code);
SAME_PLACE(DLDataType, bits, DataType, bits);
SAME_PLACE(DLDataType, lanes, DataType, lanes);
static_assert(kDLInt == ours::DataType::kInt && kDLUInt == ours::DataType::kUInt && kDLFloat == ours::DataType::kFloat);
SAME_SIZE(DLDevice, Device);
SAME_PLACE(DLDevice, device_type, Device, type);
SAME_PLACE(DLDevice, device_id, Device, id);
static_assert(kDLCPU == ours::Device::kCpu);
SAME_SIZE(DLTensor, TensorHeader);
SAME_PLACE(DLTensor, data, TensorHeader, data);
SAME_PLACE(DLTensor, device, TensorHeader, device);
SAME_PLACE(DLTensor, ndim, TensorHeader, ndim);
SAME_PLACE(DLTensor, dtype, TensorHeader, dtype);
SAME_PLACE(DLTensor, shape, TensorHeader, shape);
SAME_PLACE(DLTensor, strides, TensorHeader, strides);
SAME_PLACE(DLTensor, byte_offset, TensorHeader, byte_offset);
SAME_SIZE(TVMFFIAny, Argument);
SAME_PLACE(TVMFFIAny, type_index, Argument, type);
SAME_PLACE(TVMFFIAny, v_int64, Argument, number);
SAME_PLACE(TVMFFIAny, v_ptr, Argument, pointer);
static_assert(kTVMFFINone == ours::Argument::kNone && kTVMFFIInt == ours::Argument::kInt);
static_assert(kTVMFFIDLTensorPtr == ours::Argument::kTensor);
SAME_SIZE(TVMParallelGroupEnv, LoopGroup);
SAME_PLACE(TVMParallelGroupEnv, sync_handle, LoopGroup, sync);
SAME_PLACE(TVMParallelGroupEnv, num_task, LoopGroup, parts);
static_assert(std::is_same_v<FTVMParallelLambda, int (*)(int, TVMParallelGroupEnv*, void*)>);
static_assert(std::is_same_v<ours::LoopBody, int (*)(int, ours::LoopGroup*, void*)>);
static_assert(std::is_same_v<TVMFFISafeCallType, int (*)(void*, const TVMFFIAny*, int32_t, TVMFFIAny*)>);
static_assert(std::is_same_v<ours::Kernel, int (*)(void*, const ours::Argument*, int32_t, ours::Argument*)>);
"""


def test_kernels_and_their_caller_speak_of_the_same_structures(tmp_path: Path) -> None:
    """By the headers in TVM's wheels, in C++'s own words."""
    copy_sources(tmp_path / "tvm")
    backend = (SOURCES / "backend.h").read_text()
    start, end = backend.index('extern "C" {'), backend.index("}\n", backend.index('extern "C" {')) + 2
    (tmp_path / "backend.h").write_text(backend[:start] + backend[end:])  # TVM's headers declare the same names
    (tmp_path / "same.cc").write_text(SAME)
    folders = [f"-I{folder}" for folder in (tmp_path, tmp_path / "tvm" / "include", SOURCES)]
    find_toolchain("linux", host_arch()).run("-std=c++17", "-fsyntax-only", *folders, str(tmp_path / "same.cc"))
