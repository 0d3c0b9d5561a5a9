"""RandomWeights: any range of rows is the same rows of the whole; seeds and names differ."""

from __future__ import annotations

import pytest
import torch
from tiny_phi3 import TINY

from pocketphi.graph.errors import InputError
from pocketphi.graph.random_weights import PUBLISHED, RandomWeights


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.down_proj.weight"]
)
@pytest.mark.parametrize("cut", [(0, 64), (0, 1), (63, 64), (10, 50), (5, 5)])
def test_any_range_is_part_of_the_whole(name: str, cut: tuple[int, int]) -> None:
    source = RandomWeights("random:tiny")
    whole = source.read(name, 0, source.tensors[name].rows)
    assert whole.dtype == torch.bfloat16
    assert torch.equal(source.read(name, *cut), whole[slice(*cut)])


@pytest.mark.parametrize("cut", [(60, 70), (64, 128), (1, 256), (130, 256), (127, 129)])
def test_ranges_across_the_groups_that_share_a_seed(cut: tuple[int, int]) -> None:
    source = RandomWeights("random:tiny")
    whole = source.read("lm_head.weight", 0, 256)
    assert torch.equal(source.read("lm_head.weight", *cut), whole[slice(*cut)])
    assert len({tuple(row) for row in whole.tolist()}) == 256


def test_seeds_layers_and_names_differ() -> None:
    def first(spec: str, name: str) -> list[float]:
        return RandomWeights(spec).read(name, 0, 1)[0].tolist()

    name = "model.layers.{}.mlp.gate_up_proj.weight"
    rows = [
        first("random:tiny", name.format(0)),
        first("random:tiny", name.format(1)),
        first("random:tiny@7", name.format(0)),
    ]
    assert len({tuple(row) for row in rows}) == 3
    assert first("random:tiny@0", name.format(0)) == rows[0]


def test_sizes_keep_activations_in_place() -> None:
    """Matrices have variance 1/K, norms are near one: four standard errors of 16,384 and 64 values."""
    source = RandomWeights("random:tiny")
    matrix = source.read("lm_head.weight", 0, 256).float()
    assert abs(float(matrix.var()) * 64 - 1) < 4 * (2 / matrix.numel()) ** 0.5
    norm = source.read("model.norm.weight", 0, 64).float()
    assert abs(float(norm.mean()) - 1) < 4 * 0.1 / 8
    assert 0.1 * (1 - 4 / 128**0.5) < float(norm.std()) < 0.1 * (1 + 4 / 128**0.5)


def test_a_shape_of_ones_own() -> None:
    assert RandomWeights("random:mine", TINY).config is TINY


def test_refuses() -> None:
    with pytest.raises(InputError, match=r"random:phi-9: unknown shape 'phi-9'; expected one of phi-3-mini-4k, .*tiny"):
        RandomWeights("random:phi-9")
    with pytest.raises(InputError, match=r"random:tiny@x: the seed 'x' is not a whole number"):
        RandomWeights("random:tiny@x")


@pytest.mark.parametrize(
    ("name", "parameters"), [("phi-3-mini-4k", 3.8e9), ("phi-3-medium-4k", 14.0e9), ("phi-4-mini", 3.8e9)]
)
def test_published_shapes_have_their_published_size(name: str, parameters: float) -> None:
    assert abs(PUBLISHED[name].parameters - parameters) < 0.05e9
