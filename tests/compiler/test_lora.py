"""`--lora` from the command line to the bundle: recorded, told, compared with the same adapters, and part of a build's key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from decoder_folders import save_model
from peft_adapters import save_adapter

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.sbom import sbom
from pocketphi.compiler.api import verify
from pocketphi.compiler.build_file import read_build_file
from pocketphi.compiler.build_key import SourceDigests, bundle_key
from pocketphi.compiler.cli import main
from pocketphi.compiler.diff import changes
from pocketphi.compiler.options import compile_options
from pocketphi.graph.errors import InputError
from pocketphi.graph.lora.named import CONFIG, Lora


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two adapters, and a bundle of all three."""
    folder = tmp_path_factory.mktemp("lora")
    base = save_model(folder / "base", "LlamaForCausalLM", vocab_size=256, pad_token_id=0)
    save_adapter(base, folder / "fr", seed=1, target_modules=["q_proj", "lm_head"], use_dora=True)
    save_adapter(base, folder / "tone", seed=2, target_modules=["down_proj", "q_proj"])
    lora = ["--lora", str(folder / "fr"), "--lora", f"{folder / 'tone'}=0.5"]
    assert main(["compile", str(base), "-o", str(folder / "b"), "--recipe", "rtn", "--verify", "always", *lora]) == 0
    return folder


def test_the_bundle_tells(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = Bundle.open(work / "b")
    assert [(one.name, one.weight) for one in bundle.manifest.source.adapters] == [("fr", 1.0), ("tone", 0.5)]
    checks = {check.name: check for check in bundle.manifest.checks}
    assert checks["rows that are not the base's with its adapters"].ok
    assert checks["rows that safetensors reads otherwise"].ok
    assert main(["inspect", str(work / "b")]) == 0
    assert "tone, weight 0.5" in capsys.readouterr().out
    parts = {one["bom-ref"]: one["name"] for one in json.loads(sbom(bundle))["components"]}
    assert {"adapter:1": "fr", "adapter:2": "tone"}.items() <= parts.items()


def test_the_reference_has_the_same_adapters(work: Path) -> None:
    base, fr, tone = str(work / "base"), str(work / "fr"), str(work / "tone")
    found = verify(work / "b", base, lora=[fr, f"{tone}=0.5"])
    assert found.ok
    assert found.reference is not None
    with pytest.raises(
        InputError, match=r"was made with fr=1, tone=0.5; name each with --lora, in this order, with its"
    ):
        verify(work / "b", base)
    for other in ([fr], [fr, tone], [f"{tone}=0.5", fr]):
        with pytest.raises(
            InputError, match=r"made with fr=1, tone=0.5, from other files, with other weights, or in ano"
        ):
            verify(work / "b", base, lora=other)
    assert main(["eval", str(work / "b"), "--lora", fr]) == 2


def test_what_differs_from_a_bundle_without(work: Path) -> None:
    plain = ["compile", str(work / "base"), "-o", str(work / "plain"), "--recipe", "rtn", "--verify", "never"]
    assert main(plain) == 0
    found = changes(Bundle.open(work / "plain").manifest, Bundle.open(work / "b").manifest)
    told = [change.described() for change in found if change.kind == "adapter"]
    assert [line.partition(": ")[2] for line in told] == ["none → weight 1", "none → weight 0.5"]
    assert "model.onnx.data: other contents" in [change.described() for change in found]
    assert "adapters" not in (work / "plain" / "manifest.json").read_text()


def test_a_build_is_made_anew_where_an_adapter_changed(work: Path) -> None:
    (work / "pocketphi.toml").write_text('[models]\nm = "base"\n[recipes.rtn]\nlora = ["fr", "tone=0.5"]\n')
    (cell,) = read_build_file(work / "pocketphi.toml").cells
    assert cell.options.lora == (Lora(work / "fr"), Lora(work / "tone", 0.5))
    key = bundle_key(cell.options, SourceDigests())
    text = (work / "tone" / CONFIG).read_text()
    (work / "tone" / CONFIG).write_text(text.replace('"lora_alpha": 6', '"lora_alpha": 7'))
    assert bundle_key(cell.options, SourceDigests()) != key
    (work / "tone" / CONFIG).write_text(text)
    assert bundle_key(cell.options, SourceDigests()) == key
    for lora in ([], [work / "fr"], [work / "tone", work / "fr"], [work / "fr", work / "tone"]):
        other = compile_options(str(work / "base"), work / "o", lora=lora, recipe="rtn")
        assert bundle_key(other, SourceDigests()) != key


def test_refused_in_one_line(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", str(work / "base"), "-o", str(work / "x"), "--lora", str(work / "base")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["compile", str(work / "fr"), "-o", str(work / "x")]) == 2
    assert "this is an adapter: compile its base model, with --lora" in capsys.readouterr().err
    assert not (work / "x").exists()
