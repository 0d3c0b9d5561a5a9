"""What a codec says that a weight takes, against what the target plans to write."""

from __future__ import annotations

import pytest
from tiny_phi3 import fused, quantized_by

from pocketphi.graph.config import EMBEDDING, HEAD
from pocketphi.graph.formats import Int2, Palette2, Palette3, Palette6, format_of
from pocketphi.graph.program import Program
from pocketphi.passes.quantizers import EightBits, KMeans, Quantizer, RoundToNearest

QUANTIZERS = {
    "blocks": (RoundToNearest(32), {}),
    "zero points": (RoundToNearest(16, symmetric=False), {}),
    "rows": (RoundToNearest(0, symmetric=False), {}),
    "int8": (RoundToNearest(32), {EMBEDDING: EightBits(32)}),
    "palette": (KMeans(8), {EMBEDDING: EightBits(0)}),
    "palettes": (KMeans.to(Palette3)(8), {EMBEDDING: KMeans.to(Palette6)(16), HEAD: KMeans.to(Palette2)(16, 32)}),
    "int2": (RoundToNearest.to(Int2)(32), {EMBEDDING: RoundToNearest.to(Int2)(16, symmetric=False)}),
}


def asked(program: Program, quantizer: Quantizer, special: dict[str, Quantizer]) -> dict[str, tuple[str, object]]:
    """Quantized weight → its format, and the layout that its quantizer says for the float shape."""
    shapes = {name: weight.parts[""].shape for name, weight in fused().weights.items()}
    found = {}
    for name, weight in program.weights.items():
        if form := format_of(weight.parts):
            found[name] = (form.name, special.get(name, quantizer).layout(shapes[name]))
    return found


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if name != "int2"])
def test_core_ml(name: str) -> None:
    pytest.importorskip("coremltools")
    from pocketphi.targets.coreml.codecs import CODECS
    from pocketphi.targets.coreml.form import Form
    from pocketphi.targets.coreml.weightfile import plan_weights

    quantizer, special = QUANTIZERS[name]
    program = quantized_by(quantizer, special=special)
    blobs = plan_weights(program, Form(100, 16)).blobs
    for weight, (form, layout) in asked(program, quantizer, special).items():
        planned = sum(stored.blob.nbytes for target, stored in blobs.items() if target.startswith(f"{weight}:"))
        assert CODECS[form].bytes_of(layout) == planned > 0


@pytest.mark.parametrize("name", ["blocks", "zero points", "rows", "int8", "int2"])
def test_onnx_runtime(name: str) -> None:
    from pocketphi.targets.ort_mobile.codecs import CODECS

    quantizer, special = QUANTIZERS[name]
    program = quantized_by(quantizer, special=special)
    for weight, (form, layout) in asked(program, quantizer, special).items():
        planned = sum(spec.bytes for spec in program.weights[weight].parts.values())
        assert CODECS[form].bytes_of(layout) == planned > 0


@pytest.mark.parametrize("isa", ["dotprod", "avx512vnni"])
@pytest.mark.parametrize("name", ["blocks", "zero points", "rows"])
def test_tvm(name: str, isa: str) -> None:
    from pocketphi.targets.tvm_arm.codecs import CODECS
    from pocketphi.targets.tvm_arm.isa import ISAS
    from pocketphi.targets.tvm_arm.params import ParamsFile

    quantizer, special = QUANTIZERS[name]
    program = quantized_by(quantizer, special=special)
    stored = ParamsFile.plan(program, ISAS[isa]).stored
    for weight, (form, layout) in asked(program, quantizer, special).items():
        planned = sum(spec.bytes for spec in stored[weight].parts.values())
        assert CODECS[form].bytes_of(layout, ISAS[isa].lanes) == planned > 0
