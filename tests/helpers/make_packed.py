"""Makes tests/data/packed: tiny checkpoints that the tools' own code has packed, and digests of what that code unpacks them to.

    pip install --no-deps --target TOOLS compressed-tensors==0.20.1 loguru frozendict mlx==0.32.4 mlx-cpu==0.32.4
    pip download --no-deps --no-binary :all: --no-build-isolation -d TOOLS gptqmodel==7.7.0 autoawq==0.2.9
    (unpack both in TOOLS)
    python tests/helpers/make_packed.py TOOLS tests/data/packed

compressed-tensors and MLX are imported. GPTQModel and AutoAWQ do not import without a GPU's packages: the functions that pack
and unpack are taken out of their sources, unchanged, and run alone.
"""

from __future__ import annotations
import __future__

import ast
import contextlib
import hashlib
import json
import math
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
Packed = tuple[dict[str, torch.Tensor], torch.Tensor]
"""The tensors of a packed weight by the ends of their names, and the float32 values that the tool unpacks them to."""


def source_of(path: Path, *names: str, **known: Any) -> dict[str, Any]:
    """Functions of a module, those in classes too, without importing it."""
    wanted = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name in names and node.name not in wanted:
            node.decorator_list = []
            wanted[node.name] = node
    tree = ast.Module([wanted[name] for name in names], [])
    found: dict[str, Any] = {"torch": torch, "t": torch, "nn": nn, "np": np, "math": math, **known}
    exec(compile(ast.fix_missing_locations(tree), str(path), "exec", flags=__future__.annotations.compiler_flag), found)
    return {name: found[name] for name in names}


class Gptq:
    """group: values that share a scale, -1 for a row; order: how g_idx is made of the groups"""

    def __init__(
        self,
        tools: Path,
        bits: int,
        group: int,
        sym: bool,
        v1: bool,
        order: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        folder = next(tools.glob("gptqmodel-*/gptqmodel"))
        names = (
            "pack_original",
            "dequantize_weight",
            "_dequantize_from_codes",
            "_torch_right_shift",
            "_torch_left_shift",
        )
        linear = folder / "nn_modules/qlinear/__init__.py"
        limits = types.SimpleNamespace(threadpool_limits=lambda _: contextlib.nullcontext())
        more = {"THREADPOOLCTL": limits, "_ConvNd": nn.modules.conv._ConvNd}
        self.functions = source_of(linear, *names, transformers=transformers, **more)
        log = types.SimpleNamespace(info=types.SimpleNamespace(once=lambda _: None))
        self.functions |= source_of(
            folder / "utils/model.py",
            "convert_gptq_v2_to_v1_format_module",
            log=log,
            BaseQuantLinear=object,
            QuantizeConfig=object,
        )
        self.bits, self.group, self.sym, self.v1, self.order = bits, group, sym, v1, order
        self.config = {
            "bits": bits,
            "group_size": group,
            "desc_act": order is not None,
            "sym": sym,
            "lm_head": False,
            "quant_method": "gptq",
            "checkpoint_format": "gptq" if v1 else "gptq_v2",
            "pack_dtype": "int32",
            "meta": {
                "quantizer": ["gptqmodel:7.7.0"],
                "uri": "https://github.com/modelcloud/gptqmodel",
                "damp_percent": 0.05,
            },
        }

    def __call__(self, name: str, w: torch.Tensor) -> Packed | None:
        rows, columns = w.shape
        group = columns if self.group == -1 else self.group
        plain = torch.arange(columns) // group
        g_idx = (self.order(plain) if self.order else plain).int()
        scale, zero = torch.zeros(rows, columns // group), torch.zeros(rows, columns // group)
        for i in range(columns // group):
            scale[:, i], zero[:, i] = nearest(w[:, g_idx == i], self.bits, self.sym)
        layer = nn.Module()
        kept = {
            "bits": self.bits,
            "maxq": 2**self.bits - 1,
            "planar": False,
            "pack_dtype_bits": 32,
            "pack_factor": 32 // self.bits,
        }
        for key, value in {
            **kept,
            "pack_np_math_dtype": np.uint32,
            "pack_np_dtype": np.int32,
            "in_features": columns,
            "pack_dtype": torch.int32,
            "dequant_dtype": torch.int32,
        }.items():
            setattr(layer, key, value)
        linear = nn.Linear(columns, rows, bias=False)
        linear.weight.data = w
        self.functions["pack_original"](layer, linear, scale, zero, g_idx)
        parts = {part: getattr(layer, part).clone() for part in ("qweight", "qzeros", "scales", "g_idx")}
        shifts = torch.arange(0, 32, self.bits, dtype=torch.int32)[None]
        layer.wf_unsqueeze_zero, layer.wf_unsqueeze_neg_one = shifts[None], shifts[..., None]
        layer._init_wf_unsqueeze_buffers = lambda: None
        layer._dequantize_from_codes = types.MethodType(self.functions["_dequantize_from_codes"], layer)
        layer.scales = layer.scales.float()
        values = self.functions["dequantize_weight"](layer).T.contiguous()
        if self.v1:
            layer.qzero_format = lambda format: None
            self.functions["convert_gptq_v2_to_v1_format_module"](layer, layer)
            parts["qzeros"] = layer.qzeros
        return parts, values


class Awq:
    def __init__(self, tools: Path, group: int, gemv: bool) -> None:
        folder = next(tools.glob("autoawq-*/awq"))
        names = ("unpack_awq", "reverse_awq_order", "dequantize_gemm")
        orders = {"AWQ_REVERSE_ORDER": [0, 4, 1, 5, 2, 6, 3, 7]}
        self.functions = source_of(folder / "utils/packing_utils.py", *names, **orders)
        file = folder / f"modules/linear/{'gemv' if gemv else 'gemm'}.py"
        more = ("calculate_zeros_width", "make_divisible") if gemv else ()
        self.functions |= source_of(file, "from_linear", *more, get_best_device=lambda: "cpu")
        self.group, self.gemv = group, gemv
        self.config = {
            "bits": 4,
            "group_size": group,
            "zero_point": True,
            "version": "gemv" if gemv else "gemm",
            "modules_to_not_convert": ["lm_head"] if gemv else None,
            "quant_method": "awq",
        }

    def __call__(self, name: str, w: torch.Tensor) -> Packed | None:
        rows, columns = w.shape
        scale, zero = nearest(w.view(-1, self.group), 4, False)
        q = ((w.view(-1, self.group) / scale[:, None] + zero[:, None]).round().clamp(0, 15) - zero[:, None]) * scale[
            :, None
        ]
        linear = nn.Linear(columns, rows, bias=False)
        linear.weight.data = q.view(w.shape)
        scale, zero = scale.view(rows, -1), zero.view(rows, -1)
        if not self.gemv:
            scale, zero = scale.T.contiguous(), zero.T.contiguous()

        def made(w_bit: int, *_: Any) -> Any:
            return types.SimpleNamespace(in_features=columns, w_bit=w_bit, scales=None)

        layer = self.functions["from_linear"](made, linear, 4, self.group, False, scale, zero)
        parts = {part: getattr(layer, part) for part in ("qweight", "qzeros", "scales")}
        if self.gemv:  # its kernel runs on a GPU alone: the values are those that it was asked to pack
            return parts, linear.weight.data
        values = self.functions["dequantize_gemm"](*list(parts.values())[:2], parts["scales"].float(), 4, self.group)
        return parts, values.T.contiguous()


class CompressedTensors:
    def __init__(self, bits: int, group: int | None, symmetric: bool, dtype: torch.dtype) -> None:
        from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

        kind = {"strategy": "channel"} if group is None else {"strategy": "group", "group_size": group}
        args = QuantizationArgs(num_bits=bits, symmetric=symmetric, **kind)
        self.scheme = QuantizationScheme(targets=["Linear"], weights=args, format="pack-quantized")
        self.bits, self.group, self.symmetric, self.dtype = bits, group, symmetric, dtype
        config = QuantizationConfig(config_groups={"group_0": self.scheme}, ignore=["lm_head"], format="pack-quantized")
        self.config = {**json.loads(config.model_dump_json()), "quantization_status": "compressed"}

    def __call__(self, name: str, w: torch.Tensor) -> Packed | None:
        from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor as Compressor

        group = self.group or w.shape[1]
        middle = 2 ** (self.bits - 1)
        scale, zero = (t.view(len(w), -1) for t in nearest(w.view(-1, group), self.bits, self.symmetric, self.dtype))
        state = {"weight": w.to(self.dtype), "weight_scale": scale.to(self.dtype)}
        if not self.symmetric:
            state["weight_zero_point"] = (zero - middle).to(torch.int8)
        parts = Compressor.compress(state, self.scheme)
        floats = {part: t.float() if t.dtype.is_floating_point else t for part, t in parts.items()}
        values = Compressor.decompress(
            {**floats, "weight_shape": torch.Size(parts["weight_shape"].tolist())}, self.scheme
        )
        return parts, values["weight"].float()


class Mlx:
    def __init__(self, bits: int, group: int, dtype: str, layers: dict[str, Any]) -> None:
        self.bits, self.group, self.dtype, self.layers = bits, group, dtype, layers
        self.config = {"group_size": group, "bits": bits, "mode": "affine", **layers}

    def __call__(self, name: str, w: torch.Tensor) -> Packed | None:
        import mlx.core as mx  # type: ignore[import-not-found]

        said = self.layers.get(name, {"bits": self.bits, "group_size": self.group})
        if said is False:
            return None
        given = mx.array(w.numpy()).astype(getattr(mx, self.dtype))
        q, scales, biases = mx.quantize(given, said["group_size"], said["bits"])
        whole = mx.dequantize(q, scales.astype(mx.float32), biases.astype(mx.float32), said["group_size"], said["bits"])
        kind = getattr(torch, self.dtype)
        halves = (torch.from_numpy(np.array(part.astype(mx.float32))).to(kind) for part in (scales, biases))
        parts = dict(zip(("scales", "biases"), halves))
        return {"weight": torch.from_numpy(np.array(q)), **parts}, torch.from_numpy(np.array(whole))


def nearest(
    w: torch.Tensor, bits: int, symmetric: bool, dtype: torch.dtype = torch.float16
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of each row [R, K]: float32 [R], values of dtype, and whole numbers."""
    most = 2**bits - 1
    if symmetric:
        scale = (2 * w.abs().amax(1) / most).to(dtype).float()
        return scale, torch.full_like(scale, 2 ** (bits - 1))
    low, high = w.amin(1).clamp(max=0), w.amax(1).clamp(min=0)
    scale = ((high - low) / most).to(dtype).float()
    return scale, (-low / scale).round().clamp(0, most)


def make(out: Path, kind: str, tool: Any, key: str = "quantization_config", whole: bool = False) -> None:
    """kind: Llama or Phi3; whole: embedding and head too"""
    torch.manual_seed(len(out.name))
    config = getattr(transformers, f"{kind}Config")(**SIZES)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).half()
    shutil.rmtree(out, ignore_errors=True)
    model.save_pretrained(out)
    stored: dict[str, torch.Tensor] = {}
    digests = {}
    for name, w in load_file(out / "model.safetensors").items():
        module = name.removesuffix(".weight")
        inside = w.dim() == 2 and (whole or "layers" in name)
        if inside and "gate" in name and key == "quantization_config":  # zero points at both ends of their range
            w[:4], w[4:8] = w[:4].abs(), -w[4:8].abs()
        made = tool(module, w.float()) if inside else None
        if made is None:
            stored[name] = w
        else:
            stored |= {f"{module}.{part}": tensor.contiguous() for part, tensor in made[0].items()}
            digests[name] = hashlib.sha256(made[1].numpy().tobytes()).hexdigest()
    save_file(stored, out / "model.safetensors", {"format": "pt"})
    data = json.loads((out / "config.json").read_text())
    data |= {key: tool.config} | ({"quantization_config": tool.config} if key == "quantization" else {})
    (out / "config.json").write_text(json.dumps(data, indent=1) + "\n")
    (out / "digests.json").write_text(json.dumps(digests, indent=1) + "\n")
    (out / "generation_config.json").unlink(missing_ok=True)


def main(tools: Path, out: Path) -> None:
    sys.path.insert(0, str(tools))

    def scattered(groups: torch.Tensor) -> torch.Tensor:
        return groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(1))]

    def in_blocks(groups: torch.Tensor) -> torch.Tensor:
        return groups.view(-1, 16)[[2, 0, 3, 1]].flatten()

    make(out / "gptq-4-sym-llama", "Llama", Gptq(tools, 4, 32, True, v1=True))
    make(out / "gptq-4-asym-phi3", "Phi3", Gptq(tools, 4, 16, False, v1=False))
    make(out / "gptq-4-asym-v1-phi3", "Phi3", Gptq(tools, 4, -1, False, v1=True))
    make(out / "gptq-8-asym-llama", "Llama", Gptq(tools, 8, 32, False, v1=True))
    make(out / "gptq-2-asym-llama", "Llama", Gptq(tools, 2, 32, False, v1=False))
    make(out / "gptq-4-desc_act-llama", "Llama", Gptq(tools, 4, 16, True, v1=True, order=scattered))
    make(out / "gptq-4-blocks-phi3", "Phi3", Gptq(tools, 4, 32, False, v1=True, order=in_blocks))
    make(out / "awq-gemm-llama", "Llama", Awq(tools, 32, gemv=False))
    make(out / "awq-gemv-phi3", "Phi3", Awq(tools, 32, gemv=True))
    make(out / "ct-4-sym-llama", "Llama", CompressedTensors(4, 32, True, torch.bfloat16))
    make(out / "ct-4-asym-phi3", "Phi3", CompressedTensors(4, 16, False, torch.float16))
    make(out / "ct-8-channel-llama", "Llama", CompressedTensors(8, None, True, torch.float16))
    make(out / "ct-8-asym-phi3", "Phi3", CompressedTensors(8, 32, False, torch.float16))
    eights = {f"model.layers.{i}.self_attn.v_proj": {"group_size": 64, "bits": 8} for i in range(2)}
    mixed = Mlx(4, 32, "bfloat16", {**eights, "lm_head": False})
    make(out / "mlx-mixed-llama", "Llama", mixed, "quantization", whole=True)
    three = Mlx(3, 64, "float16", {"model.embed_tokens": {"group_size": 32, "bits": 6}})
    make(out / "mlx-3-phi3", "Phi3", three, "quantization", whole=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
