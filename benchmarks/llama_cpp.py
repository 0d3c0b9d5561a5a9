"""A built llama.cpp source tree: what to compile and link against it with, and its Q4_0 file of a checkpoint."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path

from common import Cost, StepError, run, with_llama_tokenizer

Run = Callable[[list[str], dict[str, str] | None], Cost]


def link_flags(tree: Path, *libraries: str) -> list[str]:
    """For a program that uses its shared libraries: ggml's, and those named. Raises StepError where they are missing."""
    tree = tree.resolve()
    folder = tree / "build" / "bin"
    names = [*libraries, "ggml", "ggml-cpu", "ggml-base"]
    missing = [name for name in names if not (folder / f"lib{name}.so").exists()]
    if missing:
        raise StepError(f"{folder}: no lib{missing[0]}.so; cmake -B build && cmake --build build in {tree}")
    include = [f"-I{tree / 'ggml' / 'include'}", f"-I{tree / 'include'}"]
    return [*include, f"-L{folder}", *(f"-l{name}" for name in names), f"-Wl,-rpath,{folder}"]


def tools_missing(tree: Path) -> list[Path]:
    """Of what `convert` needs."""
    return [path for path in _tools(tree) if not path.exists()]


def convert(
    tree: Path, checkpoint: Path, work: Path, outtype: str = "bf16", runs: Run = run
) -> tuple[Path, Path, list[Cost]]:
    """A checkpoint as Q4_0: the file, the one between (to be deleted), and what each of the two steps took."""
    converter, quantizer = _tools(tree)
    source = with_llama_tokenizer(checkpoint, work / "llama-input")
    between, out = work / f"{outtype}.gguf", work / "Q4_0.gguf"
    command = [sys.executable, str(converter), str(source), "--outtype", outtype, "--outfile", str(between)]
    costs = [
        runs(command, None),
        runs([str(quantizer), str(between), str(out), "Q4_0"], None),
    ]
    return out, between, costs


def quantized(tree: Path, source: Path, work: Path, kind: str, importance: Path | None = None) -> Path:
    """A checkpoint in one of llama.cpp's types, made from float32 where it is missing. source: as its converter takes it;
    importance: of `importance_of`."""
    converter, quantizer = _tools(tree)
    between, out = work / "f32.gguf", work / f"{kind}{'-imatrix' if importance else ''}.gguf"
    if not between.exists():
        run([sys.executable, str(converter), str(source), "--outtype", "f32", "--outfile", str(between)])
    if not out.exists():
        weighed = ["--imatrix", str(importance)] if importance else []
        run([str(quantizer), *weighed, str(between), str(out), kind])
    return out


MATRICES = {
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Of a layer of a Phi-3: llama.cpp's names, and those of a checkpoint."""


def importance_of(checkpoint: Path, out: Path, tokens: int = 16384, window: int = 512) -> Path:
    """An importance matrix in llama-imatrix's older form, which llama-quantize reads, made where it is missing: the mean square
    of each input of each matrix of a layer. transformers runs the checkpoint on the text that pocketphi calibrates on, since
    llama-imatrix knows the model's tokenizer no more than its converter does."""
    if out.exists():
        return out
    import torch
    from transformers import AutoModelForCausalLM

    from pocketphi.graph.tokenizer import Tokenizer
    from pocketphi.passes.calibrate import default_text

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    squares: dict[str, torch.Tensor] = {}
    for layer, block in enumerate(model.model.layers):
        for theirs, ours in MATRICES.items():
            name = f"blk.{layer}.{theirs}.weight"
            squares[name] = torch.zeros(block.get_submodule(ours).in_features, dtype=torch.float64)

            def add(_: object, inputs: tuple[torch.Tensor], name: str = name) -> None:
                squares[name] += inputs[0].double().square().sum((0, 1))

            block.get_submodule(ours).register_forward_pre_hook(add)
    rows = torch.tensor(Tokenizer.load(checkpoint).encode(default_text())[:tokens])
    with torch.no_grad():
        for row in rows.split(window):
            model.model(row[None])
    content = struct.pack("<i", len(squares))
    for name, one in squares.items():
        mean = (one / len(rows)).float().numpy()
        content += struct.pack(f"<i{len(name)}sii", len(name), name.encode(), 1, mean.size) + mean.tobytes()
    dataset = b"the text that pocketphi ships"
    out.write_bytes(content + struct.pack(f"<ii{len(dataset)}s", 1, len(dataset), dataset))
    return out


def _tools(tree: Path) -> tuple[Path, Path]:
    return tree / "convert_hf_to_gguf.py", tree / "build" / "bin" / "llama-quantize"


def cross_build(tree: Path, work: Path, triple: str, arch: str) -> list[str]:
    """ggml for another CPU, by Debian's cross compiler: static libraries in the order in which they are linked.

    arch: as `-march` takes it. Takes minutes once.
    """
    names = ["ggml", "ggml-cpu", "ggml-base"]
    wanted = [work / "ggml" / "src" / f"lib{name}.a" for name in names]
    if not all(path.exists() for path in wanted):
        system = {"SYSTEM_NAME": "Linux", "SYSTEM_PROCESSOR": triple.split("-")[0], "BUILD_TYPE": "Release"}
        compilers = {"C_COMPILER": f"{triple}-gcc", "CXX_COMPILER": f"{triple}-g++"}
        without = ["GGML_NATIVE", "GGML_OPENMP", "BUILD_SHARED_LIBS"]
        without += [f"LLAMA_BUILD_{part}" for part in ("COMMON", "TOOLS", "TESTS", "EXAMPLES", "SERVER")]
        options = [f"-DCMAKE_{key}={value}" for key, value in {**system, **compilers}.items()]
        options += [f"-D{name}=OFF" for name in without] + [f"-DGGML_CPU_ARM_ARCH={arch}"]
        run(["cmake", "-S", str(tree.resolve()), "-B", str(work), *options])
        run(["cmake", "--build", str(work), "--parallel", "2", "--target", "ggml"])
    return [str(path) for path in wanted]
