"""A package whose functions are not those of a compile, whatever a short text gives."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coreml_package import CHUNK, CONTEXT, finished, package
from target_files import prepared

pytest.importorskip("coremltools")

from pocketphi.targets.base import Check
from pocketphi.targets.coreml.graph_check import graph_check
from pocketphi.targets.coreml.mlpackage import find_model
from pocketphi.targets.coreml.options import CoreML
from pocketphi.targets.coreml.package import CoreMLBundle
from pocketphi.targets.coreml.proto import model_pb2
from pocketphi.targets.coreml.weightfile import PACKAGE

PROGRAM = finished()


def planned(context: int = CONTEXT, **options: Any) -> CoreMLBundle:
    made = prepared(PROGRAM, CoreML(chunk=CHUNK, **options), context=context)
    assert isinstance(made, CoreMLBundle)
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    package(PROGRAM, folder)
    return folder / PACKAGE


def operations(model: Any, name: str = "prefill") -> Any:
    (block,) = model.mlProgram.functions[name].block_specializations.values()
    return block.operations


def first(model: Any, kind: str) -> Any:
    return next(one for one in operations(model) if one.type == kind)


def constant(model: Any) -> None:
    held = (one for one in operations(model) if one.type == "const")
    op = next(one for one in held if one.attributes["val"].immediateValue.tensor.ints.values)
    op.attributes["val"].immediateValue.tensor.ints.values[0] += 1


def another_operator(model: Any) -> None:
    first(model, "less_equal").type = "less"


def left_out(model: Any) -> None:
    del operations(model)[-1]


def turned_round(model: Any) -> None:
    one = first(model, "add").inputs["x"]
    other = first(model, "add").inputs["y"]
    kept = type(one)()
    kept.CopyFrom(one)
    one.CopyFrom(other)
    other.CopyFrom(kept)


def newer(model: Any) -> None:
    model.specificationVersion += 1


def another_function(model: Any) -> None:
    model.mlProgram.functions["more"].CopyFrom(model.mlProgram.functions["decode"])


def renamed(model: Any) -> None:
    model.description.functions[0].input[0].name += "s"


def checked(model: Path, change: Callable[[Any], None]) -> Check:
    """The check of the package with its model changed, which is as before afterwards."""
    path = find_model(model)
    content = path.read_bytes()
    message = model_pb2().Model.FromString(content)
    change(message)
    path.write_bytes(message.SerializeToString(deterministic=True))
    try:
        return graph_check(model, planned())
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (constant, r"^first prefill/"),
        (another_operator, r"^first prefill/"),
        (left_out, r"^first prefill/"),
        (turned_round, r"^first prefill/"),
        (newer, r"^first the version, or the inputs"),
        (another_function, r"^first more: one has it, the other not"),
        (renamed, r"^first the version, or the inputs"),
    ],
)
def test_what_differs_is_named(change: Callable[[Any], None], said: str, model: Path) -> None:
    check = checked(model, change)
    assert not check.ok
    assert re.search(said, check.detail), check.detail


def described(model: Any) -> None:
    model.description.metadata.author = "somebody"
    model.description.functions[0].input[0].shortDescription = "words"


def test_what_describes_a_package_is_compared_too(model: Path) -> None:
    check = checked(model, described)
    assert (check.measured, check.detail) == (
        1,
        "first the texts that describe it, or a field that Core ML does not know",
    )


def test_another_form_is_another_graph(model: Path) -> None:
    assert graph_check(model, planned()).measured == 0
    for other in (planned(CONTEXT + CHUNK), planned(norm="fp32"), planned(attention="decomposed")):
        assert graph_check(model, other).measured > 0
