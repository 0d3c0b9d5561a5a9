"""Constants with other values than their names say, and functions that do not share theirs, one at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pocketphi.targets.coreml.constant_check import constant_check
from pocketphi.targets.coreml.mlpackage import Function, MLPackage, Operation
from pocketphi.targets.coreml.raw import Raw, ValueType
from pocketphi.targets.coreml.weightfile import INLINE

MANY = 4 * INLINE


def raw(values: torch.Tensor, dtype: str, shape: tuple[int, ...] | None = None) -> Raw:
    return Raw(dtype, shape or tuple(values.shape), values.contiguous().view(torch.uint8).flatten().clone())


def numbers(count: int, times: int = 1) -> torch.Tensor:
    return torch.arange(count, dtype=torch.int32).repeat(times)


def const(name: str, value: Raw) -> Operation:
    kind = ValueType(value.dtype, value.shape)
    return Operation("const", name, {}, {"val": value}, ((name, kind),))


def good() -> dict[str, Operation]:
    weight = torch.arange(MANY, dtype=torch.int16)
    scale = raw(torch.ones(2, dtype=torch.float16), "fp16")
    data = raw(weight.view(torch.uint8), "int8")
    decoded = (("w_quantized", ValueType("fp16", (2 * MANY,))),)
    shifted = {"data": (data,), "scale": (scale,)}
    return {
        "positions": const("const_positions", raw(numbers(MANY), "int32")),
        "zeros": const(f"const_zeros_{MANY}", raw(torch.zeros(MANY, dtype=torch.float16), "fp16")),
        "steps": const("const_steps_4", raw(numbers(MANY // 4, 4), "int32")),
        "weight": const("w", raw(weight, "int16")),
        "decoded": Operation("constexpr_blockwise_shift_scale", "w_quantized", shifted, {}, decoded),
        "small": const("any_name", raw(numbers(INLINE - 1), "int32")),
    }


def weights_of(function: dict[str, Operation]) -> list[Raw]:
    (weight,) = function["weight"].attributes.values() if "weight" in function else (None,)
    decoded = [value for one in function["decoded"].inputs.values() for value in one] if "decoded" in function else []
    return [one for one in (weight, *decoded) if isinstance(one, Raw)]


def wrong(*functions: dict[str, Operation]) -> tuple[int, str]:
    made = {
        name: Function(name, {}, {}, {}, tuple(operations.values()), {})
        for name, operations in zip(("prefill", "decode"), functions)
    }
    check = constant_check(MLPackage(Path("p"), 9, made, "prefill", {}), weights_of(functions[0]))
    assert check.bound == 0
    return int(check.measured), check.detail


def test_good_ones() -> None:
    assert wrong(good(), good()) == (0, "6 constants")


def last_changed(value: Raw) -> Raw:
    data = value.data.clone()
    data[-1] ^= 1
    return Raw(value.dtype, value.shape, data)


@pytest.mark.parametrize("name", ["positions", "zeros", "steps"])
def test_a_last_value(name: str) -> None:
    other = good()
    (value,) = other[name].attributes.values()
    assert isinstance(value, Raw)
    other[name] = const(other[name].name, last_changed(value))
    assert wrong(other, other) == (2, f"first {other[name].name} in prefill")


@pytest.mark.parametrize("name", ["positions", "zeros", "steps", "weight"])
def test_one_function_has_another(name: str) -> None:
    """Other bytes, another type of the same bytes, another shape of them: also of weights."""
    other, found = good(), good()[name]
    (value,) = found.attributes.values()
    assert isinstance(value, Raw)
    for odd in (last_changed(value), Raw("uint8", value.shape, value.data), Raw(value.dtype, (1, MANY), value.data)):
        assert wrong(good(), {**other, name: const(found.name, odd)}) == (1, f"first {found.name} in decode")


@pytest.mark.parametrize("parameter", ["data", "scale"])
def test_one_function_decodes_another(parameter: str) -> None:
    other, found = good(), good()["decoded"]
    (value,) = found.inputs[parameter]
    assert isinstance(value, Raw)
    inputs = {**found.inputs, parameter: (last_changed(value),)}
    other["decoded"] = Operation(found.kind, found.name, inputs, {}, found.outputs)
    assert wrong(good(), other) == (1, f"first w_quantized_{parameter} in decode")


@pytest.mark.parametrize("name", ["const_position", "xconst_positions", "const_zeros_", "const_steps_0", "v"])
def test_a_name_that_says_nothing(name: str) -> None:
    assert wrong({"odd": const(name, raw(numbers(MANY), "int32"))}) == (1, f"first {name} in prefill")


def test_from_this_size_on_values_lie_in_the_file() -> None:
    assert wrong({"odd": const("any_name", raw(numbers(INLINE), "int32"))})[0] == 1


@pytest.mark.parametrize("name", ["w_shifted", "w", "wide"])
def test_a_name_that_begins_as_a_weights(name: str) -> None:
    """Bytes that no weight was read of."""
    many = {**good(), "odd": const(name, raw(numbers(MANY), "int32"))}
    if name == "w":
        del many["weight"]
    assert wrong(many) == (1, f"first {name} in prefill")
