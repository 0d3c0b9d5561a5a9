"""A suite on a bundle, with the float model as its reference, by the command; and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from letters_bundle import letters_bundle

from pocketphi.artifacts.bundle import Bundle, write_manifest
from pocketphi.compiler.cli import main
from pocketphi.compiler.suite.found import Found, SuiteResult, figures_of
from pocketphi.compiler.suite.items import read_suite
from pocketphi.compiler.suite.run import evaluate_suite
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import InputError
from tests.compiler.suite.conftest import LINES


@pytest.fixture(scope="module")
def noted() -> list[Found]:
    return []


@pytest.fixture(scope="module")
def result(bundle: Path, suite_file: Path, noted: list[Found]) -> SuiteResult:
    suite = read_suite([str(suite_file)])
    return evaluate_suite(str(bundle), suite, "random:tiny", Ui(), answer_tokens=8, window=16, note=noted.append)


def test_every_line_is_counted(result: SuiteResult, noted: list[Found]) -> None:
    assert sorted(one.where for one in noted) == sorted(line.where for line in read_suite(result.suite).lines)
    counts = {kind: groups["all"] for kind, groups in result.figures.items()}
    assert {kind: next(iter(groups.values())).count for kind, groups in counts.items() if kind != "text"} == {
        "choice": 3,
        "exact": 2,
        "behaviour": 2,
        "language": 2,
    }
    assert list(result.figures["choice"]) == ["colours", "numbers", "all"]
    assert set(result.figures["language"]) == {"German", "French", "all"}
    assert "all" in result.figures["exact"]
    tokens = sum(len(line["text"]) for line in LINES if "text" in line)
    assert counts["text"]["perplexity"].count == tokens


def test_figures_are_those_of_the_lines(result: SuiteResult, noted: list[Found]) -> None:
    choices = [one for one in noted if one.kind == "choice"]
    right = sum(line["answer"] == one.told["chosen"] for one, line in zip(choices, LINES))
    assert result.find("choice", "accuracy") is not None
    assert result.figures["choice"]["all"]["accuracy"].yes == right
    same = sum(one.told["chosen"] == one.told["reference_chosen"] for one in choices)
    assert result.figures["choice"]["all"]["same_choice"].yes == same
    texts = [one.sums for one in noted if one.kind == "text"]
    nll, tokens = (math.fsum(sums[name] for sums in texts) for name in ("nll", "tokens"))
    assert result.figures["text"]["all"]["perplexity"].value == pytest.approx(math.exp(nll / tokens))
    assert result.figures["text"]["all"]["bits_per_byte"].value == pytest.approx(nll / tokens / math.log(2))
    kls = [one.numbers["kl"] for one in noted if one.kind == "behaviour"]
    assert result.figures["behaviour"]["all"]["kl"].value == pytest.approx(sum(kls) / 2)
    assert min(kls) > 0


def test_a_bundle_against_itself_is_the_same(bundle: Path, suite_file: Path) -> None:
    suite = read_suite([str(suite_file)])
    result = evaluate_suite(str(bundle), suite, str(bundle), Ui(), answer_tokens=8, window=16)
    for kind, measure in (
        ("choice", "same_choice"),
        ("exact", "same_verdict"),
        ("behaviour", "same_tokens"),
        ("behaviour", "same_refuses"),
        ("behaviour", "same_stops"),
        ("language", "same_start"),
    ):
        assert result.figures[kind]["all"][measure].value == 1.0
    assert result.figures["behaviour"]["all"]["new_loops"].value == 0.0
    for kind in ("behaviour", "language", "text"):
        assert result.figures[kind]["all"]["kl"].value < 1e-6


def test_without_a_reference(bundle: Path, suite_file: Path) -> None:
    result = evaluate_suite(str(bundle), read_suite([str(suite_file)]), None, Ui(), answer_tokens=8, window=16)
    assert set(result.figures["behaviour"]["all"]) == {"stops", "loops", "leaves_template", "refuses"}
    assert set(result.figures["language"]["all"]) == {"stops", "loops", "leaves_template"}
    assert set(result.figures["choice"]["all"]) == {"accuracy", "accuracy_by_length"}
    assert result.find("behaviour", "kl") is None


def test_the_command(
    bundle: Path, suite_file: Path, result: SuiteResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "answers.jsonl"
    command = ["eval", str(bundle), "--suite", str(suite_file), "--answer-tokens", "8", "--window", "16"]
    compared = [*command, "--reference", "random:tiny"]
    assert main([*compared, "--json", "--answers", str(answers)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(json.dumps(result.as_json()))
    lines = [json.loads(line) for line in answers.read_text("utf-8").splitlines()]
    assert len(lines) == len(LINES)
    assert all("said" in line and "reference_said" in line for line in lines if line["kind"] == "behaviour")
    assert main(command) == 0
    shown = capsys.readouterr().out
    for words in ("questions with choices", "texts", "what answers do, by language", "95 % interval"):
        assert words in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--text", "x.txt"], "--text: a suite holds its texts; leave out either this or --suite"),
        (["--tokens", "8"], "--tokens: a suite holds its texts"),
        (["--answer-tokens", "0"], "--answer-tokens 0: expected 1 to 4,096"),
        (["--window", "1"], "--window 1: expected 2 to"),
        (["--answers", "/nowhere/at/all"], "--answers /nowhere/at/all: there is no folder /nowhere/at; make it"),
        (["--answers", "/proc/zz"], "--answers /proc/zz: cannot be made ("),
        (["--reference", "random:phi-3-mini-4k"], "--reference random:phi-3-mini-4k: 32064 tokens, "),
        (["--answer-tokens", "4096"], "own.jsonl:8: 4,"),
    ],
)
def test_it_refuses(
    arguments: list[str], said: str, bundle: Path, suite_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(bundle), "--suite", str(suite_file), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_what_belongs_to_a_suite(
    bundle: Path, tiny_bundle: Path, suite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--answers", "--answer-tokens"):
        assert main(["eval", str(bundle), option, "3"]) == 2
        assert f"{option}: belongs to a --suite" in capsys.readouterr().err
    (tmp_path / "a").touch()
    assert main(["eval", str(bundle), "--suite", str(suite_file), "--answers", str(tmp_path / "a")]) == 2
    assert "exists; choose another name" in capsys.readouterr().err
    answers = ["--answers", str(tmp_path / "b")]
    assert main(["eval", str(tiny_bundle), "--suite", str(suite_file), *answers]) == 2
    assert not (tmp_path / "b").exists()
    assert "has no tokenizer, so that a text means nothing to it" in capsys.readouterr().err


def test_a_model_that_answers_with_no_template(bundle: Path, tmp_path: Path) -> None:
    """The line is named, not the place in the code."""
    plain = shutil.copytree(bundle, tmp_path / "plain")
    (plain / "tokenizer_config.json").write_text("{}")
    write_manifest(plain, Bundle.open(plain, check=False).manifest)
    suite = tmp_path / "s.jsonl"
    suite.write_text('{"prompt": "a"}\n')
    with pytest.raises(InputError, match=r"s\.jsonl:1: chat: this model has no chat template"):
        evaluate_suite(str(plain), read_suite([str(suite)]), None, Ui())


def test_what_the_tokenizer_does_not_know(bundle: Path, tmp_path: Path) -> None:
    suite = tmp_path / "s.jsonl"
    suite.write_text('{"text": "日"}')
    with pytest.raises(InputError, match=r"s\.jsonl:1: the model's tokenizer makes no token of '日'"):
        evaluate_suite(str(bundle), read_suite([str(suite)]), None, Ui())


def test_a_loop_that_the_reference_does_not_have() -> None:
    """By hand: two lines of one group, of which one loops anew."""
    made: list[Any] = [
        Found("behaviour", "a", "x:1", {"loops": True, "new_loops": True}, {"kl": 0.5}),
        Found("behaviour", "a", "x:2", {"loops": True, "new_loops": False}, {"kl": 0.25}),
    ]
    figures = figures_of(made)["behaviour"]
    assert list(figures) == ["all"]
    assert (figures["all"]["loops"].yes, figures["all"]["new_loops"].yes) == (2, 1)
    assert (figures["all"]["kl"].value, figures["all"]["kl"].low) == (0.375, 0.0)


def test_another_target_finds_the_same(bundle: Path, tmp_path: Path) -> None:
    """Core ML's package and ONNX Runtime's files in float32 hold the same weights: what they say and decide is the same."""
    lines = [line for line in LINES if line.get("tokens", 9) < 10 or "choices" in line or line.get("text") == "x"]
    path = tmp_path / "own.jsonl"
    path.write_text(
        "".join(json.dumps({**line, **({"tokens": 4} if "tokens" in line else {})}) + "\n" for line in lines)
    )
    other = letters_bundle(tmp_path / "coreml", "coreml", context=96)
    found = [
        evaluate_suite(str(one), read_suite([str(path)]), "random:tiny", Ui(), target, answer_tokens=4).figures
        for one, target in ((bundle, "ort-mobile"), (other, "coreml"))
    ]
    assert set(found[0]) == {"choice", "exact", "text", "behaviour", "language"}
    for kind, groups in found[0].items():
        for name, figure in groups["all"].items():
            # the package is 1e-4 nats away at most (CoreMLHost.saved_bound), and roots of KL add up like lengths
            apart = 2 * math.sqrt(figure.value * 1e-4) + 1e-4 if name == "kl" else figure.value * math.sqrt(2e-4)
            assert abs(found[1][kind]["all"][name].value - figure.value) <= apart, (kind, name)
