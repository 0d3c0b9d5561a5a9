"""Packages that coremltools made of torch modules, float and compressed: the interpreter agrees with torch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

ct = pytest.importorskip("coremltools")

from mil_programs import mb, program, save, types  # noqa: E402 - only where coremltools is

from pocketphi.targets.coreml.interpreter import Interpreter  # noqa: E402
from pocketphi.targets.coreml.mlpackage import MLPackage  # noqa: E402
from pocketphi.targets.coreml.typecheck import typecheck  # noqa: E402


class Attention(nn.Module):
    """Multi-head self-attention between two layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.view(1, 6, 4, 8).transpose(1, 2) for part in self.qkv(self.before(x)).chunk(3, dim=-1))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.after(x + self.out(y.transpose(1, 2).reshape(1, 6, 32)))


class Text(nn.Module):
    """An embedding, the mean over tokens, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 32), nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 3))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(tokens).mean(1)).softmax(-1)


class Counter(nn.Module):
    """A running sum of what it was given, in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(1, 4, dtype=torch.float16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.add_(x)
        return self.total * 2


def image_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1),
        nn.AvgPool2d(2, padding=1, count_include_pad=False),
        nn.Flatten(),
        nn.Linear(4 * 6 * 6, 5),
    )


class Recurrent(nn.Module):
    """All steps of a recurrent layer, [S, B, H]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


class Resized(nn.Module):
    """An image at another size, with the pixels of each way to get there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near = nn.functional.interpolate(x, size=(7, 9))
        return torch.cat([near, nn.functional.interpolate(x, size=(7, 9), mode="bilinear", align_corners=False)], 1)


TOKENS = torch.tensor([[3, 49, 0, 7, 7]])
MODULES: dict[str, tuple[Any, torch.Tensor]] = {
    "linear": (lambda: nn.Linear(16, 4), torch.zeros(2, 16)),
    "mlp": (lambda: nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)), torch.zeros(2, 16)),
    "gelu tanh": (lambda: nn.Sequential(nn.Linear(16, 64), nn.GELU(approximate="tanh")), torch.zeros(2, 16)),
    "attention": (Attention, torch.zeros(1, 6, 32)),
    "image": (image_model, torch.zeros(1, 3, 24, 24)),
    "text": (Text, TOKENS),
    "lstm": (lambda: Recurrent(nn.LSTM(8, 6, num_layers=2, bidirectional=True)), torch.zeros(5, 2, 8)),
    "gru": (lambda: Recurrent(nn.GRU(8, 6)), torch.zeros(5, 2, 8)),
    "rnn": (lambda: Recurrent(nn.RNN(8, 6, nonlinearity="relu")), torch.zeros(5, 2, 8)),
    "resized": (Resized, torch.zeros(1, 2, 12, 14)),
    "shuffled": (lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.PixelShuffle(4)), torch.zeros(1, 4, 8, 8)),
}


def convert(module: nn.Module, example: torch.Tensor, path: Path, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, example)
    dtype = np.int32 if example.dtype == torch.int64 else np.float32
    inputs = [ct.TensorType("x", example.shape, dtype=dtype)]
    return save(traced, path, inputs=inputs, outputs=[ct.TensorType("y")], **options)


def made(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    build, example = MODULES[name]
    module = build().eval()
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
    return module, example if example.dtype == torch.int64 else torch.randn(example.shape)


@pytest.mark.parametrize("name", MODULES)
def test_a_float32_package_computes_what_torch_does(tmp_path: Path, name: str) -> None:
    """Sums of at most 256 float32 products: 256 · 2⁻²⁴ = 1.5e-5 of the magnitude."""
    module, x = made(name)
    path = convert(module, x, tmp_path / "p.mlpackage", compute_precision=ct.precision.FLOAT32)
    came = Interpreter(MLPackage.open(path), "fp32").run(None, {"x": x})["y"]
    expected = module(x).detach()
    assert float((came - expected).abs().max()) < 1.5e-5 * max(1.0, float(expected.abs().max()))
    assert typecheck(path) > 0


@pytest.mark.parametrize("name", MODULES)
def test_a_float16_package_differs_by_rounding(tmp_path: Path, name: str) -> None:
    """At most 25 results on the way, each rounded by 2⁻¹¹ of the largest value; weights are rounded to float16 in the file."""
    module, x = made(name)
    path = convert(module, x, tmp_path / "p.mlpackage")
    package = MLPackage.open(path)
    interpreter = Interpreter(package, "fp16", ranges=True)
    came = interpreter.run(None, {"x": x})["y"]
    structure = Interpreter(package, "fp32").run(None, {"x": x})["y"]
    bound = 25 * 2**-11 * max(interpreter.ranges.values())
    assert float((came - structure).abs().max()) < bound
    assert float((structure - module(x).detach()).abs().max()) < bound


def test_a_stateful_module(tmp_path: Path) -> None:
    module = Counter()
    traced = torch.jit.trace(module, torch.zeros(1, 4, dtype=torch.float16))
    state = ct.StateType(wrapped_type=ct.TensorType(shape=(1, 4), dtype=np.float16), name="total")
    path = save(
        traced,
        tmp_path / "p.mlpackage",
        inputs=[ct.TensorType("x", (1, 4), dtype=np.float16)],
        outputs=[ct.TensorType("y", dtype=np.float16)],
        states=[state],
    )
    interpreter = Interpreter(MLPackage.open(path))
    states = interpreter.make_states()
    x = torch.tensor([[1.0, 2, 3, 4]])
    assert interpreter.run(None, {"x": x}, states)["y"].tolist() == [[2, 4, 6, 8]]
    assert interpreter.run(None, {"x": x}, states)["y"].tolist() == [[4, 8, 12, 16]]
    assert states["total"].tolist() == [[2, 4, 6, 8]]


# compressed by coremltools.optimize: the interpreter against a package with the weights that coremltools decompresses

optimize = pytest.importorskip("coremltools.optimize.coreml")


def linear4(mode: str) -> Any:
    return optimize.OpLinearQuantizerConfig(mode=mode, dtype="int4", granularity="per_block", block_size=16)


CONFIGS = {
    "int4 blocks": ("linear_quantize_weights", lambda: linear4("linear_symmetric")),
    "int4 blocks with offsets": ("linear_quantize_weights", lambda: linear4("linear")),
    "int8 channels": ("linear_quantize_weights", lambda: optimize.OpLinearQuantizerConfig(mode="linear_symmetric")),
    **{
        f"palette of {bits} bits": (
            "palettize_weights",
            lambda bits=bits: optimize.OpPalettizerConfig(mode="uniform", nbits=bits),
        )
        for bits in (1, 2, 3, 4, 6, 8)
    },
    "grouped palettes": (
        "palettize_weights",
        lambda: optimize.OpPalettizerConfig(mode="uniform", nbits=4, granularity="per_grouped_channel", group_size=8),
    ),
    "sparse": ("prune_weights", lambda: optimize.OpMagnitudePrunerConfig(target_sparsity=0.5)),
}


@pytest.mark.parametrize("target", ["iOS26", "iOS18", "iOS16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_compressed_weights(tmp_path: Path, name: str, target: str) -> None:
    """In fp32 mode weights are not rounded, decompressed ones are, to float16: 2⁻¹¹ of each of 64 products of three layers."""
    if target == "iOS16" and ("int4" in name or "3 bits" in name or "grouped" in name):
        pytest.skip("iOS 16 has no such weights")
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    x = torch.randn(3, 64)
    path = convert(module, x, tmp_path / "p.mlpackage", minimum_deployment_target=getattr(ct.target, target))
    function, make = CONFIGS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = optimize.OptimizationConfig(global_config=make())
        small = getattr(optimize, function)(ct.models.MLModel(str(path), skip_model_load=True), config)
        small.save(str(tmp_path / "small.mlpackage"))
        optimize.decompress_weights(small).save(str(tmp_path / "plain.mlpackage"))
    package = MLPackage.open(tmp_path / "small.mlpackage")
    assert any(kind.startswith("constexpr_") for kind in package.operators())
    came, again, plain = (
        Interpreter(MLPackage.open(tmp_path / f"{source}.mlpackage"), "fp32", keep_bytes=keep).run(None, {"x": x})["y"]
        for source, keep in (("small", 0), ("small", 1 << 30), ("plain", 0))
    )
    scale = float(plain.abs().max())
    assert float((came - plain).abs().max()) < 3 * 64**0.5 * 2**-11 * scale
    assert float((came - again).abs().max()) < 1e-5 * scale
    half, plain_half = (
        Interpreter(MLPackage.open(tmp_path / f"{source}.mlpackage"), "fp16").run(None, {"x": x})["y"]
        for source in ("small", "plain")
    )
    torch.testing.assert_close(half, plain_half, rtol=2**-9, atol=2**-9 * scale)


@pytest.mark.parametrize("second", ["palette", "int8", "int4 blocks"])
def test_weights_pruned_and_then_compressed(tmp_path: Path, second: str) -> None:
    """Sparse constants over sparse constants, against the weights that coremltools decompresses."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    x = torch.randn(3, 64)
    path = convert(module, x, tmp_path / "p.mlpackage", compute_precision=ct.precision.FLOAT32)
    small = ct.models.MLModel(str(path), skip_model_load=True)
    name = "4 bits" if second == "palette" else "channels" if second == "int8" else "int4 blocks"
    function, make = next(value for key, value in CONFIGS.items() if name in key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step, config in (("prune_weights", CONFIGS["sparse"][1]()), (function, make())):
            whole = optimize.OptimizationConfig(global_config=config)
            small = getattr(optimize, step)(small, whole, joint_compression=step != "prune_weights")
        small.save(str(tmp_path / "small.mlpackage"))
        optimize.decompress_weights(small).save(str(tmp_path / "plain.mlpackage"))
    package = MLPackage.open(tmp_path / "small.mlpackage")
    kind = "constexpr_lut_to_sparse" if second == "palette" else "constexpr_sparse_blockwise_shift_scale"
    assert package.operators()[kind] >= 1
    came, plain = (
        Interpreter(MLPackage.open(tmp_path / f"{source}.mlpackage"), "fp32").run(None, {"x": x})["y"]
        for source in ("small", "plain")
    )
    torch.testing.assert_close(came, plain, rtol=1e-5, atol=1e-5 * float(plain.abs().max()))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_sparse_palette_of_vectors(tmp_path: Path, axis: int) -> None:
    """The example of the operator's documentation: vectors of two along an axis, and an int8 table with scales."""
    mask = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1], [0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]])
    picked = np.array([0, 1, 1, 0, 1, 1, 0, 0, 1])
    table = np.float32([[2, 2.5], [3, 3.5]])
    indices = np.zeros(mask.shape, int)
    indices[mask == 1] = picked
    vectors = np.where(mask[..., None] == 1, table[indices], 0)
    expected = np.concatenate(list(np.moveaxis(vectors, axis, 0)[:, None].transpose(0, 3, 2, 1)[..., 0]), 0)
    expected = expected if axis == 0 else expected.T

    def build(x: Any) -> Any:
        kept, values = mb.constexpr_lut_to_sparse(
            indices_mask=mask.astype(types.np_uint1_dtype),
            indices_nonzero_data=picked.astype(types.np_uint1_dtype),
            lut=table.reshape(1, 1, 2, 2),
            vector_axis=axis,
        )
        return mb.add(x=x, y=mb.constexpr_sparse_to_dense(nonzero_data=values, mask=kept), name="y")

    made = program(build, x=("fp32", expected.shape))
    path = save(made, tmp_path / "p.mlpackage", compute_precision=ct.precision.FLOAT32)
    came = Interpreter(MLPackage.open(path), "fp32").run(None, {"x": torch.zeros(expected.shape)})["y"]
    assert came.tolist() == expected.tolist()
