"""Quality against bytes: bundles of each target by recipe and by budget, next to llama.cpp's types, all of one checkpoint and
over the same tokens, each as its runtime computes it (llama.cpp's: as its file holds the weights). See README.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import preflight
from common import POCKETPHI, Bar, StepError, judge, print_table, run, size_of, with_llama_tokenizer
from llama_cpp import MATRICES, importance_of, quantized
from off_grid import take_off_grid

TYPES = ("Q3_K_M", "Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K")
TARGETS = {
    "ort-mobile": ("--target", "ort-mobile"),
    "coreml": ("--target", "coreml"),
    "coreml-ios26": ("--target", "coreml", "--ios", "26"),
    "tvm-arm": ("--target", "tvm-arm", "--os", "host"),
}
"""By name: the target, and options with which its bundle runs here at full speed."""
BUDGETS = ("66MB", "80.5MB", "91.2MB", "101.6MB", "107.2MB")
RECIPES = (("--recipe", "rtn", "--block", "32"), ("--block", "64"), ("--block", "32"))
BARS = {
    "66MB": dict.fromkeys(("coreml", "coreml-ios26", "tvm-arm"), 0.40),
    "80.5MB": dict.fromkeys(TARGETS, 0.11),
    "91.2MB": dict.fromkeys(TARGETS, 0.075),
    "101.6MB": {**dict.fromkeys(TARGETS, 0.037), "ort-mobile": 0.055},
    "107.2MB": {**dict.fromkeys(TARGETS, 0.028), "ort-mobile": 0.045},
}
"""KL in nats a token on the first text, by budget and target."""


@dataclass(frozen=True)
class Row:
    """tool and how; bytes: of the whole bundle or file; kl: nats a token by text; note: why there is none."""

    tool: str
    how: str
    bytes: int = 0
    kl: dict[str, float] = field(default_factory=dict)
    note: str = ""

    def cells(self, texts: list[str]) -> list[str]:
        found = [f"{self.kl[text]:.3f}" if text in self.kl else "–" for text in texts]
        return [self.tool, self.how, f"{self.bytes / 1e6:.1f}" if self.bytes else "–", *found, self.note]


class Benchmark:
    """One checkpoint in a work folder, and the texts."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.work = a.work.resolve() / "off-grid" if a.off_grid else a.work.resolve()
        self.texts, self.tokens = a.text, a.tokens
        self.work.mkdir(parents=True, exist_ok=True)
        self.checkpoint = self.work / "checkpoint"
        if not self.checkpoint.exists():
            made = self.work / "checkpoint-not-done"
            shutil.rmtree(made, ignore_errors=True)
            folded = ["--fold-norms", "--dtype", "fp32", "-o", str(made)]
            run([*POCKETPHI, "make-checkpoint", a.model, *folded])
            if a.off_grid:
                take_off_grid(made)
            made.rename(self.checkpoint)

    def bundles(self, targets: list[str], budgets: list[str], recipes: bool) -> Iterator[Row]:
        for target in targets:
            ways = [*RECIPES] if recipes else []
            for options in (*ways, *(("--max-bytes", budget) for budget in budgets)):
                yield self._bundle(target, options)

    def llama_cpp(self, tree: Path, types: list[str], weighed: bool) -> Iterator[Row]:
        """weighed: each type with an importance matrix as well."""
        source = with_llama_tokenizer(self.checkpoint, self.work / "llama-input")
        for kind in types:
            for importance in (None, importance_of(self.checkpoint, self.work / "imatrix.dat")) if weighed else (None,):
                path = quantized(tree, source, self.work, kind, importance)
                stored = path.with_name(f"{path.stem}-weights")
                dequantize(path, self.checkpoint, stored)
                how = f"{kind} with an importance matrix" if importance else kind
                yield Row("llama.cpp", how, size_of(path), self._kl(stored))

    def others(self, made: dict[str, Path]) -> Iterator[Row]:
        """Checkpoints that other tools quantized, in any way that pocketphi reads: by the weights that they hold."""
        for name, folder in made.items():
            yield Row(name, folder.name, size_of(folder), self._kl(folder))

    def _bundle(self, target: str, options: tuple[str, ...]) -> Row:
        out = self.work / "-".join([target, *(option.strip("-") for option in options)])
        try:
            if not out.exists():
                run([*POCKETPHI, "compile", str(self.checkpoint), "-o", str(out), *TARGETS[target], *options])
        except StepError as error:
            return Row(target, " ".join(options), note=str(error))
        return Row(target, " ".join(options), size_of(out), self._kl(out))

    def _kl(self, model: Path) -> dict[str, float]:
        """Of each text, kept beside the model for the next run."""
        kept = model.with_name(f"{model.name}.kl.json")
        found: dict[str, float] = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
        for name, path in self.texts.items():
            key = f"{name} {self.tokens}"
            if key not in found:
                asked = ["--reference", str(self.checkpoint), "--tokens", str(self.tokens), "--json"]
                text = ["--text", str(path)] if path else []
                said = subprocess.run([*POCKETPHI, "eval", str(model), *asked, *text], capture_output=True, text=True)
                if said.returncode:
                    raise StepError(said.stderr.strip().splitlines()[-1])
                found[key] = json.loads(said.stdout)["kl"]
        kept.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        return {name: found[f"{name} {self.tokens}"] for name in self.texts}


def dequantize(gguf_file: Path, checkpoint: Path, out: Path) -> None:
    """The weights that a GGUF file stands for, by the gguf library, as a Hugging Face folder with the checkpoint's names."""
    if out.exists():
        return
    import gguf
    import torch
    from safetensors.torch import save_file

    names = {**MATRICES, "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    ends = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    ends["output.weight"] = "lm_head.weight"
    made = {}
    for tensor in gguf.GGUFReader(gguf_file).tensors:
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()).float()
        name = ends.get(tensor.name)
        if name is None and tensor.name.startswith("blk."):
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{names[part]}.weight"
        if name is not None:
            made[name] = values.reshape([int(size) for size in reversed(tensor.shape)])
    out.mkdir()
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (out / path.name).write_bytes(path.read_bytes())
    save_file(made, out / "model.safetensors", metadata={"format": "pt"})


def bars(rows: list[Row], text: str) -> list[Bar]:
    found = {(row.tool, row.how): row for row in rows if row.kl}
    return [
        Bar(f"{target}, {budget}: KL", found[key].kl[text], limit, "nats")
        for budget, limits in BARS.items()
        for target, limit in limits.items()
        if (key := (target, f"--max-bytes {budget}")) in found
    ]


def parse_text(given: str) -> tuple[str, Path | None]:
    name, _, path = given.partition("=")
    return (name, Path(path)) if path else (Path(given).stem, Path(given))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", default="sample", help="a Hugging Face folder or a model's name (default %(default)s)")
    p.add_argument(
        "--work", type=Path, default=Path("build/quality"), help="folder for all files (default %(default)s)"
    )
    p.add_argument(
        "--text",
        action="append",
        type=parse_text,
        metavar="[NAME=]FILE",
        help="text to measure on; may be repeated (default: documentation of Python's library)",
    )
    p.add_argument("--tokens", type=int, default=8192, help="of each text (default %(default)s)")
    p.add_argument(
        "--off-grid",
        action="store_true",
        help="of a model from a quantized file: the same function, on no grid of that file",
    )
    p.add_argument("--targets", nargs="*", choices=TARGETS, default=list(TARGETS))
    p.add_argument("--budgets", nargs="*", default=list(BUDGETS), metavar="SIZE", help="default: %(default)s")
    p.add_argument("--no-recipes", action="store_true", help="budgets only")
    p.add_argument("--llama-cpp", type=Path, metavar="DIR", help="a built llama.cpp source tree")
    p.add_argument("--llama-types", nargs="*", default=list(TYPES), metavar="TYPE", help="default: %(default)s")
    p.add_argument("--imatrix", action="store_true", help="each of these with an importance matrix as well")
    p.add_argument(
        "--made",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a checkpoint that another tool quantized, of work/checkpoint: GPTQ, AWQ, MLX; may be repeated",
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    a = p.parse_args()
    made_by_others = {name: Path(folder) for name, _, folder in (given.partition("=") for given in a.made)}
    a.text = dict(a.text or [("python", None)])
    preflight.require(__file__, ["llama.cpp"] if a.llama_cpp else [])
    rows: list[Row] = []
    try:
        benchmark = Benchmark(a)
        peers = benchmark.llama_cpp(a.llama_cpp, a.llama_types, a.imatrix) if a.llama_cpp else iter(())
        for made in (
            peers,
            benchmark.others(made_by_others),
            benchmark.bundles(a.targets, a.budgets, not a.no_recipes),
        ):
            for row in made:
                rows.append(row)
                print(" ".join(row.cells(list(a.text))), file=sys.stderr)
    except StepError as error:
        sys.exit(str(error))
    rows.sort(key=lambda row: row.bytes)
    print_table(
        "KL in nats a token, by text", ["tool", "how", "MB", *a.text, ""], [r.cells(list(a.text)) for r in rows]
    )
    return judge(bars(rows, next(iter(a.text))), a.json, {"rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    sys.exit(main())
