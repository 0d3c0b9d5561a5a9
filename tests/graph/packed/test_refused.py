"""Quantizations that are not known, contradict themselves, or do not fit the files: one line that says what would work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_folders import save_model
from safetensors.torch import load_file, save_file

from pocketphi.graph.errors import InputError
from pocketphi.graph.lazy_weights import FloatWeight
from pocketphi.graph.opening import open_checkpoint
from pocketphi.passes.quantizers import Keep

DATA = Path(__file__).parents[2] / "data/packed"
Tensors = dict[str, torch.Tensor]
GPTQ, AWQ, CT, MLX = "gptq-4-sym-llama", "awq-gemm-llama", "ct-4-sym-llama", "mlx-mixed-llama"
ROUND = "auto-round-mixed-llama"
DOWN = "model.layers.1.mlp.down_proj"


def changed(
    folder: Path, name: str, said: dict[str, Any], edit: Callable[[Tensors], object] = lambda tensors: None
) -> Path:
    """A copy of a checkpoint whose settings, and tensors, are others. said: keys that replace those of the quantization; a
    value of ... removes one."""
    shutil.copytree(DATA / name, folder, dirs_exist_ok=True)
    data = json.loads((folder / "config.json").read_bytes())
    for key in ("quantization_config", "quantization"):
        if key in data:
            data[key] = {k: v for k, v in {**data[key], **said}.items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(data))
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def group(**weights: Any) -> dict[str, Any]:
    """config_groups of compressed-tensors. Keys of the weights; input_activations of the group."""
    own = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32, "dynamic": False}
    rest = {"input_activations": weights.pop("input_activations", None), "targets": weights.pop("targets", ["Linear"])}
    return {"config_groups": {"group_0": {**rest, "weights": {**own, **weights}}}}


FLOAT = "compile the float checkpoint that it was made from$"
SETTINGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "fp8": (
        GPTQ,
        {"quant_method": "fp8"},
        f"quant_method is 'fp8', expected one of gptq, awq, compressed-tensors, mlx, auto-round; {FLOAT}",
    ),
    "bitsandbytes": (
        GPTQ,
        {"quant_method": "bitsandbytes"},
        f"quant_method is 'bitsandbytes', expected one of .*; {FLOAT}",
    ),
    "hqq": (GPTQ, {"quant_method": "hqq"}, "quant_method is 'hqq', expected one of gptq"),
    "aqlm": (GPTQ, {"quant_method": "aqlm"}, "quant_method is 'aqlm', expected one of gptq"),
    "auto-round": (
        ROUND,
        {"packing_format": "auto_round:llm_compressor"},
        "packing_format is 'auto_round:llm_compressor', expected one of auto_round:auto_gptq, auto_round:gptqmodel, "
        f"auto_round:auto_awq; {FLOAT}",
    ),
    "auto-round, no packing": (
        ROUND,
        {"packing_format": ...},
        "packing_format is '', expected one of auto_round:auto_gptq",
    ),
    "auto-round's floats": (ROUND, {"data_type": "mx_fp"}, f"data_type is 'mx_fp', expected 'int' or None; {FLOAT}"),
    "auto-round's activations": (GPTQ, {"act_bits": 8}, f"act_bits is 8, expected 16 or 32 or None; {FLOAT}"),
    "auto-round's rotation": (
        ROUND,
        {"rotation_config": {"block": 32}},
        "rotation_config is {'block': 32}, expected None or {}",
    ),
    "auto-round's layer": (
        ROUND,
        {"extra_config": {"model.layers.0.mlp.down_proj": {"bits": 8, "how": 1}}},
        "extra_config: model.layers.0.mlp.down_proj: nobody here knows what 'how' = 1 means",
    ),
    "auto-round's three bits": (
        ROUND,
        {"extra_config": {"model.layers.0.mlp.down_proj": {"bits": 3}}},
        "bits is 3, expected 2, 4 or 8: values of other widths lie across words",
    ),
    "auto-round's awq": (
        "auto-round-asym-phi3",
        {"extra_config": {"model.layers.0.mlp.down_proj": {"bits": 8}}},
        f"extra_config has other settings for 'model.layers.0.mlp.down_proj', which AWQ cannot; {FLOAT}",
    ),
    "no method": (CT, {"quant_method": ...}, "quant_method is None, expected one of gptq"),
    "3 bits": (
        GPTQ,
        {"bits": 3},
        f"bits is 3, expected 2, 4 or 8: values of other widths lie across words, .*; {FLOAT}",
    ),
    "bits in words": (GPTQ, {"bits": "4"}, "bits: input should be a valid integer, got '4'$"),
    "no bits": (GPTQ, {"bits": ...}, "bits: field required"),
    "other bits": (
        GPTQ,
        {"bits": 8},
        r"down_proj.qweight' is I32 \[8, 64\], the settings of the quantization ask for I32 \[16, 64\]",
    ),
    "other group": (
        GPTQ,
        {"group_size": 64},
        r"qzeros' is I32 \[2, 8\], the settings of the quantization ask for I32 \[1, 8\]",
    ),
    "odd group": (GPTQ, {"group_size": 48}, "group_size is 48, which does not divide the 64 columns of a weight"),
    "group of none": (GPTQ, {"group_size": 0}, "group_size is 0, which does not divide"),
    "marlin": (
        GPTQ,
        {"checkpoint_format": "marlin"},
        "the format is 'marlin', expected gptq or gptq_v2; save it so with GPTQModel",
    ),
    "two formats": (GPTQ, {"format": "gptq_v2"}, "the format is 'gptq' and 'gptq_v2', expected gptq or gptq_v2"),
    "other words": (GPTQ, {"pack_dtype": "int16"}, "pack_dtype is 'int16', expected 'int32'"),
    "rotated": (GPTQ, {"rotation": "hadamard"}, f"rotation is 'hadamard', expected .*; {FLOAT}"),
    "a key": (GPTQ, {"twist": 2}, f"nobody here knows what 'twist' = 2 means for the weights; {FLOAT}"),
    "not in order": (
        "gptq-4-desc_act-llama",
        {"desc_act": False},
        "desc_act is false, but .*g_idx has another order of columns",
    ),
    "a pattern": (GPTQ, {"dynamic": {"-:(": {}}}, r"dynamic has the pattern '-:\(', which is none"),
    "said to be float": (
        GPTQ,
        {"dynamic": {"-:.*down_proj": {}}},
        "down_proj' is packed .*, but config.json says .* left in float",
    ),
    "awq bits": (AWQ, {"bits": 8}, "bits is 8, expected 4, which is all that AWQ packs"),
    "awq version that nobody can read": (
        AWQ,
        {"version": "a" * 5000},
        "the version is 'a{30,160}…?, expected gemm or gemv",
    ),
    "awq version that moves the cursor": (AWQ, {"version": "\x1b[2j"}, r"the version is '\\x1b\[2j', expected gemm"),
    "gptq format that nobody can read": (
        GPTQ,
        {"format": "a" * 5000},
        "the format is 'a{30,160}…? and 'gptq', expected gptq",
    ),
    "awq version": (AWQ, {"version": "marlin"}, "the version is marlin, expected gemm or gemv"),
    "awq as gemv": (AWQ, {"version": "gemv"}, r"qweight' is I32 \[64, 8\], the .* ask for|qzeros' is I32"),
    "awq groups": (AWQ, {"q_group_size": 64}, "group_size is 32 and 64, expected one number"),
    "awq list": (AWQ, {"modules_to_not_convert": ["down_proj"]}, "down_proj' is packed .*left in float"),
    "ct format": (CT, {"format": "float-quantized"}, "format is 'float-quantized', expected 'pack-quantized'"),
    "ct bits": (CT, group(num_bits=3), "weights: num_bits is 3, expected 2, 4 or 8: versions of the tool pack others"),
    "ct floats": (CT, group(type="float"), "weights: type is 'float', expected 'int'"),
    "ct block": (
        CT,
        group(strategy="block"),
        "weights: strategy is 'block', expected 'group' or 'channel' or 'tensor'",
    ),
    "ct activations": (CT, group(input_activations={"num_bits": 8}), "group_0: input_activations is .*, expected None"),
    "ct zeros": (CT, group(symmetric=False), "weight_zero_point' is missing"),
    "ct targets": (CT, group(targets=["re:.*mlp.*"]), "k_proj is packed, but no group of config_groups has it"),
    "ct ignored": (CT, {"ignore": ["re:.*down_proj"]}, "down_proj' is packed .*left in float"),
    "ct sparse": (CT, {"sparsity_config": {"format": "sparse-24"}}, "sparsity_config is .*, expected None"),
    "ct no groups": (CT, {"config_groups": {}}, "config_groups is empty"),
    "mlx bits": (MLX, {"bits": 7}, "bits is 7, expected one of 2, 3, 4, 5, 6, 8"),
    "mlx mode": (MLX, {"mode": "mxfp4"}, f"mode is 'mxfp4', expected 'affine' .*; {FLOAT}"),
    "mlx layer": (
        MLX,
        {f"{DOWN}": {"bits": 8, "group_size": 32}},
        r"weight' is U32 \[64, 8\], the .* ask for U32 \[64, 16\]",
    ),
    "mlx float layer": (MLX, {f"{DOWN}": False}, "down_proj' is packed .*left in float"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_cannot_be(name: str, tmp_path: Path) -> None:
    base, said, message = SETTINGS[name]
    with pytest.raises(InputError, match=message) as error:
        open_checkpoint(changed(tmp_path, base, said))
    assert "\n" not in str(error.value)


def drop(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, value: torch.Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: value})


FILES: dict[str, tuple[str, Callable[[Tensors], object], str]] = {
    "no scales": (GPTQ, drop(f"{DOWN}.scales"), r"down_proj.scales' is missing \(the config asks for \[2, 64\]\)"),
    "no zeros": (AWQ, drop(f"{DOWN}.qzeros"), "down_proj.qzeros' is missing"),
    "no values": (
        AWQ,
        drop(f"{DOWN}.qweight"),
        "holds the tensor .*down_proj.* which has no place|part of a quantized",
    ),
    "a bias": (GPTQ, put(f"{DOWN}.bias", torch.ones(64).half()), "down_proj.bias', which is not zero; a Llama"),
    "a group beyond": (GPTQ, put(f"{DOWN}.g_idx", torch.arange(64).int()), "g_idx' names group 63, expected 0 to 1"),
    "both": (GPTQ, put(f"{DOWN}.weight", torch.ones(64, 64)), "holds .*down_proj.weight', which are one tensor"),
    "another shape": (
        CT,
        put(f"{DOWN}.weight_shape", torch.tensor([64, 60])),
        r"weight_shape' is \[64, 60\], the config asks",
    ),
    "float scales": (MLX, put(f"{DOWN}.scales", torch.ones(64, 2).double()), r"scales' is F64 \[64, 2\], the settings"),
    "an adapter": (
        GPTQ,
        put(f"{DOWN}.lora_A.weight", torch.ones(2, 64)),
        "part of an adapter; save the model without it",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_do_not_fit(name: str, tmp_path: Path) -> None:
    base, edit, message = FILES[name]
    with pytest.raises(InputError, match=message):
        open_checkpoint(changed(tmp_path, base, {}, edit))


def test_biases_of_zeros_do_no_harm(tmp_path: Path) -> None:
    """AutoGPTQ wrote them for every weight."""
    open_checkpoint(changed(tmp_path, GPTQ, {}, put(f"{DOWN}.bias", torch.zeros(64).half())))


def test_float_weights_that_are_said_to_be_quantized(tmp_path: Path) -> None:
    """And weights that another tool has packed."""
    folder = changed(tmp_path, GPTQ, {})
    data = json.loads((folder / "config.json").read_bytes())
    data["quantization_config"] = {"quant_method": "compressed-tensors", "format": "pack-quantized", **group()}
    (folder / "config.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="part of a quantized weight, but not one as compressed-tensors packs it"):
        open_checkpoint(folder)
    save_model(folder, "LlamaForCausalLM", torch.float16)
    saved = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**saved, "quantization_config": data["quantization_config"]}))
    with pytest.raises(
        InputError, match="says that weights are quantized by compressed-tensors, but the files hold none"
    ):
        open_checkpoint(folder)


def test_quantized_weights_of_which_nothing_is_said(tmp_path: Path) -> None:
    folder = changed(tmp_path, GPTQ, {})
    data = json.loads((folder / "config.json").read_bytes())
    del data["quantization_config"]
    (folder / "config.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"part of a quantized weight; config.json does not say how it was quantized"):
        open_checkpoint(folder)


def test_two_settings_that_differ(tmp_path: Path) -> None:
    folder = changed(tmp_path, MLX, {})
    data = json.loads((folder / "config.json").read_bytes())
    data["quantization_config"] = {"bits": 8, "group_size": 32}
    (folder / "config.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="quantization_config and quantization say different things, expected one"):
        open_checkpoint(folder)


def test_a_zero_point_that_is_not_the_middle(tmp_path: Path) -> None:
    zeros = torch.full((2, 8), 0x77777777, dtype=torch.int32)
    zeros[0, 0] = 0x77777776
    source = open_checkpoint(changed(tmp_path, GPTQ, {}, put(f"{DOWN}.qzeros", zeros)))
    with pytest.raises(
        InputError, match=r"sym is true, but a zero point of .*down_proj is not 8, the middle; say sym = false"
    ):
        source.read(f"{DOWN}.weight", 0, 4)


def test_a_zero_point_that_tools_read_in_different_ways(tmp_path: Path) -> None:
    """15 stored, plus one: 16, or 0, or one more of its neighbour. GPTQModel's own files mean the last, and are read so."""
    zeros = torch.full((2, 8), 0x7777777F, dtype=torch.int32)
    said = {"sym": False}
    edit = put(f"{DOWN}.qzeros", zeros)
    own = open_checkpoint(changed(tmp_path / "own", GPTQ, said, edit))
    scale = load_file(DATA / GPTQ / "model.safetensors")[f"{DOWN}.scales"].float()
    plain = open_checkpoint(DATA / GPTQ).read(f"{DOWN}.weight", 0, 2)
    moved = own.read(f"{DOWN}.weight", 0, 2) - plain  # zero points of 0 and 9 in place of 8 and 8
    step = scale[:, :2].T.repeat_interleave(32, 1)
    assert torch.equal(moved, step * torch.tensor([[8.0], [-1.0]]))
    other = open_checkpoint(changed(tmp_path / "other", GPTQ, {**said, "meta": ...}, edit))
    with pytest.raises(
        InputError, match=r"down_proj.qzeros holds 15, for which tools add 1 in different ways; load it with"
    ):
        other.read(f"{DOWN}.weight", 0, 2)


def test_a_stack_of_quantized_and_float(tmp_path: Path) -> None:
    """q in float beside k and v in 4 bits: read, but not kept."""
    name = "model.layers.0.self_attn.q_proj"

    def floats(tensors: Tensors) -> None:
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            del tensors[f"{name}.{part}"]
        tensors[f"{name}.weight"] = torch.ones(64, 64).half()

    source = open_checkpoint(changed(tmp_path, GPTQ, {}, floats))
    stack = "model.layers.0.self_attn.qkv_proj.weight"
    assert source.tensors[stack].dtype == "fp16+gptq4"
    assert bool((source.read(stack, 60, 66)[:4] == 1).all())
    assert source.kept(stack) is None
    message = r"k_proj is quantized, and .*q_proj.weight, which becomes one weight with it, is fp16; choose --recipe search or"
    with pytest.raises(InputError, match=message):
        Keep(32).remark(FloatWeight(source, stack))


def test_groups_of_another_size_than_blocks(tmp_path: Path) -> None:
    """Groups of 8 are in no file's blocks."""

    def eights(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.endswith((".scales", ".qzeros"))]:
            tensors[name] = tensors[name].repeat_interleave(4, 0)
        for name in [n for n in tensors if n.endswith(".g_idx")]:
            del tensors[name]

    source = open_checkpoint(changed(tmp_path, GPTQ, {"group_size": 8}, eights))
    assert torch.equal(source.read(f"{DOWN}.weight", 0, 64), open_checkpoint(DATA / GPTQ).read(f"{DOWN}.weight", 0, 64))
    with pytest.raises(
        InputError, match=r"down_proj.weight has groups of 8; no file holds blocks of another size than mult"
    ):
        Keep(32).remark(FloatWeight(source, f"{DOWN}.weight"))


def test_scales_that_float16_does_not_have_are_rounded_with_a_remark(tmp_path: Path) -> None:
    scales = load_file(DATA / CT / "model.safetensors")[f"{DOWN}.weight_scale"]
    scales[3, 1] = 1e-7
    source = open_checkpoint(changed(tmp_path, CT, {}, put(f"{DOWN}.weight_scale", scales)))
    remark = Keep(32).remark(FloatWeight(source, f"{DOWN}.weight"))
    assert remark == (
        f"{DOWN}.weight: 1 of its 128 scales and minimums are no values of float16, as which files hold them: rounded to that"
    )
    kept, exact = source.read_kept(f"{DOWN}.weight", 3, 4).dequantize(), source.read(f"{DOWN}.weight", 3, 4)
    assert not torch.equal(kept, exact)
    assert float((kept - exact).abs().max()) <= 8 * 2.0**-25
    scales[3, 1] = 1e6
    large = open_checkpoint(changed(tmp_path, CT, {}, put(f"{DOWN}.weight_scale", scales)))
    with pytest.raises(InputError, match="a scale of rows 0 to 8 is beyond the range of float16"):
        large.read_kept(f"{DOWN}.weight", 0, 8)
