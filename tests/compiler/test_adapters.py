"""`--adapter` from the command line to the runtimes: the base is to the bit what it is without, each adapter gives what PEFT
gives, and what was changed, exchanged or left out is seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import onnxruntime_genai
import pytest
import torch
from decoder_folders import save_model
from peft import PeftModel
from peft_adapters import load_saved, save_adapter

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.sbom import sbom
from pocketphi.compiler.api import verify
from pocketphi.compiler.build_file import read_build_file
from pocketphi.compiler.build_key import SourceDigests, bundle_key
from pocketphi.compiler.cli import main
from pocketphi.compiler.diff import changes
from pocketphi.compiler.footprint import bundle_footprint
from pocketphi.compiler.hosts import open_host
from pocketphi.compiler.options import compile_options
from pocketphi.graph.errors import InputError, PocketphiError
from pocketphi.graph.lora.named import CONFIG, Lora, NamedLora
from pocketphi.targets.base import switch
from tests.compiler.test_resealed import resealed

TEXT = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two adapters of different ranks, a verified bundle with them, and one of the base alone."""
    folder = tmp_path_factory.mktemp("adapters")
    base = save_model(folder / "base", "Phi3ForCausalLM", vocab_size=256, pad_token_id=0, eos_token_id=2)
    ranks = {"qkv_proj": 2, "o_proj": 7}
    save_adapter(base, folder / "fr", seed=1, target_modules="all-linear", rank_pattern=ranks)
    save_adapter(base, folder / "tone", seed=2, target_modules=["down_proj"], r=9, use_rslora=True)
    compile_ = ["compile", str(base), "--recipe", "rtn", "--format", "int8"]
    named = ["--adapter", f"fr={folder / 'fr'}", "--adapter", f"tone={folder / 'tone'}=0.5"]
    assert main([*compile_, "-o", str(folder / "b"), "--verify", "always", *named]) == 0
    assert main([*compile_, "-o", str(folder / "plain"), "--verify", "never"]) == 0
    return folder


def test_the_base_is_to_the_bit_what_it_is_without(work: Path) -> None:
    ours, plain = Bundle.open(work / "b"), Bundle.open(work / "plain")
    assert ours.manifest.targets["ort-mobile"].weights == plain.manifest.targets["ort-mobile"].weights
    assert ours.manifest.files["model.onnx.data"] == plain.manifest.files["model.onnx.data"]
    came, expected = (
        open_host(one.path, one.manifest).runner(60, every_position=True).step(TEXT) for one in (ours, plain)
    )
    assert torch.equal(came, expected)


def test_each_adapter_gives_what_peft_gives(work: Path) -> None:
    """PEFT on transformers' model with the weights that the files hold; computed in float32 on both sides."""
    bundle = Bundle.open(work / "b")
    host = open_host(bundle.path, bundle.manifest)
    model = PeftModel.from_pretrained(load_saved(work / "base", host), work / "fr", "fr")
    model.load_adapter(work / "tone", "tone")
    runner = host.runner(60, exact=True, every_position=True)
    with torch.no_grad():
        for name, weight in (("fr", 1.0), ("tone", 0.5)):
            model.set_adapter(name)
            for module in model.modules():
                if hasattr(module, "set_scale") and name in module.scaling:
                    module.set_scale(name, weight)
            expected = model.eval()(TEXT).logits
            switch(runner, name)
            tolerance = 2.0**-23 * 128 * 3 * float(expected.abs().max())  # ε for each of the sums of a layer
            assert float((runner.step(TEXT) - expected).abs().max()) <= tolerance
        with model.disable_adapter():
            assert float((model(TEXT).logits - expected).abs().max()) > 100 * tolerance


def test_an_app_switches_them_without_loading_again(work: Path) -> None:
    """As onnxruntime-genai and onnxruntime alone are used by their own documentation."""
    model = onnxruntime_genai.Model(str(work / "b"))
    adapters = onnxruntime_genai.Adapters(model)
    for name in ("fr", "tone"):
        adapters.load(str(work / "b" / "adapters" / f"{name}.onnx_adapter"), name)
    session = onnxruntime.InferenceSession(str(work / "b" / "model.onnx"), providers=["CPUExecutionProvider"])
    caches = {value.name: np.zeros((1, 2, 0, 16), np.float32) for value in session.get_inputs() if "past" in value.name}
    feeds = {"input_ids": TEXT.numpy(), "attention_mask": np.ones(TEXT.shape, np.int64), **caches}
    seen: dict[str | None, Any] = {}
    for name in (None, "fr", "tone", None, "fr"):
        parameters = onnxruntime_genai.GeneratorParams(model)
        parameters.set_search_options(max_length=60)
        generator = onnxruntime_genai.Generator(model, parameters)
        options, held = onnxruntime.RunOptions(), onnxruntime.LoraAdapter()
        if name:
            generator.set_active_adapter(adapters, name)
            held.Load(str(work / "b" / "adapters" / f"{name}.onnx_adapter"))
            options.add_active_adapter(held)
        generator.append_tokens(TEXT.numpy().astype(np.int32))
        came = np.array(generator.get_logits())[:, -1]
        assert np.array_equal(came, session.run(["logits"], feeds, options)[0][:, -1])
        assert np.array_equal(seen.setdefault(name, came), came)
    assert min(abs(seen[None] - seen[name]).max() for name in ("fr", "tone")) > 0.1
    assert abs(seen["fr"] - seen["tone"]).max() > 0.1


def test_the_same_adapter_is_the_same_file(work: Path, tmp_path: Path) -> None:
    again = ["compile", str(work / "base"), "-o", str(tmp_path / "b"), "--recipe", "rtn", "--verify", "never"]
    assert main([*again, "--adapter", f"other={work / 'tone'}=0.5"]) == 0
    one, two = work / "b" / "adapters" / "tone.onnx_adapter", tmp_path / "b" / "adapters" / "other.onnx_adapter"
    assert one.read_bytes() == two.read_bytes()  # whatever its name and the base's format are


def test_the_bundle_tells(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = Bundle.open(work / "b")
    fr, tone = bundle.manifest.adapters
    assert (fr.name, fr.weight, set(fr.ranks.values()), len(fr.ranks)) == ("fr", 1.0, {2, 4, 7}, 12)
    assert (tone.name, tone.weight, set(tone.ranks.values()), len(tone.ranks)) == ("tone", 0.5, {9}, 3)
    assert fr.bytes == 4 * 3 * (2 * (64 + 128) + 7 * 128 + 4 * (64 + 256) + 4 * (128 + 64))
    assert all(
        path.stat().st_size >= one.bytes for path, one in zip(sorted((work / "b/adapters").iterdir()), (fr, tone))
    )
    without = bundle_footprint(Bundle.open(work / "plain"), "ort-mobile")
    assert bundle_footprint(bundle, "ort-mobile").total() >= without.total() + fr.bytes + tone.bytes
    assert main(["inspect", str(work / "b")]) == 0
    said = capsys.readouterr().out
    assert "fr: ranks 2 to 7, 12 weights" in said
    assert "12 places for an adapter" in said
    parts = {one["bom-ref"]: one["name"] for one in json.loads(sbom(bundle))["components"]}
    assert {"switched:fr": "fr", "switched:tone": "tone"}.items() <= parts.items()
    told = [change.described() for change in changes(Bundle.open(work / "plain").manifest, bundle.manifest)]
    assert f"switched adapter tone {tone.values[:12]}: none → weight 0.5" in told
    assert main(["compile", str(work / "base"), "--dry-run", "--adapter", f"fr={work / 'fr'}"]) == 0
    assert "12 places for an adapter" in capsys.readouterr().out


def test_commands_take_one(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure = ["--tokens", "64", "--window", "64", "--json"]
    found = []
    for more in ([], ["--adapter", "fr"], ["--adapter", "tone"]):
        (work / "text").write_bytes(bytes(range(32, 96)) * 4)
        assert main(["eval", str(work / "b"), *measure, *more]) == 0
        found.append(json.loads(capsys.readouterr().out)["perplexity"])
    assert len(set(found)) == 3
    against = ["eval", str(work / "b"), *measure, "--adapter", "fr", "--reference", str(work / "base")]
    assert main([*against, "--lora", str(work / "fr")]) == 0
    assert json.loads(capsys.readouterr().out)["kl"] < 0.01
    assert main(against) == 2
    assert "the bundle runs with fr=1; name each with --lora, in this order" in capsys.readouterr().err
    assert main([*against, "--lora", str(work / "tone")]) == 2
    assert "the bundle runs with fr=1, from other files" in capsys.readouterr().err
    bench = ["bench", str(work / "b"), "--prompt-tokens", "8", "--generate", "4", "--rounds", "1", "--threads", "1"]
    assert main([*bench, "--adapter", "fr"]) == 0
    for command in (bench, ["chat", str(work / "b"), "--prompt", "hi"], ["eval", str(work / "b"), *measure]):
        capsys.readouterr()
        assert main([*command, "--adapter", "none"]) == 2
        told = capsys.readouterr().err
        assert told.endswith("--adapter none: there is no such adapter in the bundle; it holds fr, tone\n")


def exchanged(folder: Path) -> None:
    one, two = (folder / "adapters" / f"{name}.onnx_adapter" for name in ("fr", "tone"))
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)


def changed(folder: Path) -> None:
    path = folder / "adapters" / "fr.onnx_adapter"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # within a tensor
    path.write_bytes(content)


def cut(folder: Path) -> None:
    path = folder / "adapters" / "fr.onnx_adapter"
    path.write_bytes(path.read_bytes()[:-4096])


def left_out(folder: Path) -> None:
    (folder / "adapters" / "fr.onnx_adapter").unlink()


def unsaid(manifest: dict[str, Any]) -> None:
    del manifest["files"]["adapters/fr.onnx_adapter"]


def forgotten(manifest: dict[str, Any]) -> None:
    del manifest["adapters"][1]


DAMAGES: list[tuple[Callable[[Path], None], Callable[[dict[str, Any]], None], str]] = [
    (exchanged, lambda manifest: None, "adapters that are not as they were made: 2"),
    (changed, lambda manifest: None, "adapters that are not as they were made: 1"),
    (cut, lambda manifest: None, r"fr\.onnx_adapter: ONNX Runtime cannot run it"),
    (left_out, unsaid, r"fr\.onnx_adapter: missing from the bundle; copy or compile it again"),
    (lambda folder: None, forgotten, "saved graph is another one|passes|adapter|operations"),
]


@pytest.mark.parametrize(("damage", "words", "said"), DAMAGES)
def test_verify_sees_what_is_not_as_it_was_made(
    work: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    words: Callable[[dict[str, Any]], None],
    said: str,
) -> None:
    """Once in the files alone; and with every checksum of the manifest made to fit them."""
    folder = tmp_path / "b"
    shutil.copytree(work / "b", folder)
    damage(folder)
    if damage in (exchanged, changed, cut, left_out):
        with pytest.raises(InputError, match=r"fr\.onnx_adapter: (content differs|\d+ bytes|missing)"):
            verify(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    words(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    resealed(folder)
    with pytest.raises(PocketphiError, match=said):
        verify(folder).require()


def test_a_build_is_made_anew_where_an_adapter_changed(work: Path) -> None:
    (work / "pocketphi.toml").write_text('[models]\nm = "base"\n[recipes.rtn]\nadapter = ["fr=fr", "tone=tone=0.5"]\n')
    (cell,) = read_build_file(work / "pocketphi.toml").cells
    assert cell.options.adapter == (NamedLora("fr", Lora(work / "fr")), NamedLora("tone", Lora(work / "tone", 0.5)))
    key = bundle_key(cell.options, SourceDigests())
    text = (work / "tone" / CONFIG).read_text()
    (work / "tone" / CONFIG).write_text(text.replace('"lora_alpha": 6', '"lora_alpha": 7'))
    assert bundle_key(cell.options, SourceDigests()) != key
    (work / "tone" / CONFIG).write_text(text)
    assert bundle_key(cell.options, SourceDigests()) == key
    other = compile_options(str(work / "base"), work / "o", adapter=[f"fr={work / 'fr'}"], recipe="rtn")
    renamed = compile_options(str(work / "base"), work / "o", adapter=[f"de={work / 'fr'}"], recipe="rtn")
    assert bundle_key(other, SourceDigests()) != bundle_key(renamed, SourceDigests())


def test_refused_in_one_line(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An adapter of another shape, of modules that there are not, two of one name, a name that is none, a target that has no
    way to switch."""
    wide = save_model(
        tmp_path / "wide", "Phi3ForCausalLM", vocab_size=256, pad_token_id=0, hidden_size=128, eos_token_id=2
    )
    save_adapter(wide, tmp_path / "w", target_modules=["o_proj"])
    deep = save_model(
        tmp_path / "deep", "Phi3ForCausalLM", vocab_size=256, pad_token_id=0, num_hidden_layers=4, eos_token_id=2
    )
    save_adapter(deep, tmp_path / "d", target_modules=["o_proj"])
    fr, base = str(work / "fr"), str(work / "base")
    cases = [
        ([f"w={tmp_path / 'w'}"], [], "the adapter is for another model than"),
        ([f"d={tmp_path / 'd'}"], [], "which has other layers"),
        ([f"fr={fr}", f"FR={fr}"], [], "there are two adapters FR; give one of them another name"),
        ([f"a/b={fr}"], [], "'a/b' is no name of a file"),
        (
            [f"fr={fr}"],
            ["--target", "coreml"],
            "coreml cannot switch adapters; merge one with --lora, or compile for ort-",
        ),
        ([f"fr={base}"], [], "it is a model, not an adapter"),
    ]
    for adapters, more, said in cases:
        named = [word for one in adapters for word in ("--adapter", one)]
        capsys.readouterr()
        assert main(["compile", base, "-o", str(tmp_path / "x"), "--recipe", "rtn", *named, *more]) == 2
        told = capsys.readouterr().err
        assert said in told.splitlines()[-1], told
    assert not (tmp_path / "x").exists()
    assert main(["eval", base, "--adapter", "fr"]) == 2
    assert "is a model, not a bundle; --lora merges one into it" in capsys.readouterr().err
