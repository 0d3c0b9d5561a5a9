"""lm-eval itself over a bundle: tasks made of a suite's lines score what `eval --suite` does."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text
from served import MODEL, post, said, served

from pocketphi.compiler.cli import main
from pocketphi.compiler.suite.items import read_suite
from pocketphi.compiler.suite.run import evaluate_suite
from pocketphi.compiler.ui import Ui

ROOT = Path(__file__).parents[3]
LM_EVAL = ROOT / "build" / "lm-eval"
WORDS = ["red", "green", "blue", "one", "two", "three", "a", "colour", "the", "sea", "of", "it", "and", "never"]

needs_lm_eval = pytest.mark.skipif(not LM_EVAL.is_dir(), reason="needs lm-eval: make build/lm-eval")


def run(
    arguments: list[str], folder: Path, path: str = str(LM_EVAL), module: bool = False
) -> subprocess.CompletedProcess[str]:
    """`pocketphi` with lm-eval's folder in front of what is installed; module: another module, which comes first."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [path, str(ROOT)])),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", *(arguments if module else ["pocketphi.compiler", *arguments])]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def questions(by: str) -> list[dict[str, Any]]:
    """Twelve with four choices of several lengths, each another one."""
    chance = random.Random(by)
    made = []
    for number in range(12):
        choices: list[str] = []
        while len(choices) < 4:
            choice = " ".join(chance.sample(WORDS, chance.randint(1, 3)))
            choices += [choice] if choice not in choices else []
        made.append({"question": f"Which, {number}?", "choices": choices, "answer": chance.randrange(4), "by": by})
    return made


TASK = {"dataset_path": "json", "test_split": "test", "num_fewshot": 0}
TASKS: dict[str, dict[str, Any]] = {
    "letters": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
        "doc_to_choice": list("ABCD"),
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "texts": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "exact": {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answers}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        "filter_list": [
            {"name": "stripped", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
        ],
        "metric_list": [{"metric": "exact_match", "ignore_case": True, "ignore_punctuation": True}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
}


@needs_lm_eval
def test_the_same_scores(bundle: Path, tmp_path: Path) -> None:
    """Choices by letter and by text, exact answers of which every second one is right, and texts longer than a window."""

    def scored(name: str, **more: Any) -> dict[str, Any]:
        return evaluate_suite(str(bundle), read_suite([str(tmp_path / f"{name}.jsonl")]), None, Ui(), **more).figures

    lines: dict[str, list[dict[str, Any]]] = {"letters": questions("letter"), "texts": questions("text")}
    asked = [{"question": f"What {word} is it?", "answers": ["?"], "tokens": 6} for word in WORDS[:8]]
    write(tmp_path / "exact.jsonl", asked)
    told_to: list[str] = []
    evaluate_suite(
        str(bundle),
        read_suite([str(tmp_path / "exact.jsonl")]),
        None,
        Ui(),
        note=lambda found: told_to.append(found.told["said"]),
    )
    lines["exact"] = [
        {**line, "answers": ["?", text if i % 2 else "x"]} for i, (line, text) in enumerate(zip(asked, told_to))
    ]
    lines["rolling"] = [{"text": " ".join(WORDS * 3)}, {"text": "Short."}]
    told = write_tasks(tmp_path, lines)
    done = run(["lm-eval", str(bundle), "--max-tokens", "100", "--", *told], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    came = results(tmp_path)
    for name in ("letters", "texts"):
        found = scored(name)["choice"]["all"]
        assert came[f"own_{name}"]["acc,none"] == found["accuracy"].value
        assert came[f"own_{name}"]["acc_norm,none"] == found["accuracy_by_length"].value
        assert 0 < found["accuracy"].value < 1
    assert came["own_exact"]["exact_match,stripped"] == scored("exact")["exact"]["all"]["exact"].value == 0.5
    bits = scored("rolling", window=100)["text"]["all"]["bits_per_byte"].value
    assert came["own_rolling"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-9)
    assert "own_letters" in Text.from_ansi(done.stdout).plain  # the table that lm-eval prints


def write_tasks(folder: Path, lines: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A task for each of `lines`; returns lm-eval's arguments for them."""
    tasks = folder / "tasks"
    tasks.mkdir()
    for name, rows in lines.items():
        files = {"data_files": {"test": write(folder / f"{name}.jsonl", rows)}}
        (tasks / f"{name}.yaml").write_text(
            json.dumps({"task": f"own_{name}", **TASK, **TASKS[name], "dataset_kwargs": files})
        )
    names = ",".join(f"own_{name}" for name in lines)
    return ["--tasks", names, "--include_path", str(tasks), "--output_path", str(folder / "out")]


def results(folder: Path) -> dict[str, dict[str, Any]]:
    (written,) = (folder / "out").rglob("results_*.json")
    return dict(json.loads(written.read_text())["results"])


@needs_lm_eval
def test_its_client_of_chat_completions(bundle: Path, tmp_path: Path) -> None:
    """lm-eval over `serve`: every second answer is the right one."""
    rows = [{"question": f"What {word} is it?", "answers": ["?"]} for word in WORDS[:6]]
    with served(bundle, room=100) as port:
        for number, row in enumerate(rows):
            body = {
                "messages": said(f"Question: {row['question']}\nAnswer:"),
                "max_tokens": 6,
                "temperature": 0,
                "stop": ["\n"],
                "model": MODEL,
            }
            status, answer = post(port, body)
            assert status == 200, answer
            text = answer["choices"][0]["message"]["content"].strip()
            rows[number] = {**row, "answers": ["?", text if number % 2 else "x"]}
        address = f"http://127.0.0.1:{port}/v1/chat/completions"
        given = ["--model", "local-chat-completions", "--model_args", f"base_url={address},model={MODEL},max_retries=1"]
        done = run(
            ["lm_eval", "run", *given, "--apply_chat_template", *write_tasks(tmp_path, {"exact": rows})],
            tmp_path,
            module=True,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    assert results(tmp_path)["own_exact"]["exact_match,stripped"] == 0.5


@needs_lm_eval
@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (["--max-tokens", "1"], ["--tasks", "arc_easy"], "pocketphi: --max-tokens 1: expected 2 to "),
        ([], ["--tasks", "no_such_task"], "pocketphi: lm-eval ended with "),
    ],
)
def test_one_line_where_it_fails(bundle: Path, tmp_path: Path, before: list[str], after: list[str], said: str) -> None:
    done = run(["lm-eval", str(bundle), *before, "--", *after], tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_missing(bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["lm-eval", str(bundle), "--", "--tasks", "mmlu"]) == 2
    assert "lm-eval needs the package 'lm_eval" in (said := capsys.readouterr().err)
    assert "pip install 'pocketphi[lm-eval]'" in said
    with pytest.raises(SystemExit):
        main(["lm-eval", str(bundle)])
    assert "the following arguments are required: -- ARGUMENT" in capsys.readouterr().err
    assert main(["lm-eval", str(bundle), "--json", "--", "--tasks", "mmlu"]) == 2
    assert "--json: lm-eval writes its results as JSON where it is told" in capsys.readouterr().err
