"""The files of a Core ML bundle: same bytes each time, what coremltools makes of them, and every weight as it was."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coreml_package import CONTEXT, finished, functions, in_forms, package, saved_parts, spec, with_offsets
from target_files import prepared
from tiny_phi3 import SWITCH, TINY, VARIANTS, fused, quantized

from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import Int4, Int8, Palette, Palette2, Palette3, Palette6, Tables, format_of, known_format
from pocketphi.graph.lazy_weights import digest, materialize
from pocketphi.graph.packing import pack_nibbles
from pocketphi.graph.program import Program

ct = pytest.importorskip("coremltools")

from pocketphi.targets.coreml.form import make_form  # noqa: E402
from pocketphi.targets.coreml.mil import identifier  # noqa: E402 - only where coremltools is installed
from pocketphi.targets.coreml.options import CoreML  # noqa: E402
from pocketphi.targets.coreml.package import PACKAGE, WEIGHT_FILE, facts_of  # noqa: E402
from pocketphi.targets.coreml.weightfile import plan_weights  # noqa: E402

FILES = {"Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"}
SWIFT = {"flavor": "swift-transformers"}


def read_back(folder: Path, program: Program) -> dict[str, str]:
    """The digest of every weight, from what Apple's reader finds in the file."""
    saved = saved_parts(folder)
    found = {}
    for name, recipe in program.weights.items():
        parts = saved[identifier(name)]
        if "val" in parts:
            found[name] = digest({"": torch.from_numpy(parts["val"].astype(np.float32))})
            continue
        if "lut" in parts:
            lut = torch.from_numpy(parts["lut"].astype(np.float32))[:, 0, :, 0]
            index = torch.from_numpy(parts["indices"].astype(np.int16)).view(
                lut.shape[0], -1, parts["indices"].shape[1]
            )
            found[name] = digest(known_format(recipe.parts).pack(index, lut).tensors())
            continue
        data = torch.from_numpy(parts["data"].astype(np.int16))
        scale = torch.from_numpy(parts["scale"].astype(np.float32))
        if "q8" in recipe.parts:
            found[name] = digest(Int8((data + 128).to(torch.uint8), scale).tensors())
            continue
        zero = torch.from_numpy(parts["offset"]) if "offset" in parts else None
        offset = None
        if "offset" in recipe.parts:
            offset = torch.from_numpy(saved[identifier(f"{name}.offset")]["val"].astype(np.float32)) + 8 * scale
        packed = pack_nibbles(data + (8 if zero is None and offset is None else 0))
        found[name] = digest(Int4(packed, scale, None if zero is None else pack_nibbles(zero), offset).tensors())
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_weight_is_read_back_as_it_was(tmp_path: Path, variant: str, symmetric: bool) -> None:
    program = finished(variant, symmetric=symmetric)
    packaged = package(program, tmp_path)
    assert read_back(tmp_path, program) == packaged.weights
    for name, recipe in program.weights.items():  # what is int4 is also what every other target holds
        if "q" in recipe.parts:
            assert packaged.weights[name] == digest(materialize(recipe))


def test_weights_with_odd_rows_of_zero_points(tmp_path: Path) -> None:
    program = finished("tiny", block=64, symmetric=False)  # one block a row, or three
    assert {r.parts["scale"].shape[1] % 2 for r in program.weights.values() if "zero" in r.parts} >= {1}
    packaged = package(program, tmp_path)
    assert read_back(tmp_path, program) == packaged.weights


def test_weights_with_offsets_are_read_back(tmp_path: Path) -> None:
    program = with_offsets(finished())
    packaged = package(program, tmp_path)
    assert read_back(tmp_path, program) == packaged.weights
    assert packaged.weights["lm_head.weight"] == digest(materialize(program.weights["lm_head.weight"]))


@pytest.mark.parametrize(
    ("variant", "form"),
    [("tiny", Palette), ("tied", Palette), ("tiny", Palette2), ("tiny", Palette3), ("tiny", Palette6)],
)
def test_palettes_and_int8_are_read_back(tmp_path: Path, variant: str, form: type[Tables]) -> None:
    program = in_forms(variant, form)
    forms = [format_of(recipe.parts) for recipe in program.weights.values()]
    assert (forms.count(form), forms.count(Int8)) == (13 - (variant == "tied"), 1)
    packaged = package(program, tmp_path)
    assert read_back(tmp_path, program) == packaged.weights
    for name, recipe in program.weights.items():
        if format_of(recipe.parts):
            assert packaged.weights[name] == digest(materialize(recipe))
    assert packaged.operators["decode.constexpr_lut_to_dense"] == forms.count(form)
    assert (
        prepared(program, CoreML(chunk=16), context=CONTEXT).bytes == (tmp_path / PACKAGE / WEIGHT_FILE).stat().st_size
    )
    made = make_form(program.config, CoreML(chunk=16), CONTEXT)
    facts = facts_of(program, made, plan_weights(program, made))
    assert (facts.blocks, facts.palettes) == ({}, forms.count(form))


def test_a_changed_nibble_is_found(tmp_path: Path) -> None:
    program = finished()
    packaged = package(program, tmp_path)
    path = tmp_path / PACKAGE / WEIGHT_FILE
    data = bytearray(path.read_bytes())
    file = plan_weights(program, make_form(program.config, CoreML(chunk=16), CONTEXT))
    data[file.blobs["lm_head.weight:q"].blob.offset + 5] ^= 1
    path.write_bytes(data)
    found = read_back(tmp_path, program)
    assert [name for name in found if found[name] != packaged.weights[name]] == ["lm_head.weight"]


@pytest.mark.parametrize("options", [{}, SWIFT, {"attention": "decomposed", "norm": "fp32"}])
def test_two_packagings_give_the_same_bytes(tmp_path: Path, options: dict[str, Any]) -> None:
    made = []
    for name, umask in (("a", 0o022), ("b", 0o077)):
        (tmp_path / name).mkdir()
        before = os.umask(umask)
        try:
            package(finished(), tmp_path / name, **options)
        finally:
            os.umask(before)
        root = tmp_path / name / PACKAGE
        files = [path for path in root.rglob("*") if path.is_file()]
        made.append({str(p.relative_to(root)): (p.stat().st_mode, p.read_bytes()) for p in files})
    assert set(made[0]) == FILES
    assert made[0] == made[1]


def test_another_process_gives_the_same_bytes(tmp_path: Path) -> None:
    """With another seed of hashes, and nothing packaged before."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    package(finished("partial"), tmp_path / "a")
    package(finished("tied"), tmp_path)
    script = "import sys, pathlib, shared_traces; shared_traces.use(); from coreml_package import *; "
    script += "package(finished('tied'), pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", script, str(tmp_path / "b")]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    ours, theirs = ([(folder / PACKAGE / file).read_bytes() for file in FILES] for folder in (tmp_path, tmp_path / "b"))
    assert ours == theirs


def test_another_model_has_other_identifiers(tmp_path: Path) -> None:
    roots = []
    for name, variant in (("a", "tiny"), ("b", "tied")):
        (tmp_path / name).mkdir()
        package(finished(variant), tmp_path / name)
        manifest = json.loads((tmp_path / name / PACKAGE / "Manifest.json").read_text())
        assert manifest["rootModelIdentifier"] in manifest["itemInfoEntries"]
        roots.append(set(manifest["itemInfoEntries"]))
    assert [len(ids) for ids in roots] == [2, 2]
    assert roots[0] & roots[1] == set()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", [{}, SWIFT])
def test_coremltools_opens_and_type_checks_it(tmp_path: Path, variant: str, options: dict[str, Any]) -> None:
    """Its loader builds every operator anew, with the checks of operands and shapes that the builder does."""
    from coremltools.converters.mil.frontend.milproto.load import load

    package(finished(variant, symmetric=False), tmp_path, **options)
    model = ct.models.MLModel(str(tmp_path / PACKAGE), skip_model_load=True)
    program = load(model.get_spec(), 9, str(tmp_path / PACKAGE / "Data/com.apple.CoreML/weights"))
    assert set(program.functions) == ({"main"} if options else {"prefill", "decode"})
    config = VARIANTS[variant]
    rows = 112 if options or not config.sliding_window else 64 + 16  # a ring for a window of 48, and for padding
    state = (config.layers, 1, config.kv_heads, rows, config.head_dim)
    for function in program.functions.values():
        assert [var.name for var in function.outputs] == ["logits"]
        states = {name: v.sym_type.wrapped_type().get_shape() for name, v in function.inputs.items() if "Cache" in name}
        assert states == {"keyCache": state, "valueCache": state}


def described(feature: Any) -> tuple[str, list[int], int]:
    kind = (
        feature.type.stateType.arrayType
        if feature.type.WhichOneof("Type") == "stateType"
        else feature.type.multiArrayType
    )
    return feature.name, list(kind.shape), kind.dataType


def test_what_the_description_says(tmp_path: Path) -> None:
    package(finished(), tmp_path, version="1.2.3", recipe="rtn, block 32")
    model = spec(tmp_path)
    int32, fp16 = 131104, 65552
    found = {f.name: [described(x) for x in (*f.input, *f.state, *f.output)] for f in model.description.functions}
    one = [("position", [1], int32)]
    cache = [("keyCache", [3, 1, 2, 80, 16], fp16), ("valueCache", [3, 1, 2, 80, 16], fp16)]
    logits = [("logits", [1, 1, 256], fp16)]
    assert found == {
        "prefill": [("inputIds", [1, 16], int32), *one, ("length", [1], int32), *cache, *logits],
        "decode": [("inputIds", [1, 1], int32), *one, *cache, *logits],
    }
    assert (model.specificationVersion, model.description.defaultFunctionName) == (9, "decode")
    metadata = model.description.metadata
    assert metadata.versionString == "1.2.3"
    assert dict(metadata.userDefined) == {
        "pocketphi.version": "1.2.3",
        "pocketphi.context": "100",
        "pocketphi.chunk": "16",
        "pocketphi.ring": "64",
        "pocketphi.recipe": "rtn, block 32",
    }
    assert metadata.license == ""
    features = [x for f in model.description.functions for x in (*f.input, *f.state, *f.output)]
    assert [x.name for x in features if not x.shortDescription] == []


def test_all_logits(tmp_path: Path) -> None:
    package(quantized(), tmp_path)
    found = {f.name: f for f in spec(tmp_path).description.functions}
    assert [x.name for x in found["prefill"].input] == ["inputIds", "position"]
    assert [described(f.output[0])[1] for f in (found["prefill"], found["decode"])] == [[1, 16, 256], [1, 1, 256]]


@pytest.mark.parametrize(("context", "more"), [(SWITCH, []), (SWITCH + 1, ["total"])])
def test_longrope_asks_for_the_total_where_both_tables_are_there(tmp_path: Path, context: int, more: list[str]) -> None:
    package(finished("longrope"), tmp_path, context=context)
    found = {f.name: [x.name for x in f.input] for f in spec(tmp_path).description.functions}
    assert found == {"prefill": ["inputIds", "position", "length", *more], "decode": ["inputIds", "position", *more]}


def test_swift_transformers(tmp_path: Path) -> None:
    package(finished(), tmp_path, **SWIFT, model_id="microsoft/Phi-3-mini-4k-instruct")
    model = spec(tmp_path)
    ids, mask = model.description.input
    ranges = [[(r.lowerBound, r.upperBound) for r in x.type.multiArrayType.shapeRange.sizeRanges] for x in (ids, mask)]
    assert (ids.name, mask.name) == ("inputIds", "causalMask")
    assert ranges == [[(1, 1), (1, CONTEXT)], [(1, 1), (1, 1), (1, CONTEXT), (2, CONTEXT + 1)]]
    assert [x.name for x in model.description.state] == ["keyCache", "valueCache"]
    assert model.description.metadata.userDefined["co.huggingface.exporters.name"] == "microsoft/Phi-3-mini-4k-instruct"


def test_both_functions_share_their_weights(tmp_path: Path) -> None:
    """And a tied embedding and head are one value in each."""
    package(finished("tied"), tmp_path)
    saved_parts(tmp_path)  # checks that functions agree on where a value lies
    for operations in functions(spec(tmp_path)).values():
        weights = [op for op in operations if op.type == "constexpr_blockwise_shift_scale"]
        assert len({op.outputs[0].name for op in weights}) == len(weights) == 13
        readers = [
            op.type
            for op in operations
            if any(b.name == "model_embed_tokens_weight" for a in op.inputs.values() for b in a.arguments)
        ]
        assert readers == ["gather", "linear"]


def test_what_is_reported(tmp_path: Path) -> None:
    program, written = finished(), []
    target = prepared(program, CoreML(chunk=16), context=CONTEXT)
    packaged = target.write(tmp_path, written.append)
    assert packaged.operators["decode.constexpr_blockwise_shift_scale"] == 14
    assert packaged.operators["prefill.scaled_dot_product_attention"] == 3
    assert packaged.operators["prefill.slice_update"] == packaged.operators["prefill.write_state"] == 6
    assert packaged.notes == target.notes
    assert packaged.notes[0] == "GPU (cpuAndGPU): fit, the one to choose"
    assert packaged.notes[1].startswith(
        "Neural Engine (cpuAndNeuralEngine): not fit: 14 matrices have a scale for each"
    )
    units = packaged.details["compute_units"]
    assert {name: unit["fit"] for name, unit in units.items()} == {"GPU": True, "Neural Engine": False, "CPU": True}
    assert packaged.details["state_bytes"] == 384 * 80
    assert packaged.details["kv_cache_bytes_per_token"] == 384
    size = (tmp_path / PACKAGE / WEIGHT_FILE).stat().st_size
    assert target.bytes == size
    assert 0.9 * size < sum(written) <= size  # records and gaps are the rest


def test_a_package_is_as_large_as_its_weights(tmp_path: Path) -> None:
    """What `weight.bin` holds beyond them: a record and a gap for each blob, positions, zeros."""
    program = finished()
    package(program, tmp_path)
    theory, blobs = 0, 0
    for recipe in program.weights.values():
        for part, parts in recipe.parts.items():
            theory += parts.bytes if part == "q" else parts.bytes // 2
            blobs += 1
    tables = 2 * (256 - 112) * 8 * 2  # rotary rows beyond the cache are left out
    constants = 4 * 112 + 4 * 16 + 4 * 32 + 2 * (128 + 64 + 2 * 96 + 256)
    assert (tmp_path / PACKAGE / WEIGHT_FILE).stat().st_size - theory + tables <= 128 * (blobs + 8) + constants


def test_strict_refuses_what_is_slow_where_the_package_fits(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"coreml: 14 matrices are float16, .*without --strict this is only reported"):
        package(fused(), tmp_path, strict=True)
    assert list(tmp_path.iterdir()) == []
    package(finished(), tmp_path, strict=True)


def test_float_matrices_are_reported(tmp_path: Path) -> None:
    packaged = package(fused(), tmp_path)
    assert [note for note in packaged.notes if "14 matrices are float16" in note] != []
    assert packaged.operators["decode.constexpr_blockwise_shift_scale"] == 0


def test_matrices_are_counted_by_their_blocks() -> None:
    """Blocks of 64: one scale a row where K is 64, two where it is 128."""
    program = finished("tiny", block=64)
    form = make_form(program.config, CoreML(chunk=16), CONTEXT)
    facts = facts_of(program, form, plan_weights(program, form))
    assert (facts.blocks, facts.palettes, facts.float_weights, facts.float32_norms) == ({64: 3}, 0, [], 0)
    assert facts.dense_bytes == 2 * sum(math.prod(shape) for shape in TINY.tensors().values() if len(shape) == 2)
    other = make_form(program.config, CoreML(chunk=16, norm="fp32"), CONTEXT)
    assert facts_of(program, other, plan_weights(program, form)).float32_norms == 7


def test_swift_transformers_without_a_repository_is_noted() -> None:
    program = finished()
    notes = [
        len(prepared(program, CoreML(chunk=16, flavor="swift-transformers", model_id=m), context=100).notes)
        for m in (None, "a/b")
    ]
    assert notes == [4, 3]


def test_an_impossible_form_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a context of 1000 tokens; the model has 256 positions"):
        package(finished(), tmp_path, context=1000)
    assert list(tmp_path.iterdir()) == []
