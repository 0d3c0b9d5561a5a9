"""The parts of coremltools that it offers to nobody, behind one door. An import of this file fails where they are others.

- `MILProtoExporter.get_milproto_value`: where a constant becomes a reference into the weight file, here to a planned offset.
- `CoreMLProtoExporter`: inputs, states and functions of the description.
- `Builder.name_count`: the counter behind generated names, which would not be the same in a second compile.
- `milproto.load._load_value`: the reader of constants, for a check of types that reads no weight.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pocketphi.graph.foreign import check_version, other_parts
from pocketphi.targets.coreml.proto import PACKAGE, VERSION

# before the import: it warns about the version of torch, and that this may be no Mac, neither of which matters here
logging.getLogger("coremltools").setLevel(logging.ERROR)

import coremltools as ct  # noqa: E402 - a missing one is for the callers to tell

check_version(PACKAGE, VERSION, "coreml")

try:
    from coremltools.converters.mil.backend.mil import helper
    from coremltools.converters.mil.backend.mil.load import CoreMLProtoExporter, MILProtoExporter
    from coremltools.converters.mil.frontend.milproto import load as loader
    from coremltools.converters.mil.frontend.milproto.helper import proto_to_types
    from coremltools.converters.mil.mil import Builder, Function, Program, types
except ImportError as error:
    raise other_parts(PACKAGE, VERSION, str(error)) from error

__all__ = ["Builder", "Function", "Program", "ct", "types"]  # public ones: this import is a quiet one
Var = Any
"""A value of coremltools' MIL."""

_PARTS: tuple[tuple[Any, str, str], ...] = (
    (MILProtoExporter, "__init__", "self, prog, weights_dir, specification_version"),
    (MILProtoExporter, "get_milproto_value", "self, var"),
    (MILProtoExporter, "export", "self"),
    (CoreMLProtoExporter, "export", "self, specification_version"),
    (helper, "create_immediate_value", "var"),
    (helper, "types_to_proto_primitive", "valuetype"),
    (helper, "create_file_value_tensor", "file_name, offset, dim, data_type"),
    (Program, "_check_early_error_out_for_invalid_program", "self"),
    (loader, "load", "model_spec, specification_version, file_weights_dir, kwargs"),
    (loader, "_load_value", "context, value_spec"),
    (Builder, "name_count", ""),
)
"""Owner, name, parameters."""


def check_parts() -> None:
    """Raises InputError, which names the part that is not what is extended here."""
    for owner, name, expected in _PARTS:
        part = getattr(owner, name, None)
        found = ", ".join(inspect.signature(part).parameters) if callable(part) and expected else ""
        if part is None or found != expected:
            said = f"{getattr(owner, '__qualname__', owner.__name__)}.{name}" + (f"({expected})" if expected else "")
            how = "is not there" if part is None else f"takes ({found})"
            raise other_parts(PACKAGE, VERSION, f"{said}, which pocketphi extends, {how}")


check_parts()


@contextlib.contextmanager
def reproducible_names() -> Iterator[None]:
    """Start coremltools' counter of generated names from zero, and put back what it was."""
    before = dict(Builder.name_count)
    Builder.name_count.clear()
    try:
        yield
    finally:
        Builder.name_count.clear()
        Builder.name_count.update(before)


def export(program: Any, specification: int, value_of: Callable[[Var], Any]) -> Any:
    """The `Model` message of a MIL program. value_of: a constant's `Value` message."""

    class Exporter(MILProtoExporter):  # type: ignore[misc, unused-ignore]
        def get_milproto_value(self, var: Var) -> Any:
            return value_of(var)

    program._check_early_error_out_for_invalid_program()  # as coremltools' converter does
    proto = Exporter(program, weights_dir="", specification_version=specification).export()
    options: dict[str, Any] = {"convert_to": "mlprogram", "convert_from": "milinternal", "classifier_config": None}
    exporter = CoreMLProtoExporter(program, proto, None, None, specification_version=specification, **options)
    return exporter.export(specification)


def immediate_value(var: Var) -> Any:
    """The `Value` message of a constant that lies in the model."""
    return helper.create_immediate_value(var)


def file_value(var: Var, path: str, offset: int, shape: tuple[int, ...]) -> Any:
    """The `Value` message of a constant that lies in a file."""
    kind = helper.types_to_proto_primitive(var.sym_type.get_primitive())
    return helper.create_file_value_tensor(path, offset, shape, kind)


def load_types(spec: Any, weights: Path, stand_in: Callable[[Any, tuple[int, ...]], Any]) -> None:
    """Build a `Model` message again as a MIL program, which infers every type. Raises what coremltools raises.

    stand_in: (NumPy's type, shape) → the value to use in place of one in the weight file, or None to have that one read
    """
    real = loader._load_value

    def load_value(context: Any, value: Any) -> Any:
        if value.WhichOneof("value") == "blobFileValue":
            kind = proto_to_types(value.type)
            shape = tuple(kind.get_shape()) if types.is_tensor(kind) else ()
            found = stand_in(types.nptype_from_builtin(kind.get_primitive()), shape)
            if found is not None:
                return found
        return real(context, value)

    loader._load_value = load_value
    try:
        loader.load(spec, spec.specificationVersion, file_weights_dir=str(weights))
    finally:
        loader._load_value = real
