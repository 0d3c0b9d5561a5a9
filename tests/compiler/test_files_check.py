"""What no run of a bundle looks at: each file and each word of the manifest is what a compile writes, or is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.manifest import MANIFEST
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.files_check import details_check, files_check, record_check
from pocketphi.compiler.hosts import open_host
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.rebuild import rebuild
from pocketphi.compiler.text import random_tokens
from pocketphi.compiler.verify import _lowered
from pocketphi.graph.errors import CheckFailed
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.program import Program
from pocketphi.targets.base import Check
from tests.compiler.test_resealed import resealed

Edit = Callable[[Path], None]


@pytest.fixture(scope="module")
def program(tiny_bundle: Path) -> Program:
    manifest = Bundle.open(tiny_bundle).manifest
    return _lowered(rebuild(tiny_bundle, manifest.recipe, open_host(tiny_bundle, manifest).weights()), manifest)


def checks(folder: Path, program: Program) -> Iterator[Check]:
    """Those of files, as verification makes them."""
    manifest = Bundle.open(folder).manifest
    host = open_host(folder, manifest)
    yield record_check(manifest, read_config(folder))
    yield details_check(manifest, "ort-mobile", host, program)
    yield from host.graph_checks(program)
    yield files_check(folder, manifest, [host])


def text(name: str, old: str, new: str) -> Edit:
    def edit(folder: Path) -> None:
        content = (folder / name).read_text()
        assert old in content
        (folder / name).write_text(content.replace(old, new, 1))
        resealed(folder)

    return edit


def manifest(change: Callable[[dict[str, Any]], object]) -> Edit:
    return lambda folder: resealed(folder, lambda said: (change(said), None)[1])


def one_more(name: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / name).write_bytes(b"{}")
        said = json.loads((folder / MANIFEST).read_text())
        said["files"][name] = {"bytes": 0, "sha256": ""}
        (folder / MANIFEST).write_text(json.dumps(said))
        resealed(folder)

    return edit


def graph(change: Callable[[onnx.ModelProto], object]) -> Edit:
    def edit(folder: Path) -> None:
        model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
        change(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        resealed(folder)

    return edit


def another_shape(model: onnx.ModelProto) -> None:
    """Of as many elements."""
    tensor = next(t for t in model.graph.initializer if t.external_data and len(t.dims) == 2)
    tensor.dims[:] = [tensor.dims[0] * tensor.dims[1], 1]


def spare(model: onnx.ModelProto) -> None:
    model.graph.initializer.add().CopyFrom(next(t for t in model.graph.initializer if t.external_data))
    model.graph.initializer[-1].name = "spare"


LACKS, OTHERWISE = (
    "operators that required_operators.config has otherwise",
    "operations that are not the model's",
)
NUMBERS, WORDS = "numbers of the manifest that are not the model's", "words of the manifest that are not the files'"
FILES = "files that no compile writes"
EDITS: dict[str, tuple[Edit, str, str]] = {
    "an operator": (text("required_operators.config", "GroupQueryAttention,", ""), LACKS, ""),
    "a key": (text("config.json", "{", '{"more": 1,'), FILES, "first config.json"),
    "a key twice": (text("config.json", '"vocab_size"', '"vocab_size": 3, "vocab_size"'), FILES, "first config.json"),
    "a file": (one_more("processor_config.json"), FILES, "first processor_config.json"),
    "a shape": (graph(another_shape), OTHERWISE, "first 'model.embed_tokens.weight"),
    "a weight": (graph(spare), OTHERWISE, "first 'spare'"),
    "layers": (manifest(lambda m: m["model"].update(layers=9)), NUMBERS, "model.layers is 9, expected 3"),
    "a window": (manifest(lambda m: m["model"].update(sliding_window=None)), NUMBERS, "model.sliding_window is None"),
    "a context": (manifest(lambda m: m["model"].update(context=9)), NUMBERS, "model.context is 9, expected 256"),
    "a level": (
        manifest(lambda m: m["targets"]["ort-mobile"].update(accuracy_level=1)),
        WORDS,
        "ort-mobile.accuracy_level is 1, expected 4",
    ),
    "a recipe's level": (
        manifest(lambda m: m["recipe"].update(accuracy_level=1)),
        WORDS,
        "recipe.accuracy_level is 1, expected 4",
    ),
    "operators": (manifest(lambda m: m["operators"].update(linear=1)), WORDS, "operators are not the graph's"),
}


def test_what_a_compile_writes_passes(tiny_bundle: Path, program: Program) -> None:
    assert [check for check in checks(tiny_bundle, program) if not check.ok] == []


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_seen(name: str, tiny_bundle: Path, program: Program, tmp_path: Path) -> None:
    edit, check, detail = EDITS[name]
    folder = shutil.copytree(tiny_bundle, tmp_path / "b")
    edit(folder)
    found = [one for one in checks(folder, program) if not one.ok]
    assert [one.name for one in found] == [check]
    assert found[0].detail.startswith(detail)


@pytest.mark.parametrize("change", [{"block": 16}, {"symmetric": False}])
def test_a_recipe_of_other_weights(change: dict[str, Any], tiny_bundle: Path, tmp_path: Path) -> None:
    """What `scale_bits` adds is a hint, which a target may leave out: not compared."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "b")
    resealed(folder, lambda said: said["recipe"].update(change))
    said = Bundle.open(folder).manifest
    with pytest.raises(CheckFailed, match="is saved in other blocks, or with other zero points, than its recipe makes"):
        rebuild(folder, said.recipe, open_host(folder, said).weights())


def test_a_byte_of_the_single_file(tmp_path: Path) -> None:
    """Of a weight: runs differ by less than int8 activations explain."""
    pytest.importorskip("onnxruntime")
    from pocketphi.targets.ort_mobile.ort_file_check import ort_file_check

    folder = tmp_path / "b"
    compile_model(compile_options("random:tiny", folder, recipe="rtn", verify="never", ort_file=True))
    path = folder / "model.ort"
    content = path.read_bytes()
    assert ort_file_check(folder).ok
    path.write_bytes(content[:-5000] + bytes([content[-5000] ^ 1]) + content[-4999:])
    assert ort_file_check(folder).detail == "first 'lm_head.weight.q'"


def vectors(change: Callable[[dict[str, Any]], object]) -> Edit:
    def edit(folder: Path) -> None:
        with np.load(folder / "test_vectors.npz") as file:
            arrays = dict(file)
        change(arrays)
        np.savez(folder / "test_vectors.npz", **arrays)

    return edit


def test_the_other_files_of_a_package(tmp_path: Path) -> None:
    """A Mac is asked to run what these say."""
    pytest.importorskip("coremltools")
    from pocketphi.targets.coreml.host import CoreMLHost

    good = tmp_path / "b"
    said = compile_model(compile_options("random:tiny", good, ("coreml",), recipe="rtn", verify="always")).manifest
    prompt = torch.tensor([random_tokens(read_config(good), 65)])

    def beside(folder: Path) -> str:
        host = open_host(folder, said)
        assert isinstance(host, CoreMLHost)
        return host._beside(prompt).detail

    assert beside(good) == ""
    edits: dict[str, Edit] = {
        "test_vectors.npz: not readable": lambda folder: (folder / "test_vectors.npz").write_bytes(b"PK") and None,
        "test_vectors.npz: calls": vectors(lambda arrays: arrays.update(calls=np.array("[]"))),
        "test_vectors.npz: tolerance": vectors(lambda arrays: arrays.update(tolerance=np.float64(9))),
        "test_vectors.npz: 2.logits": vectors(lambda arrays: arrays.update({"2.logits": -arrays["2.logits"]})),
        "verify_on_mac.py": lambda folder: (folder / "verify_on_mac.py").write_bytes(b"") and None,
        "model.mlpackage/Manifest.json": lambda folder: (
            (folder / "model.mlpackage/Manifest.json").open("a").write("\n") and None
        ),
    }
    found = []
    for odd, edit in edits.items():
        folder = shutil.copytree(good, tmp_path / str(len(found)))
        edit(folder)
        found.append(beside(folder).removeprefix("first ") == odd)
    assert found == [True] * len(edits)
    host = open_host(good, said)
    wanted = host.details(_lowered(rebuild(good, said.recipe, host.weights()), said))
    assert wanted == {name: said.targets["coreml"].details[name] for name in wanted}
    assert len(wanted) > 10
