"""Calling a kernel by its operator's name, and comparing what it gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketphi.targets.coreml.kernels import KERNELS


def run(op: str, **inputs: Any) -> Any:
    """The kernel's results. Numbers, lists and arrays become tensors of the types that kernels compute with."""

    def given(value: Any) -> Any:
        if value is None or isinstance(value, str | Tensor):
            return value
        tensor = torch.as_tensor(np.array(value))
        return tensor.float() if tensor.is_floating_point() else tensor

    return KERNELS[op](**{name: given(value) for name, value in inputs.items()})


def close(came: Tensor, expected: Tensor) -> None:
    assert came.shape == expected.shape
    torch.testing.assert_close(came.double(), expected.double(), rtol=1e-5, atol=1e-5)
