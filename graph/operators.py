"""How an operator of `edge` is declared to torch.

`torch.library.custom_op` does the same and more: at an operator's first call it imports torch's compiler, which takes a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

_LIBRARY = torch.library.Library("edge", "FRAGMENT")


class EdgeOperator(Generic[P, T]):
    """A function that is `torch.ops.edge.NAME` as well."""

    def __init__(self, name: str, function: Callable[P, T]) -> None:
        self.name, self._function = name, function
        self.__doc__ = function.__doc__
        _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
        _LIBRARY.impl(name, function, "CPU")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._function(*args, **kwargs)

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """function: gives what the operator gives, empty. It runs without storage."""
        return torch.library.register_fake(f"edge::{self.name}", function, lib=_LIBRARY)


def edge_operator(name: str) -> Callable[[Callable[P, T]], EdgeOperator[P, T]]:
    """Declares a function of tensors and numbers as `torch.ops.edge.NAME`."""
    return lambda function: EdgeOperator(name, function)
