"""Operators that resize, sample and cut images: against torch, and the examples of the operators' documentation."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from mil_kernels import close, run
from torch import Tensor
from torch.nn import functional

ALIGNED = (True, False)


def pixels(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_nearest_pixels_for_all_pairs_of_sizes() -> None:
    """Of each pair of sizes 1 … 128 the same pixels as torch: by size, and by the scale that coremltools makes of a size."""
    for size in range(1, 129):
        x = torch.arange(float(size)).view(1, 1, 1, size)
        for target in range(1, 129):
            expected = functional.interpolate(x, size=(1, target))
            came = run("resize_nearest_neighbor", x=x, target_size_height=1, target_size_width=target)
            assert torch.equal(came, expected), (size, target)
            scale = target / size if target % size == 0 else (target + 1e-4) / size
            came = run("upsample_nearest_neighbor", x=x, scale_factor_width=np.float32(scale))
            assert torch.equal(came, expected), (size, target)


@pytest.mark.parametrize("factor", [0.3, 0.5, 0.7, 1.1, 1.3, 1.5, 2, 2.3, 1 / 3, 3.7])
def test_nearest_pixels_by_a_factor(factor: float) -> None:
    for size in range(4, 100):
        x = torch.arange(float(size)).view(1, 1, 1, size).expand(1, 1, size, size)
        expected = functional.interpolate(x, scale_factor=factor)
        scale = np.float32(factor)
        came = run("upsample_nearest_neighbor", x=x, scale_factor_height=scale, scale_factor_width=scale)
        assert torch.equal(came, expected), size


@pytest.mark.parametrize("aligned", ALIGNED)
def test_bilinear_pixels_where_the_scale_carries_an_epsilon(aligned: bool) -> None:
    for size, target in ((16, 7), (7, 16), (28, 10), (10, 28), (1, 5), (5, 1), (160, 192)):
        x = pixels(1, 2, size, size)
        scale = np.float32((target + 1e-4) / size)
        came = run("upsample_bilinear", x=x, scale_factor_height=scale, scale_factor_width=scale, align_corners=aligned)
        close(came, functional.interpolate(x, size=(target, target), mode="bilinear", align_corners=aligned))


@pytest.mark.parametrize(("mode", "sampling"), [("nearest", "NEAREST_NEIGHBOR"), ("bilinear", "LINEAR")])
def test_resize_to_the_sizes_of_a_shape(mode: str, sampling: str) -> None:
    x = pixels(1, 2, 5, 6)
    options = {"align_corners": False} if mode == "bilinear" else {}
    expected = functional.interpolate(x, size=(7, 6), mode=mode, **options)
    points = "UNALIGN_CORNERS" if mode == "bilinear" else "DEFAULT"
    given = {"interpolation_mode": sampling, "sampling_mode": points, "resized_dims": 2}
    close(run("resize", x=x, shape=[1, 7, 0], **given), expected)
    with pytest.raises(ValueError, match="resizes 3 axes"):
        run("resize", x=x, shape=[7, 7], **given | {"resized_dims": 3})


MODES = {"zeros": "constant", "border": "border", "reflection": "reflection"}


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize(("padding", "aligned"), list(itertools.product(MODES, ALIGNED)))
def test_resample(padding: str, aligned: bool, mode: str) -> None:
    x, places = pixels(2, 3, 5, 6), pixels(2, 4, 7, 2) * 1.5
    expected = functional.grid_sample(x, places, mode, padding, aligned)
    name = "symmetric" if padding == "reflection" and not aligned else MODES[padding]
    given = {"sampling_mode": mode, "padding_mode": name, "padding_value": 0.0, "align_corners": aligned}
    close(run("resample", x=x, coordinates=places, coordinates_mode="normalized_minus_one_to_one", **given), expected)
    halves = (places + 1) / 2
    close(run("resample", x=x, coordinates=halves, coordinates_mode="normalized_zero_to_one", **given), expected)


def test_resample_at_pixels_and_outside() -> None:
    given = {"sampling_mode": "bilinear", "padding_mode": "constant", "padding_value": 5.0, "align_corners": True}
    places = [[[[1, 0], [0, 1]], [[9, 9], [-1, -1]]]]
    came = run("resample", x=[[[[1.0, 2], [3, 4]]]], coordinates=places, coordinates_mode="unnormalized", **given)
    assert came.tolist() == [[[[2, 3], [5, 5]]]]
    far = torch.tensor([[[[float("inf"), 0], [float("nan"), 0]]]])
    came = run("resample", x=[[[[1.0, 2], [3, 4]]]], coordinates=far, coordinates_mode="unnormalized", **given)
    assert came[0, 0, 0, 0] == 5


@pytest.mark.parametrize("aligned", ALIGNED)
def test_affine(aligned: bool) -> None:
    x, matrix = pixels(2, 3, 5, 6), torch.tensor([[0.8, 0.3, 0.1, -0.2, 0.9, 0.2]])
    grid = functional.affine_grid(matrix.view(1, 2, 3).expand(2, 2, 3), [2, 3, 4, 7], aligned)
    expected = functional.grid_sample(x, grid, align_corners=aligned)
    given = {"output_height": 4, "output_width": 7, "sampling_mode": "bilinear", "padding_mode": "constant"}
    given |= {"padding_value": 0.0, "coordinates_mode": "normalized_minus_one_to_one", "align_corners": aligned}
    close(run("affine", x=x, transform_matrix=matrix, **given), expected)


SQUARE = torch.arange(1.0, 17).view(1, 1, 4, 4)


@pytest.mark.parametrize(
    ("box", "target", "expected"),
    [  # what coremltools' own tests expect of a device
        ([1, 1, 2, 2], 2, [[6, 7], [10, 11]]),
        ([1, 1, 2, 2], 1, [[8.5]]),
        ([2, 2, 1, 1], 2, [[11, 10], [7, 6]]),
        (
            [1, 1, 2, 2],
            4,
            [[6 + c / 3 + r * 4 / 3 for c in range(4)] for r in range(4)],
        ),
    ],
)
def test_crop_resize(box: list[float], target: int, expected: Any) -> None:
    given = {"target_height": target, "target_width": target, "sampling_mode": "ALIGN_CORNERS"}
    close(run("crop_resize", x=SQUARE, boxes=[box], **given)[0, 0], torch.tensor(expected))
    roi = torch.tensor(box, dtype=torch.float32).view(1, 1, 4, 1, 1)
    assert run("crop_resize", x=SQUARE, roi=roi, **given).shape == (1, 1, 1, target, target)
    top, left, bottom, right = box
    centre = [(top + bottom) / 2, (left + right) / 2, bottom - top, right - left]
    made = run("crop_resize", x=SQUARE, boxes=[centre], box_coordinate_mode="CENTER_SIZE_HEIGHT_FIRST", **given)
    close(made[0, 0], torch.tensor(expected))


def test_crop_resize_of_one_image_of_several_and_outside() -> None:
    both = torch.cat([SQUARE, SQUARE + 100])
    roi = torch.tensor([1, 0, 0, 1 / 3, 1 / 3]).view(1, 1, 5, 1, 1)
    given = {"target_height": 2, "target_width": 2, "sampling_mode": "ALIGN_CORNERS"}
    made = run("crop_resize", x=both, roi=roi, normalized_coordinates=True, **given)
    close(made[0, 0, 0], torch.tensor([[101.0, 102], [105, 106]]))
    made = run("crop_resize", x=SQUARE, boxes=[[2, 2, 4, 4]], pad_value=-1.0, **given)
    assert made.tolist() == [[[[11, -1], [-1, -1]]]]
    with pytest.raises(ValueError, match="image 2 of 2"):
        run("crop_resize", x=both, boxes=[[0, 0, 1, 1]], box_indices=[2], **given)
    with pytest.raises(ValueError, match="either roi or boxes"):
        run("crop_resize", x=both, **given)


def blocks(x: Tensor) -> Tensor:
    """Channels in the order (row, column, C) of 2 × 2 blocks, as TensorFlow's space_to_depth has them."""
    return torch.cat([x[:, :, r::2, c::2] for r in (0, 1) for c in (0, 1)], dim=1)


def test_depth_and_batch_to_space() -> None:
    x = pixels(2, 3, 4, 6)
    close(run("space_to_depth", x=x, block_size=2), blocks(x))
    close(run("depth_to_space", x=blocks(x), block_size=2), x)
    parts = torch.cat([x[:, :, r::2, c::3] for r in range(2) for c in range(3)])
    close(run("space_to_batch", x=x, block_shape=[2, 3], paddings=[[0, 0], [0, 0]]), parts)
    close(run("batch_to_space", x=parts, block_shape=[2, 3], crops=[[1, 0], [0, 2]]), x[:, :, 1:, :-2])
    padded = run("space_to_batch", x=x, block_shape=[3, 2], paddings=[[2, 0], [0, 0]])
    assert padded.shape == (12, 3, 2, 3)
    assert padded[:2, :, 0].abs().max() == 0
    with pytest.raises(RuntimeError):
        run("space_to_depth", x=x, block_size=4)


def test_crop() -> None:
    x = pixels(1, 2, 5, 6)
    close(run("crop", x=x, crop_height=[1, 2], crop_width=[0, 3]), x[:, :, 1:3, :3])
    assert run("crop", x=x, crop_height=[2, 3], crop_width=[0, 0]).shape == (1, 2, 0, 6)
    for amounts in ([3, 3], [-1, 0]):
        with pytest.raises(ValueError, match="crops"):
            run("crop", x=x, crop_height=amounts, crop_width=[0, 0])


@pytest.mark.parametrize(("along", "batch"), [(0, 1), (1, 0), (2, 0), (0, 2)])
def test_reverse_sequence(along: int, batch: int) -> None:
    x = pixels(3, 4, 3)
    lengths = [3, 0, 2, 1][: x.shape[batch]]
    expected = x.movedim((batch, along), (0, 1)).clone()
    for row, length in zip(expected, lengths):
        row[:length] = row[:length].flip(0).clone()
    came = run("reverse_sequence", x=x, lengths=lengths, seq_axis=along, batch_axis=batch)
    close(came, expected.movedim((0, 1), (batch, along)))
    with pytest.raises(ValueError, match="lengths"):
        run("reverse_sequence", x=x, lengths=[9] * x.shape[batch], seq_axis=along, batch_axis=batch)
