"""Bundles for which onnxruntime-genai guesses tokens: the logits by which it checks them, and what it makes of these."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

pytest.importorskip("onnxruntime_genai")
import hf_folders
import onnxruntime_genai as genai
from tiny_phi3 import SWITCH, TINY

from pocketphi.artifacts.bundle import Bundle, write_manifest
from pocketphi.compiler.bench import bench
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.files_check import files_check
from pocketphi.compiler.footprint import bundle_footprint
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.plan import plan
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import InputError
from pocketphi.targets import guessing
from pocketphi.targets.base import Runner
from pocketphi.targets.draft_bundle import check_tokens
from pocketphi.targets.guessing import DraftModel, Guessing
from pocketphi.targets.ort_mobile.draft import copy, draft_size, fitting_draft
from pocketphi.targets.ort_mobile.host import OrtHost, OrtRunner
from pocketphi.targets.ort_mobile.options import CHECKED

GUESSED = "KL of the tokens that check guesses"
DRAFT_LOGITS = "logits of the draft model that are no numbers, or too many"
OFF = {"ngram_size": 0, "ngram_chained_lookup": False, "min_adaptive_k": 0, "cooldown": False}
TEXT = [(5, 11, 17, 23, 40)[i % 5] for i in range(150)]
"""Longer than what goes through at once."""


def compiled(out: Path, verify: str = "never", model: str = "random:tiny", **options: Any) -> Bundle:
    return compile_model(compile_options(model, out, ("ort-mobile",), recipe="rtn", verify=verify, **options))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """With the logits that check guesses, and without."""
    folder = tmp_path_factory.mktemp("drafts")
    verification = compiled(folder / "drafts", "always", drafts=True).manifest.verification
    assert verification
    assert [check.detail for check in verification.checks if check.name == GUESSED] == ["17 of 65 tokens"]
    return folder / "drafts", compiled(folder / "plain").path


def answer(folder: Path, options: dict[str, Any] | None, prompt: list[int] = TEXT) -> tuple[list[int], dict[str, Any]]:
    """100 greedy tokens, and what was counted."""
    parameters = genai.GeneratorParams(genai.Model(str(folder)))
    parameters.set_search_options(max_length=256, do_sample=False)
    if options:
        parameters.set_speculative_options(**options)
    generator = genai.Generator(genai.Model(str(folder)), parameters)
    generator.append_tokens(np.array([prompt], np.int32))
    while not generator.is_done() and generator.token_count() < len(prompt) + 100:
        generator.generate_next_token()
    return generator.get_sequence(0)[len(prompt) :].tolist(), generator.get_speculative_stats()


def test_tokens_are_the_same_with_fewer_calls(bundles: tuple[Path, Path]) -> None:
    drafts, plain = bundles
    wanted, _ = answer(plain, None)
    assert answer(drafts, OFF)[0] == wanted
    got, counted = answer(drafts, None)  # as its genai_config.json says
    assert got == wanted
    assert counted["draft_tokens_accepted"] > 0
    assert answer(drafts, None, TEXT[:9])[0] == answer(plain, None, TEXT[:9])[0]


def test_without_them_it_refuses_to_guess(bundles: tuple[Path, Path]) -> None:
    message = "N-gram decoding requires target logits for every verified token; pruned last-token-only logits are not supported"
    with pytest.raises(RuntimeError, match=message):
        answer(bundles[1], {"ngram_size": 3})


@pytest.fixture(scope="module")
def with_model(bundles: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A draft model whose guesses are always right: the model itself."""
    out = tmp_path_factory.mktemp("model") / "bundle"
    return compiled(out, "always", draft=bundles[1]).path


def test_a_draft_model(bundles: tuple[Path, Path], with_model: Path, tmp_path: Path) -> None:
    plain, manifest = bundles[1], Bundle.open(with_model).manifest
    wanted = answer(plain, None)[0]
    got, counted = answer(with_model, None)
    assert got == wanted
    assert counted["acceptance_rate"] == 1
    assert counted["target_forward_passes"] <= 21
    held = [name for name in manifest.files if name.startswith("draft/")]
    assert {name: manifest.files[name].sha256 for name in held} == {
        f"draft/{name}": Bundle.open(plain).manifest.files[name].sha256
        for name in ("config.json", "genai_config.json", "model.onnx", "model.onnx.data")
    }
    runner = OrtHost(with_model).talker(256)  # with the model in the bundle, which is too large to be worth its time
    assert isinstance(runner, Guessing)
    assert said(runner) == said(OrtHost(with_model).talker(256, draft="none"))
    shutil.copytree(with_model, tmp_path / "last")
    shutil.copy(plain / "model.onnx", tmp_path / "last")  # the logits of the last token alone: checked one by one
    assert answer(tmp_path / "last", None)[0] == wanted


def test_what_a_draft_model_takes(bundles: tuple[Path, Path], with_model: Path) -> None:
    """Its files and its cache, in the plan, in what the bundle says, and in what a budget counts."""
    plain, both = (Bundle.open(path) for path in (bundles[0], with_model))
    size = sum(both.manifest.files[name].bytes for name in both.manifest.files if name.startswith("draft/"))
    more = size + 256 * 768
    assert both.manifest.targets["ort-mobile"].details["draft"] == {"bytes": size, "kv_per_token": 768}
    assert bundle_footprint(both, "ort-mobile").fixed - bundle_footprint(plain, "ort-mobile").fixed == more
    asked = [
        compile_options("random:tiny", Path("-"), ("ort-mobile",), recipe="rtn", **given)
        for given in ({"drafts": True}, {"draft": bundles[1]})
    ]
    plans = [plan(options) for options in asked]
    assert plans[1].artifact - plans[0].artifact == size
    assert asked[1].of("ort-mobile").deciding()["draft"] == (bundles[1] / "manifest.json").read_bytes()


def test_files_of_a_draft_model_that_are_others(bundles: tuple[Path, Path], with_model: Path, tmp_path: Path) -> None:
    """By the manifest, and where that says the same: a setting, a graph without numbers, a file that none has."""
    folder = tmp_path / "bundle"
    shutil.copytree(with_model, folder)
    manifest, settings = Bundle.open(folder).manifest, (folder / "draft/genai_config.json").read_text()
    (folder / "draft/genai_config.json").write_text(settings.replace('"head_size": 16', '"head_size": 32'))
    with pytest.raises(InputError, match=r"draft/genai_config.json: content differs from its SHA-256"):
        Bundle.open(folder)
    found = {check.name: check for check in OrtHost(folder).own_checks(torch.tensor([TEXT]))}
    odd = found["settings of genai_config.json that are not the model's"]
    assert (odd.ok, odd.detail) == (False, "model.decoder.head_size is 32, expected 16")
    (folder / "draft/genai_config.json").write_text(settings)
    settings = (folder / "genai_config.json").read_text()
    (folder / "genai_config.json").write_text(settings.replace('"filename": "draft/model.onnx"', '"filename": "x"'))
    odd = {check.name: check for check in OrtHost(folder).own_checks(torch.tensor([TEXT]))}[odd.name]
    assert odd.detail == "model.draft.filename is 'x', expected 'draft/model.onnx'"
    (folder / "genai_config.json").write_text(settings)
    data = folder / "draft/model.onnx.data"
    data.write_bytes(b"\xff" * data.stat().st_size)
    odd = {check.name: check for check in OrtHost(folder).own_checks(torch.tensor([TEXT]))}[DRAFT_LOGITS]
    assert not odd.ok
    (folder / "draft/more").write_text("")
    written = write_manifest(folder, manifest)
    assert files_check(folder, written, [OrtHost(folder)]).detail == "first draft/more"


def test_a_draft_model_is_hashed_once_and_looked_at_again_when_it_is_copied(
    bundles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget plans many bundles; and what changes meanwhile is in none."""
    small = tmp_path / "small"
    shutil.copytree(bundles[1], small)
    looked: list[Path] = []
    real = Bundle._check_files
    monkeypatch.setattr(Bundle, "_check_files", lambda bundle: (looked.append(bundle.path), real(bundle))[1])
    manifest = (small / "manifest.json").read_bytes()
    made = [fitting_draft(small, manifest, TINY, None, 256) for _ in range(3)]
    assert looked == [small]
    (tmp_path / "out").mkdir()
    data = (small / "model.onnx.data").read_bytes()
    (small / "model.onnx.data").write_bytes(data[:-1] + b"x")
    with pytest.raises(InputError, match="content differs from its SHA-256 in the manifest"):
        copy(made[0], tmp_path / "out")
    shutil.rmtree(small)
    shutil.copytree(bundles[0], small)
    with pytest.raises(InputError, match=r"--draft .*small: was replaced while this compiled; compile again"):
        copy(made[0], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert draft_size(small).kv_per_token == 768


def test_models_that_cannot_guess(bundles: tuple[Path, Path], with_model: Path, tmp_path: Path) -> None:
    """Nothing is written."""
    (tmp_path / "model").mkdir()
    changing = hf_folders.save(tmp_path / "model", hf_folders.tensors("longrope"), "longrope")
    made = {
        "windowed": compiled(tmp_path / "windowed", windowed_cache=True),
        "short": compiled(tmp_path / "short", context=100),
        "changing": compiled(tmp_path / "changing", model=str(changing)),
        "core": compile_model(
            compile_options("random:tiny", tmp_path / "core", ("coreml",), recipe="rtn", verify="never")
        ),
    }
    (tmp_path / "empty").mkdir()
    shutil.copytree(bundles[1], tmp_path / "damaged")
    with (tmp_path / "damaged/model.onnx.data").open("r+b") as file:
        file.write(b"xxxx")
    short = (
        "holds 100 tokens, the model 256; onnxruntime-genai guesses to the end: compile the model with --context 100"
    )
    change = "changes LongRoPE's factors after 64 tokens, where guesses cannot be taken back"
    refused = {
        with_model: "has a draft model of its own; name that one's bundle, or one without",
        made["windowed"].path: "has a windowed cache, which forgets no guesses; compile it without that",
        made["short"].path: short,
        made["changing"].path: f"{change}; compile the model with --context 64",
        made["core"].path: "holds coreml; compile it with --target ort-mobile",
        tmp_path / "empty": "not a bundle: it has no manifest.json",
        tmp_path / "damaged": "content differs from its SHA-256 in the manifest",
    }
    for path, message in refused.items():
        with pytest.raises(InputError, match=re.escape(message)):
            compiled(tmp_path / "out", draft=path)
    with pytest.raises(InputError, match=r"--draft .*: has another tokenizer than the model \(256 tokens, and 300\)"):
        check_tokens(Bundle.open(bundles[1]), 300, None, "the model")
    with pytest.raises(InputError, match="has another tokenizer than the model"):
        check_tokens(Bundle.open(bundles[1]), TINY.vocab_size, "another", "the model")
    assert not (tmp_path / "out").exists()


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is guessed follows from the tokens alone."""
    monkeypatch.setattr(guessing, "time", SimpleNamespace(perf_counter=lambda: 0.0))


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where no rounding of activations gives a token that is read with others slightly other logits: by name, with the logits
    that check guesses, without, and of a model whose factors change within the text."""
    folder = tmp_path_factory.mktemp("exact")
    (folder / "model").mkdir()
    changing = hf_folders.save(folder / "model", hf_folders.tensors("longrope"), "longrope")
    made = {
        "drafts": compiled(folder / "drafts", drafts=True, accuracy_level=0),
        "plain": compiled(folder / "plain", accuracy_level=0),
        "other": compiled(folder / "other", "never", "random:tiny@1"),
        "changing": compiled(folder / "changing", "never", str(changing), drafts=True, accuracy_level=0),
    }
    return {name: bundle.path for name, bundle in made.items()}


def test_by_onnxruntime_alone(exact: dict[str, Path]) -> None:
    """With guesses from the text, from a model that is always right, from one that is not, in several turns."""
    host = OrtHost(exact["drafts"])
    plain = said(host.talker(256, draft="none"))
    assert plain == said(OrtHost(exact["plain"]).talker(256))  # a bundle that cannot check them guesses none
    both = host.talker(256, draft=exact["plain"])  # of the same size: not worth its time
    right, wrong = (
        Guessing(OrtRunner(exact["drafts"], 256), DraftModel(OrtRunner(exact[name], 256), 256), 0.05)
        for name in ("plain", "other")
    )
    for runner, most in ((host.talker(256), 80), (both, 80), (right, 20), (wrong, 80)):
        assert isinstance(runner, Guessing)
        for _ in range(2):
            runner.calls = 0
            assert said(runner) == plain
            runner.reset()
        assert runner.calls <= most  # of 92


def test_by_onnxruntime_where_factors_change(exact: dict[str, Path]) -> None:
    """No guess is on both sides of it."""
    plain = said(OrtRunner(exact["changing"], 120), [(TEXT[:12], 100)])
    for draft, most in (("changing", 20), ("drafts", 100)):
        runner = Guessing(OrtRunner(exact["changing"], 120), DraftModel(OrtRunner(exact[draft], 120), 120), 0.05)
        assert said(runner, [(TEXT[:12], 100)]) == plain
        assert runner.calls <= most


def test_guesses_that_are_taken_back_across_the_change(exact: dict[str, Path]) -> None:
    """The cache is as if they had never been read."""
    runner = OrtRunner(exact["changing"], 120)
    wanted = OrtRunner(exact["changing"], 120)
    tokens = torch.tensor([TEXT[:SWITCH]])
    wanted.step(tokens[:, :-2])
    runner.step(tokens)
    runner.step(torch.tensor([[9, 10, 11]]))
    runner.forget(5)
    size = float(wanted.step(tokens[:, -2:-1]).abs().max())
    runner.step(tokens[:, -2:-1])
    came, expected = (one.step(tokens[:, -1:]) for one in (runner, wanted))
    torch.testing.assert_close(came, expected, rtol=0, atol=1e-5 * size)


def said(runner: Runner, turns: Sequence[tuple[list[int], int]] = ((TEXT, 40), ([7, 7], 50))) -> list[int]:
    """Greedy tokens after each of these texts."""
    made = []
    for text, count in turns:
        logits = runner.step(torch.tensor([text]))
        for _ in range(count):
            made.append(int(logits[0, -1].argmax()))
            logits = runner.step(torch.tensor([made[-1:]]))
    return made


def test_a_windowed_draft_model_is_refused(exact: dict[str, Path], tmp_path: Path) -> None:
    """And by `bench` and `chat`, a bundle that gives the logits of its last token alone."""
    windowed = compiled(tmp_path / "windowed", "never", windowed_cache=True)
    with pytest.raises(
        InputError, match=r"--draft .*windowed: has a windowed cache, which forgets no guesses; compile it"
    ):
        OrtHost(exact["drafts"]).talker(120, draft=windowed.path)
    for draft in ("auto", exact["drafts"]):
        message = f"--draft {draft}: {exact['plain']} was compiled without --drafts; leave it out"
        with pytest.raises(InputError, match=re.escape(message)):
            bench(exact["plain"], [1], 8, 4, 1, Ui(), draft=draft)


def test_rows_of_a_batch_have_theirs(bundles: tuple[Path, Path]) -> None:
    """Of each row's last real tokens, also where padding follows them."""
    tokens = torch.randint(3, 250, (2, 40), generator=torch.Generator().manual_seed(2)).numpy()
    mask = np.ones((2, 40), np.int64)
    mask[1, 12:] = 0
    made = []
    for folder in bundles:
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        feeds = {"input_ids": tokens, "attention_mask": mask, "position_ids": np.arange(40)[None].repeat(2, 0)}
        empty = {
            one.name: np.zeros((2, one.shape[1], 0, one.shape[3]), np.float32)
            for one in session.get_inputs()
            if one.name.startswith("past")
        }
        named = {one.name for one in session.get_inputs()}
        made.append(session.run(["logits"], {k: v for k, v in (feeds | empty).items() if k in named})[0])
    drafts, plain = made
    assert drafts.shape == (2, 40, 256)
    assert [int(row.any(-1).sum()) for row in drafts] == [CHECKED, 12]
    for row, last in enumerate((39, 11)):
        np.testing.assert_allclose(drafts[row, last], plain[row, 0], rtol=0, atol=1e-5 * np.abs(plain[row]).max())


def test_a_graph_that_gives_fewer_is_seen(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "fewer"
    shutil.copytree(bundles[0], folder)
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    for one in graph.graph.initializer:
        if one.name == "checked_most":
            one.CopyFrom(onnx.numpy_helper.from_array(np.array([5]), one.name))
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    prompt = torch.arange(3, 60)[None]
    found = {check.name: check.ok for check in OrtHost(folder).own_checks(prompt)}
    right = {check.name: check.ok for check in OrtHost(bundles[0]).own_checks(prompt)}
    assert (found.pop(GUESSED), right.pop(GUESSED)) == (False, True)
    assert found == right


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"all_logits": True},
            "--drafts gives the logits of the last tokens, --all-logits those of all; leave one out",
        ),
        ({"windowed_cache": True}, "--drafts: onnxruntime-genai takes guesses back, which --windowed-cache cannot"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compiled(tmp_path / "b", drafts=True, **options)
