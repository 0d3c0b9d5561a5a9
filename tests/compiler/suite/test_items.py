"""The form of suites: what a line may say, and what is refused, with its number."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pocketphi.compiler.suite.items import Choice, Exact, Prompt, Text, read_suite
from pocketphi.graph.errors import InputError

LINES = """\ufeff{"question": " How much is 1+1?", "subject": "sums", "choices": ["1", "2"], "answer": 1}

{"question": "Who?", "answers": ["Ada Lovelace", "Lovelace"], "category": "people"}
{"text": "Once upon a time."}
{"prompt": "Hi", "tokens": 4}
{"prompt": "Hallo", "language": "German"}
"""


def write(folder: Path, text: str, name: str = "own.jsonl") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_every_kind_of_line(tmp_path: Path) -> None:
    path = write(tmp_path, LINES)
    suite = read_suite([str(path)])
    assert [type(line.item) for line in suite.lines] == [Choice, Exact, Text, Prompt, Prompt]
    assert [(line.group, line.kind) for line in suite.lines] == [
        ("sums", "choice"),
        ("people", "exact"),
        ("own", "text"),
        ("own", "behaviour"),
        ("German", "language"),
    ]
    assert [line.where.removeprefix(f"{path}:") for line in suite.lines] == ["1", "3", "4", "5", "6"]
    choice = suite.lines[0].item
    assert isinstance(choice, Choice)
    assert choice.context == "How much is 1+1?\nA. 1\nB. 2\nAnswer:"
    assert choice.compared == ["A", "B"]
    whole = Choice("How much?", ("one", "two"), 0, by="text")
    assert (whole.context, whole.compared) == ("Question: How much?\nAnswer:", ["one", "two"])


def test_a_folder_and_several_files(tmp_path: Path) -> None:
    write(tmp_path, '{"prompt": "b"}\n', "b.jsonl")
    write(tmp_path, '{"prompt": "a"}\n', "a.jsonl")
    write(tmp_path, "no line of it", "notes.txt")
    folder = read_suite([str(tmp_path)])
    assert [line.group for line in folder.lines] == ["a", "b"]
    one_by_one = read_suite([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    assert folder.digest == one_by_one.digest != read_suite([str(tmp_path / "a.jsonl")]).digest


def test_the_shipped_suite() -> None:
    """Enough of each kind, and the same prompts in each language."""
    suite = read_suite(["behaviour"])
    count = Counter(line.group for line in suite.lines)
    languages = {line.group for line in suite.lines if line.kind == "language"}
    assert len(languages) >= 10
    assert {count[name] for name in languages} == {4}
    assert all(count[name] >= 4 for name in count)
    assert {line.kind for line in suite.lines} == {"behaviour", "language"}


REFUSED = {
    "3": "own.jsonl:2: expected a JSON object, got int",
    "{": "own.jsonl:2: not valid JSON",
    '{"a": 1}': "own.jsonl:2: has a; expected one of choices, answers, text or prompt, which tells what the line is",
    "{}": "own.jsonl:2: has no key; expected one of",
    '{"text": "a", "prompt": "b"}': "own.jsonl:2: has text and prompt; expected one of",
    '{"prompt": "a", "categry": "b"}': "own.jsonl:2: unknown key categry; did you mean category?",
    '{"prompt": 3}': "own.jsonl:2: prompt: ",
    '{"prompt": " "}': "own.jsonl:2: prompt is empty",
    '{"prompt": "a", "tokens": -1}': "own.jsonl:2: tokens -1: expected 0 to 4,096",
    '{"text": "\\n"}': "own.jsonl:2: text is empty",
    '{"question": "a", "answers": []}': "own.jsonl:2: answers: expected at least one, and none that is empty",
    '{"question": "a", "answers": ["b"], "tokens": 0}': "own.jsonl:2: tokens 0: expected 1 to 4,096",
    '{"question": "a", "choices": ["b"], "answer": 0}': "own.jsonl:2: choices: 1, expected 2 to 26",
    '{"question": "a", "choices": ["b", "c"], "answer": 2}': "own.jsonl:2: answer is 2, expected 0 to 1",
    '{"question": "a", "choices": ["b", "c"], "answer": "A"}': "own.jsonl:2: answer: ",
    '{"question": "a", "choices": ["b", "c"]}': "own.jsonl:2: answer: ",
    '{"question": "a", "choices": ["b", " "], "answer": 0}': "own.jsonl:2: a question or a choice is empty",
    '{"question": "a", "choices": ["b", "c", "b "], "answer": 0, "by": "text"}': "own.jsonl:2: choices: 'b' stands there twice",
    '{"prompt": "a", "category": "all"}': "own.jsonl:2: its category is 'all', which is what all lines together are called",
    '{"prompt": "a", "language": "all"}': "own.jsonl:2: its category is 'all', which is",
    '{"question": "a", "choices": ["b", "c"], "answer": 0, "by": "x"}': "own.jsonl:2: by is 'x', expected letter or",
}


@pytest.mark.parametrize("line", REFUSED)
def test_a_bad_line_is_named(line: str, tmp_path: Path) -> None:
    path = write(tmp_path, f'{{"prompt": "good"}}\n{line}\n')
    with pytest.raises(InputError) as raised:
        read_suite([str(path)])
    assert str(raised.value).startswith(f"{tmp_path}/{REFUSED[line]}")


def test_a_file_that_is_called_all(tmp_path: Path) -> None:
    path = write(tmp_path, '{"prompt": "a", "category": "b"}\n{"prompt": "a"}\n', "all.jsonl")
    with pytest.raises(InputError, match=r"all\.jsonl:2: it has no category, and its file's name is 'all'"):
        read_suite([str(path)])


def test_what_is_no_suite(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"--suite behavior: no such file or folder; expected JSON Lines, or a name: beh"
    ):
        read_suite(["behavior"])
    with pytest.raises(InputError, match=r"a folder without a file \*\.jsonl"):
        read_suite([str(tmp_path)])
    with pytest.raises(InputError, match=r"holds no line; see docs/behaviour\.md"):
        read_suite([str(write(tmp_path, "\n\n"))])
