"""One kernel with one schedule, compiled by itself."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import IRModule

from pocketphi.targets.tvm_arm.kernels.matmul import Form, Schedule, matmul
from pocketphi.targets.tvm_arm.objects import passes
from pocketphi.targets.tvm_arm.platform import Platform

KERNEL = "kernel"
"""The function's name in the compiled module."""


def compile_kernel(platform: Platform, form: Form, schedule: Schedule) -> Any:
    """A TVM executable with one function; its arguments are those of `kernels.matmul.matmul`."""
    function = matmul(KERNEL, platform.isa, form, schedule).with_attr("global_symbol", KERNEL)
    with passes():
        return tvm.compile(IRModule({KERNEL: function}), target=tvm.target.Target(platform.target()))


def assembly_of(platform: Platform, form: Form, schedule: Schedule) -> str:
    return str(compile_kernel(platform, form, schedule).mod.inspect_source("asm"))
