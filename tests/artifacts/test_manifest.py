"""The manifest as a value: what is read is written again byte for byte, and fields without content are left out."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from manifests import RECIPE, a_manifest, manifest_json

from pocketphi.artifacts.manifest import Manifest, parse_manifest
from pocketphi.graph.errors import InputError

CHECKS = [
    {"name": "greedy tokens that differ", "measured": 0.0, "bound": 0, "ok": True, "detail": "4/4"},
    {"name": "KL prefill", "measured": 2.5e-13, "bound": 1e-06, "ok": True, "detail": "Δ"},
    {"name": "KL", "measured": float("nan"), "bound": 0.01, "ok": False, "detail": ""},
]
UNIT = {"fit": True, "limits": [], "slow": ["a"], "reported": []}
COREML = {"context": 64, "chunk": 16, "functions": ["prefill", "decode"], "compute_units": {"GPU": UNIT}}


def parsed(data: dict[str, Any]) -> Manifest:
    return parse_manifest(json.dumps(data).encode(), Path("b/manifest.json"))


@pytest.mark.parametrize(
    "data",
    [
        manifest_json(),
        manifest_json({"coreml": COREML, "ort-mobile": {"accuracy_level": 4}}),
        manifest_json(
            verification={"ok": False, "checks": CHECKS, "quantization_error": {"kl": 0.5, "top1": 1.0, "tokens": 9.0}}
        ),
        manifest_json(verification={"ok": None, "checks": [], "quantization_error": None, "reason": "no qemu here"}),
        manifest_json(source={"model": "m", "blake3": "0" * 64, "notices": ["a", "b"]}),
        manifest_json(sha256="0" * 64),
    ],
    ids=["plain", "targets", "verified", "not verified", "notices", "sealed"],
)
def test_what_is_read_is_written_again(data: dict[str, Any]) -> None:
    def ordered(entry: dict[str, Any]) -> dict[str, Any]:
        weights = entry.pop("weights")
        return {**entry, "weights": weights}

    data["targets"] = {name: ordered(dict(entry)) for name, entry in data["targets"].items()}
    assert json.dumps(parsed(data).as_json()) == json.dumps(data)


def checked(measured: float, ok: bool, whole: bool) -> dict[str, Any]:
    check = {"name": "KL", "measured": measured, "bound": 1e-6, "ok": ok, "detail": ""}
    return {"verification": {"ok": whole, "checks": [check], "quantization_error": None}}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"pocketphi": "new"}, "pocketphi is 'new', expected a version"),
        ({"versions": {"torch": ""}}, "versions.torch is '', expected a version"),
        ({"source": {"model": "m", "blake3": "zz"}}, "source.blake3 is 'zz', expected 64 lower-case hex digits"),
        (
            {"source": {"model": "m", "blake3": "0" * 64, "adapters": [{"name": "a", "blake3": "0", "weight": 1.0}]}},
            "source.adapters.0.blake3 is '0', expected 64 lower-case hex digits",
        ),
        ({"recipe": {"calibration": "text"}}, "recipe.calibration is 'text', expected 64 lower-case hex digits"),
        ({"recipe": {"calibration_tokens": 0}}, "recipe.calibration_tokens is 0, expected a positive number"),
        ({"recipe": {"expected": {"budget": "--bits 4", "kl": -1.0}}}, "recipe.expected.kl is -1.0, expected a number"),
        (checked(5.0, True, True), "verification.checks.0 is ok with 5.0 over 1e-06"),
        (checked(5.0, False, True), "verification.ok is true, though 'KL' failed"),
    ],
)
def test_words_that_say_nothing_are_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=re.escape(line)):
        a_manifest(**changes)


def test_fields_without_content_are_left_out() -> None:
    made = a_manifest()
    assert "sha256" not in made.as_json()
    assert "chunk" not in made.as_json()["targets"]["ort-mobile"]
    assert made.as_json()["verification"] is None
    assert replace(made, sha256="a").as_json()["sha256"] == "a"


def test_what_a_later_version_adds_is_passed_over() -> None:
    assert parsed(manifest_json() | {"new": {"a": 1}}) == a_manifest()


def test_what_was_recorded_of_the_text() -> None:
    data = manifest_json()
    text = {"vocabulary": "a", "ids": ["b", "c"], "chats": ["d"], "decoded": [], "genai_differs": [3]}
    files = data.pop("files")
    assert parsed({**data, "text": text, "files": files}).as_json()["text"] == text


@pytest.mark.parametrize(("ok", "verified"), [(True, True), (False, False), (None, False)])
def test_only_what_met_every_check_is_verified(ok: bool | None, verified: bool) -> None:
    assert a_manifest(verification={"ok": ok, "checks": [], "quantization_error": None}).verified is verified
    assert not a_manifest().verified


def test_a_targets_own_context_comes_first() -> None:
    made = a_manifest({"coreml": {"context": 64}, "ort-mobile": {}}, model={"context": 256})
    assert [made.context(name) for name in made.targets] == [64, 256]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "int4 rtn, block 32, symmetric"),
        ({"block": 0, "symmetric": False}, "int4 rtn, block row, asymmetric"),
        ({"palette": 16, "block": 64}, "int4 rtn, palettes of 16 rows"),
        ({"palette": 8, "embedding_bits": 8, "head_bits": 8}, "int4 rtn, palettes of 8 rows, int8 embedding and head"),
        ({"head_bits": 8}, "int4 rtn, block 32, symmetric, int8 head"),
    ],
)
def test_a_recipe_says_what_it_is(changes: dict[str, Any], expected: str) -> None:
    assert a_manifest(recipe={**RECIPE, **changes}).recipe.described() == expected


@pytest.mark.parametrize("field", ["pocketphi", "versions", "source", "recipe", "model", "verification", "files"])
def test_every_field_has_to_be_there(field: str) -> None:
    data = manifest_json()
    del data[field]
    with pytest.raises(InputError, match=rf"^b/manifest.json: damaged: {field}: field required$"):
        parsed(data)


@pytest.mark.parametrize("name", ["", "/", " ", "a b", "a\nb", "-", "x" * 5000])
def test_a_library_has_a_name(name: str) -> None:
    with pytest.raises(
        InputError, match=r"^b/manifest.json: damaged: versions: names '.{0,70}, which is no name of a lib"
    ):
        parsed(manifest_json() | {"versions": {"torch": "2.0", name: "1"}})
