"""model.json of a bundle: what it says of its weights fits together, or is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("tvm")
sys.path.insert(0, str(Path(__file__).parents[3]))

from pocketphi.graph.errors import InputError
from pocketphi.graph.lazy_weights import materialize
from pocketphi.targets.tvm_arm.description import DESCRIPTION, PARAMS_FILE, read_description
from pocketphi.targets.tvm_arm.params import read_weights
from tests.fuzz import seeds


def test_a_good_one_gives_every_weight() -> None:
    folder = seeds.parameters()
    described = read_description(folder)
    shapes = {name: materialize(weight) for name, weight in read_weights(folder, described).items()}
    assert {name for name, parts in shapes.items() if "q" in parts} == set(described.matrices)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.0.mlp.down_proj.weight", "model.embed_tokens.weight"])
def test_a_matrix_that_is_not_listed(name: str, tmp_path: Path) -> None:
    data = json.loads((seeds.parameters() / DESCRIPTION).read_text())
    del data["matrices"][name]
    (tmp_path / DESCRIPTION).write_text(json.dumps(data))
    (tmp_path / PARAMS_FILE).write_bytes((seeds.parameters() / PARAMS_FILE).read_bytes())
    with pytest.raises(
        InputError, match=f"params: '{name}' has parts of different lengths, and is not one of the matr"
    ):
        read_description(tmp_path)
