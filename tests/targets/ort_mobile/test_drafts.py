"""Bundles for which onnxruntime-genai guesses tokens: the logits by which it checks them, and what it makes of these."""

from __future__ import annotations

import json
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
from tiny_phi3 import SWITCH

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.bench import bench
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import InputError
from pocketphi.targets import guessing
from pocketphi.targets.base import Runner
from pocketphi.targets.guessing import DraftModel, Guessing
from pocketphi.targets.ort_mobile.host import OrtHost, OrtRunner
from pocketphi.targets.ort_mobile.options import CHECKED

GUESSED = "KL of the tokens that check guesses"
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


def test_a_draft_model_beside_it(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    """As docs/ort-mobile.md says: its own weights are always right."""
    drafts, plain = bundles
    folder = tmp_path / "both"
    shutil.copytree(drafts, folder)
    shutil.copytree(plain, folder / "draft")
    settings, other = (json.loads((one / "genai_config.json").read_text()) for one in (folder, folder / "draft"))
    settings["model"]["draft"] = {**other["model"]["decoder"], "filename": "draft/model.onnx"}
    settings["speculative"] = {"max_draft_tokens": 4}
    (folder / "genai_config.json").write_text(json.dumps(settings))
    got, counted = answer(folder, None)
    assert got == answer(plain, None)[0]
    assert counted["acceptance_rate"] == 1
    assert counted["target_forward_passes"] <= 21
    shutil.copy(plain / "model.onnx", folder)  # the logits of the last token alone: checked one by one
    assert answer(folder, None)[0] == got


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
