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
from pocketphi.compiler.files_check import asked_of, details_check, files_check, record_check
from pocketphi.compiler.hosts import open_host
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.rebuild import rebuild
from pocketphi.compiler.recipe_check import recipe_check
from pocketphi.compiler.text import random_tokens
from pocketphi.compiler.verify import _lowered
from pocketphi.graph.errors import CheckFailed
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.program import Program
from pocketphi.passes.base import PassReport
from pocketphi.targets.base import Check
from tests.compiler.test_resealed import resealed

Edit = Callable[[Path], None]


@pytest.fixture(scope="module")
def lowered(tiny_bundle: Path) -> tuple[Program, list[PassReport]]:
    manifest = Bundle.open(tiny_bundle).manifest
    return _lowered(rebuild(tiny_bundle, manifest.recipe, open_host(tiny_bundle, manifest).weights()), manifest)


def checks(folder: Path, lowered: tuple[Program, list[PassReport]]) -> Iterator[Check]:
    """Those of files, as verification makes them."""
    manifest = Bundle.open(folder).manifest
    host, (program, reports) = open_host(folder, manifest), lowered
    yield record_check(manifest, read_config(folder))
    yield details_check(manifest, "ort-mobile", host, program)
    yield recipe_check(manifest, read_config(folder), reports)
    yield from host.graph_checks(program, asked_of(manifest))
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


def described(model: onnx.ModelProto) -> None:
    next(t for t in model.graph.initializer if t.external_data).doc_string = "float32"


def longer(name: str) -> Edit:
    def edit(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write(b"more")
        resealed(folder)

    return edit


RULE = {"pattern": "*", "format": "int4", "recipe": "rtn", "parameters": {"block": 32, "symmetric": True}}
MADE = "words of the manifest that no compile writes"
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
    "a target's operators": (
        manifest(lambda m: m["targets"]["ort-mobile"]["operators"].update(Cast=1)),
        WORDS,
        "ort-mobile.operators are not the files'",
    ),
    "a note": (
        manifest(lambda m: m["targets"]["ort-mobile"].update(notes=["fast"])),
        WORDS,
        "ort-mobile.notes: 'fast'",
    ),
    "a target's context": (
        manifest(lambda m: m["targets"]["ort-mobile"].update(context=9)),
        WORDS,
        "ort-mobile.context, which no compile writes",
    ),
    "no passes": (manifest(lambda m: m.update(passes=[])), MADE, "passes are [], expected ['canonicalize', "),
    "a pass": (
        manifest(lambda m: m["passes"][1]["applied"].update(rms_norm=9)),
        MADE,
        "passes: fuse-rms-norm: applied is {'rms_norm': 9}, expected {'rms_norm': 7}",
    ),
    "what was left alone": (
        manifest(lambda m: m["passes"][2].update(refused=[["a", "why"]])),
        MADE,
        "passes: fuse-attention: refused is (('a', 'why'),), expected ()",
    ),
    "a library": (manifest(lambda m: m["versions"].update(other="1.0")), MADE, "versions names other, expected onnx, "),
    "no library": (manifest(lambda m: m["versions"].pop("torch")), MADE, "versions names no torch"),
    "a calibration": (
        manifest(lambda m: m["recipe"].update(calibration="default")),
        MADE,
        "recipe.calibration is 'default'; rtn has no use for it",
    ),
    "a searched recipe": (
        manifest(lambda m: m["recipe"].update(name="search")),
        MADE,
        "recipe.calibration is None; search has a use for it",
    ),
    "bits of a tied embedding": (
        manifest(lambda m: m["recipe"].update(embedding_bits=5)),
        MADE,
        "recipe: --embedding-bits 5: expected 4 or 8",
    ),
    "rules beside fields": (
        manifest(lambda m: m["recipe"].update(rules=[RULE, {**RULE, "recipe": "search"}])),
        MADE,
        "recipe.rules say what the rest of it says",
    ),
    "metadata": (
        graph(lambda model: model.metadata_props.add(key="license", value="MIT")),
        OTHERWISE,
        "first 'metadata_props'",
    ),
    "a version": (graph(lambda model: setattr(model, "ir_version", 9)), OTHERWISE, "first 'ir_version'"),
    "a producer": (graph(lambda model: setattr(model, "producer_version", "9")), OTHERWISE, "first 'producer_version'"),
    "a text": (graph(described), OTHERWISE, "first 'model.embed_tokens.weight"),
    "bytes behind the weights": (longer("model.onnx.data"), OTHERWISE, "first 'model.onnx.data: "),
}


def test_what_a_compile_writes_passes(tiny_bundle: Path, lowered: tuple[Program, list[PassReport]]) -> None:
    assert [check for check in checks(tiny_bundle, lowered) if not check.ok] == []


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_seen(
    name: str, tiny_bundle: Path, lowered: tuple[Program, list[PassReport]], tmp_path: Path
) -> None:
    edit, check, detail = EDITS[name]
    folder = shutil.copytree(tiny_bundle, tmp_path / "b")
    edit(folder)
    found = [one for one in checks(folder, lowered) if not one.ok]
    assert [one.name for one in found] == [check]
    assert found[0].detail.startswith(detail)


@pytest.mark.parametrize("change", [{"block": 16}, {"symmetric": False}])
def test_a_recipe_of_other_weights(change: dict[str, Any], tiny_bundle: Path, tmp_path: Path) -> None:
    """What `scale_bits` adds is a hint, which a target may leave out: not compared."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "b")
    resealed(folder, lambda said: said["recipe"].update(change))
    said = Bundle.open(folder).manifest
    with pytest.raises(
        CheckFailed, match="is saved in other blocks, or with other zero points or scales, than its recipe makes"
    ):
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


WEIGHTS = "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"


def overwrite(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def longer_by(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes() + bytes(count))


def model(change: Callable[[Any], None]) -> Edit:
    def edit(folder: Path) -> None:
        from pocketphi.targets.coreml.mlpackage import find_model
        from pocketphi.targets.coreml.proto import model_pb2

        path, message = find_model(folder / "model.mlpackage"), model_pb2().Model()
        message.ParseFromString(path.read_bytes())
        change(message)
        path.write_bytes(message.SerializeToString(deterministic=True))

    return edit


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
    program, _ = _lowered(rebuild(good, said.recipe, host.weights()), said)

    def graph_of(folder: Path) -> str:
        (check,) = open_host(folder, said).graph_checks(program, asked_of(said))
        return check.detail

    def licensed(model: Any) -> None:
        model.description.metadata.license = "MIT"

    others: dict[str, Edit] = {
        "the texts that describe it, or a field that Core ML does not know": model(licensed),
        "weight.bin: what stands at byte 0": lambda folder: overwrite(folder / WEIGHTS, 32),
        "weight.bin: 90304 bytes, expected 90240": lambda folder: longer_by(folder / WEIGHTS, 64),
    }
    assert not graph_of(good).startswith("first")
    for odd, edit in others.items():
        folder = shutil.copytree(good, tmp_path / odd[:14].replace(":", str(len(odd))))
        edit(folder)
        assert graph_of(folder) == f"first {odd}"
    wanted = host.details(_lowered(rebuild(good, said.recipe, host.weights()), said)[0])
    assert wanted == {name: said.targets["coreml"].details[name] for name in wanted}
    assert len(wanted) > 10


def test_another_repository_of_the_tokenizer(tmp_path: Path) -> None:
    """An app downloads its tokenizer from the place that a package for swift-transformers names."""
    pytest.importorskip("coremltools")
    from pocketphi.targets.coreml.mlpackage import find_model
    from pocketphi.targets.coreml.proto import model_pb2

    asked: dict[str, Any] = {"recipe": "rtn", "flavor": "swift-transformers", "model_id": "us/ours", "verify": "never"}
    said = compile_model(compile_options("random:tiny", tmp_path / "b", ("coreml",), **asked)).manifest
    assert said.targets["coreml"].details["model_id"] == "us/ours"
    path, model = find_model(tmp_path / "b/model.mlpackage"), model_pb2().Model()
    model.ParseFromString(path.read_bytes())
    assert model.description.metadata.userDefined["co.huggingface.exporters.name"] == "us/ours"
    program, _ = _lowered(rebuild(tmp_path / "b", said.recipe, open_host(tmp_path / "b", said).weights()), said)
    found = []
    for repository in ("us/ours", "us/theirs"):
        model.description.metadata.userDefined["co.huggingface.exporters.name"] = repository
        path.write_bytes(model.SerializeToString())
        (check,) = open_host(tmp_path / "b", said).graph_checks(program, asked_of(said))
        found.append(check.ok)
    assert found == [True, False]
