"""Torch modules for `coreml_zoo.py`: name → (module, inputs). Small, with random weights, of the kinds that people convert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name


class Do(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, *given: Tensor) -> Any:
        return self.function(*given, *self.layers)


class Loop(nn.Module):
    """Python control flow, scripted: rounds until a sum is large enough."""

    def forward(self, x: Tensor) -> Tensor:
        i = 0
        while i < 5 and bool(x.sum() < 50.0):
            x = x * 1.5 + 1.0
            i += 1
        return x


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):  # noqa: SIM108 - scripted
            y = x * 2
        else:
            y = x - 1
        return y


THETA = torch.tensor([[[0.8, 0.3, 0.1], [-0.2, 0.9, 0.2]]])


def normal(*shape: int) -> Tensor:
    return torch.randn(shape)


def whole(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape)


def image(channels: int = 3, size: int = 12) -> Tensor:
    return normal(1, channels, size, size)


Zoo = dict[str, tuple[nn.Module, tuple[Tensor, ...]]]


def sequences() -> Zoo:
    x = normal(5, 2, 4)
    zoo: Zoo = {}
    for name, layer in (("lstm", nn.LSTM), ("gru", nn.GRU), ("rnn", nn.RNN)):
        zoo[name] = layer(4, 3), (x,)
        zoo[f"{name}, batch first"] = layer(4, 3, batch_first=True), (normal(2, 5, 4),)
        zoo[f"{name}, two layers"] = layer(4, 3, num_layers=2), (x,)
        zoo[f"{name}, no bias"] = layer(4, 3, bias=False), (x,)
        zoo[f"{name}, one step"] = layer(4, 3), (normal(1, 1, 4),)
        zoo[f"{name}, last step"] = Do(lambda x, r: r(x)[0][-1], layer(4, 3)), (x,)
    zoo["lstm, both directions"] = nn.LSTM(4, 3, bidirectional=True), (x,)
    zoo["lstm, two layers, both directions"] = nn.LSTM(4, 3, num_layers=2, bidirectional=True), (x,)
    zoo["gru, both directions"] = nn.GRU(4, 3, bidirectional=True), (x,)
    zoo["lstm with a state"] = Do(lambda x, h, c, r: r(x, (h, c)), nn.LSTM(4, 3)), (x, normal(1, 2, 3), normal(1, 2, 3))
    zoo["gru with a state"] = Do(lambda x, h, r: r(x, h), nn.GRU(4, 3)), (x, normal(1, 2, 3))
    zoo["rnn, relu"] = nn.RNN(4, 3, nonlinearity="relu"), (x,)
    zoo["tagger"] = (
        Do(lambda i, e, r, o: o(r(e(i))[0]).log_softmax(-1), nn.Embedding(20, 4), nn.LSTM(4, 6), nn.Linear(6, 5)),
        (whole(20, 7, 1),),
    )
    zoo["loop, scripted"] = torch.jit.script(Loop()), (normal(2, 3),)
    zoo["branch, true"] = torch.jit.script(Branch()), (torch.ones(2, 3),)
    zoo["branch, false"] = torch.jit.script(Branch()), (-torch.ones(2, 3),)
    return zoo


def images() -> Zoo:
    zoo: Zoo = {
        "pixel shuffle": (nn.PixelShuffle(2), (image(8),)),
        "pixel unshuffle": (nn.PixelUnshuffle(2), (image(2),)),
        "channel shuffle": (Do(lambda x: x.view(1, 2, 2, 12, 12).transpose(1, 2).reshape(1, 4, 12, 12)), (image(4),)),
        "crop": (Do(lambda x: x[:, :, 2:-3, 1:-1]), (image(),)),
        "pad reflect": (nn.ReflectionPad2d((1, 2, 3, 1)), (image(),)),
        "pad replicate": (nn.ReplicationPad2d(2), (image(),)),
        "pad constant": (nn.ConstantPad2d((1, 0, 2, 3), 0.5), (image(),)),
        "adaptive average pool": (nn.AdaptiveAvgPool2d(4), (image(),)),
        "adaptive max pool": (nn.AdaptiveMaxPool2d(1), (image(),)),
        "max pool, ceil": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (image(),)),
        "average pool": (nn.AvgPool2d(3, 2, 1), (image(),)),
        "average pool 1d": (nn.AvgPool1d(3, 2), (normal(1, 4, 11),)),
        "conv 1d": (nn.Conv1d(4, 6, 3, padding=1), (normal(1, 4, 9),)),
        "conv 3d": (nn.Conv3d(2, 3, 3, padding=1), (normal(1, 2, 5, 5, 5),)),
        "conv, grouped and dilated": (nn.Conv2d(4, 8, 3, dilation=2, groups=2, padding="same"), (image(4),)),
        "conv transpose": (nn.ConvTranspose2d(3, 4, 3, 2, 1, output_padding=1), (image(),)),
        "affine grid": (
            Do(
                lambda x: F.grid_sample(x, F.affine_grid(THETA, [1, 3, 12, 12], align_corners=True), align_corners=True)
            ),
            (image(),),
        ),
        "roll": (Do(lambda x: torch.roll(x, 3, 2)), (image(),)),
        "rot90": (Do(lambda x: x.flip(2).transpose(2, 3)), (image(),)),
        "unfold": (nn.Unfold(3, padding=1), (image(),)),
    }
    for mode in ("bilinear", "nearest"):
        for padding in ("zeros", "border", "reflection"):
            for align in (True, False):
                name = f"grid sample, {mode}, {padding}, {'' if align else 'not '}aligned"
                zoo[name] = (
                    Do(lambda x, g, m=mode, p=padding, a=align: F.grid_sample(x, g, m, p, a)),
                    (image(), torch.rand(1, 6, 7, 2) * 3 - 1.5),
                )
    for size in (7, 9, 17, 24, 30):
        zoo[f"resize nearest to {size}"] = Do(lambda x, s=size: F.interpolate(x, size=(s, s))), (image(),)
        zoo[f"resize bilinear to {size}"] = (
            Do(lambda x, s=size: F.interpolate(x, size=(s, s), mode="bilinear", align_corners=False)),
            (image(),),
        )
    for factor in (0.5, 1.5, 2.3):
        zoo[f"resize nearest by {factor}"] = Do(lambda x, f=factor: F.interpolate(x, scale_factor=f)), (image(),)
    zoo["resize nearest 1d"] = Do(lambda x: F.interpolate(x, size=13)), (normal(1, 2, 9),)
    zoo["resize bilinear, aligned"] = nn.UpsamplingBilinear2d(size=(19, 8)), (image(),)
    return zoo


def tensors() -> Zoo:
    x = normal(2, 3, 4)
    simple: dict[str, Callable[..., Any]] = {
        "sum of all": lambda x: x.sum(),
        "mean and variance": lambda x: (x.mean(-1), x.var(-1, unbiased=False)),
        "norm": lambda x: x.norm(dim=-1),
        "cumulative sum": lambda x: x.cumsum(1),
        "sort": lambda x: x.sort(dim=-1).values,
        "top k": lambda x: x.topk(2)[0],
        "argmax": lambda x: x.argmax(-1).float(),
        "max over all": lambda x: x.max(),
        "where": lambda x: torch.where(x > 0, x, -x * 2),
        "masked fill": lambda x: x.masked_fill(x > 0.5, -1.0),
        "einsum": lambda x: torch.einsum("bij,bkj->bik", x, x),
        "gather": lambda x: x.gather(2, torch.tensor([[[0, 1], [2, 3], [1, 1]], [[3, 0], [0, 0], [2, 1]]])),
        "index select": lambda x: x.index_select(1, torch.tensor([2, 0])),
        "index by a list": lambda x: x[:, [0, 2]],
        "scatter add": lambda x: torch.zeros(2, 3, 4).scatter_add(1, torch.zeros(2, 3, 4, dtype=torch.long), x),
        "one hot": lambda x: F.one_hot(torch.tensor([0, 2, 1]), 3).float() @ x,
        "stack and unbind": lambda x: torch.stack(x.unbind(1)[::-1], 0),
        "chunk": lambda x: x.chunk(2, -1)[1],
        "tile and repeat": lambda x: x.repeat(1, 2, 1).repeat_interleave(2, 0),
        "triangles": lambda x: x.tril() + x.triu(1),
        "powers": lambda x: x.abs() ** 0.7 + x**3 + x.abs().sqrt() + (x.abs() + 1).rsqrt(),
        "logs and exponents": lambda x: x.exp() + (x.abs() + 1).log() + x.abs().log1p() + x.expm1(),
        "trigonometry": lambda x: x.sin() + x.cos().atan() + x.tanh().asin() + x.sinh(),
        "rounding": lambda x: x.floor() + x.ceil() + x.round() + x.sign(),
        "remainder": lambda x: torch.remainder(x * 5, 2.0) + torch.floor_divide(x * 5, 2.0),
        "clamp": lambda x: x.clamp(-0.5, 0.25),
        "logical": lambda x: torch.logical_or((x > 0) & ~(x > 1), x < -1).float(),
        "log sum exp": lambda x: x.logsumexp(-1),
        "broadcast": lambda x: x + x[:, :1] * x[..., 2:3],
        "strided": lambda x: x[:, ::2, 1::2],
        "meshgrid": lambda x: sum(torch.meshgrid(x[0, 0], x[1, 1], indexing="ij")),
        "outer": lambda x: torch.outer(x[0, 0], x[1, 2]),
        "batch product": lambda x: torch.bmm(x, x.transpose(1, 2)),
        "add product": lambda x: torch.addmm(x[0], torch.ones(3, 2), torch.ones(2, 4)),
    }
    zoo: Zoo = {name: (Do(function), (x,)) for name, function in simple.items()}
    activations = (
        *(nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.ELU(), nn.SELU(), nn.Hardswish()),
        *(nn.Hardsigmoid(), nn.Softplus(), nn.Softsign(), nn.LeakyReLU(0.2), nn.PReLU(3), nn.ReLU6(), nn.GLU()),
        *(nn.LogSoftmax(-1), nn.Softmax(1), nn.Hardtanh(), nn.Tanhshrink(), nn.Softmin(-1)),
    )
    zoo.update({str(layer): (layer, (x,)) for layer in activations})
    return zoo


def layers() -> Zoo:
    x = normal(2, 5, 8)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return {
        "layer norm": (nn.LayerNorm(8), (x,)),
        "rms norm": (Do(lambda x: x * (x * x).mean(-1, keepdim=True).add(1e-6).rsqrt()), (x,)),
        "group norm": (nn.GroupNorm(2, 4), (image(4),)),
        "batch norm": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (image(),)),
        "instance norm": (nn.InstanceNorm2d(3, affine=True), (image(),)),
        "local response norm": (nn.LocalResponseNorm(3), (image(4),)),
        "self-attention": (Do(lambda x, a: a(x, x, x)[0], nn.MultiheadAttention(8, 2, batch_first=True)), (x,)),
        "transformer layer": (Do(lambda x, e: e(x), encoder), (x,)),
        "attention, causal": (
            Do(lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True)),
            (normal(1, 2, 5, 8),),
        ),
        "embedding bag": (Do(lambda i, e: e(i).mean(1), nn.Embedding(20, 8)), (whole(20, 2, 4),)),
        "cosine similarity": (nn.CosineSimilarity(-1), (x, x.flip(0))),
        "distance": (Do(lambda a, b: (a[:, :, None] - b[:, None]).norm(dim=-1)), (x, x.flip(0))),
        "residual network block": (
            Do(
                lambda x, a, b: F.relu(x + b(F.relu(a(x)))),
                nn.Conv2d(3, 3, 3, padding=1),
                nn.Conv2d(3, 3, 3, padding=1),
            ),
            (image(),),
        ),
        "squeeze and excite": (
            Do(
                lambda x, a, b: x * torch.sigmoid(b(F.relu(a(x.mean((2, 3)))))).view(1, 4, 1, 1),
                nn.Linear(4, 2),
                nn.Linear(2, 4),
            ),
            (image(4),),
        ),
    }


def zoo() -> Zoo:
    """All modules, in the same order and with the same weights at each call."""
    torch.manual_seed(0)
    return {**sequences(), **images(), **tensors(), **layers()}
