"""Search in documents: does the passage with the answer come along, how long does it take, and does the answer repeat it?

    python benchmarks/retrieval.py [--bundle BUNDLE] [--json FILE]

100 questions (`questions.toml`) about the pages in `docs/`, among 10,000 passages: the others are documentation of Python's
library. With a bundle, each question is asked with and without the documents.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import logging
import shutil
import statistics
import sys
import tempfile
import time
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pocketphi.artifacts.retrieval.index import Index
from pocketphi.artifacts.retrieval.passages import Passage, passages_of
from pocketphi.artifacts.retrieval.prompt import MOST
from pocketphi.compiler.chat import Chat
from pocketphi.compiler.documents import index_folder
from pocketphi.compiler.ui import Ui

HERE = Path(__file__).parent
PASSAGES = 10_000
_TOKENS = 60


def main() -> None:
    """See the module."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--bundle", type=Path, help="to ask, too")
    p.add_argument("--passages", type=int, default=PASSAGES, help="in the index (default %(default)s)")
    p.add_argument("--misses", action="store_true", help="also print the questions whose passage was not found")
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    asked = questions()
    if missing := not_in_docs(asked):
        raise SystemExit(f"no passage holds these answers, as docs/ has changed: {missing}")
    with tempfile.TemporaryDirectory() as name:
        folder, made = Path(name, "documents"), Path(name, "index")
        fill(folder, a.passages)
        begin = time.perf_counter()
        indexed = index_folder(folder, made, Ui())
        result: dict[str, Any] = {"passages": indexed.passages, "files": indexed.files, "bytes": indexed.bytes}
        result["index_seconds"] = time.perf_counter() - begin
        result |= searched(Index.open(made), asked, a.misses)
        if a.bundle:
            result |= answered(a.bundle, made, asked)
    for key, value in result.items():
        print(f"{key:<28} {value:,.3f}" if isinstance(value, float) else f"{key:<28} {value:,}")
    if a.json:
        a.json.write_text(json.dumps(result, indent=1))


def questions() -> list[dict[str, Any]]:
    """Of `questions.toml`."""
    return list(tomllib.loads((HERE / "questions.toml").read_text("utf-8"))["asked"])


def fill(folder: Path, count: int) -> None:
    """A folder of about so many passages: our pages, and help texts of Python's modules."""
    shutil.copytree(HERE.parent / "docs", folder / "docs", ignore=shutil.ignore_patterns("figures"))
    held = sum(len(list(passages_of(path.name, path.read_text("utf-8")))) for path in (folder / "docs").glob("*.md"))
    for name in sorted(sys.stdlib_module_names):
        text = "\n\n".join(_texts(name))
        made = len(list(passages_of("", text)))
        if held < count and made > 0:
            (folder / f"{name}.txt").write_text(text, "utf-8")
            held += made


def _texts(name: str) -> Iterator[str]:
    """What a module, its classes and their functions say of themselves."""
    if name in ("antigravity", "this", "idlelib", "turtledemo") or name.startswith("_"):
        return
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = importlib.import_module(name)
        except ImportError:  # of another system
            return
    yield f"# {name}\n\n{inspect.getdoc(module) or ''}"
    for of, value in sorted(vars(module).items()):
        if text := inspect.getdoc(value):
            yield f"## {name}.{of}\n\n{text}"
        if inspect.isclass(value):
            for method, part in sorted(vars(value).items()):
                if text := inspect.getdoc(part):
                    yield f"### {name}.{of}.{method}\n\n{text}"


def _plain(text: str) -> str:
    return " ".join(text.split())


def _answers(asked: dict[str, Any]) -> list[str]:
    return [_plain(answer) for answer in (asked["answer"], *asked.get("also", ()))]


def _holds(passage: Passage, asked: dict[str, Any]) -> bool:
    return any(answer in _plain(passage.text) for answer in _answers(asked))


def not_in_docs(asked: list[dict[str, Any]]) -> list[str]:
    """Answers that no passage holds any more."""
    texts = [
        _plain(f"{one.heading}\n{one.text}")
        for path in sorted((HERE.parent / "docs").glob("*.md"))
        for one in passages_of(path.name, path.read_text("utf-8"))
    ]
    every = [answer for one in asked for answer in _answers(one)]
    return [answer for answer in every if not any(answer in text for text in texts)]


def searched(index: Index, asked: list[dict[str, Any]], misses: bool) -> dict[str, Any]:
    """How often the passage with the answer is the first, among the first three, and among those that are looked at."""
    ranks, seconds = [], []
    for one in asked:
        begin = time.perf_counter()
        found = index.search(one["question"], MOST)
        seconds.append(time.perf_counter() - begin)
        held = [_holds(passage, one) for passage in found]
        ranks.append(held.index(True) if any(held) else MOST)
        if misses and not any(held):
            print(f"not found: {one['question']}  [{', '.join(passage.source for passage in found[:2])}]")
    result: dict[str, Any] = {"questions": len(asked)}
    for most in (1, 3, MOST):
        result[f"among_the_first_{most}"] = sum(rank < most for rank in ranks)
    result["query_ms_median"] = 1e3 * statistics.median(seconds)
    result["query_ms_most"] = 1e3 * max(seconds)
    return result


def answered(bundle: Path, index: Path, asked: list[dict[str, Any]]) -> dict[str, Any]:
    """How often the passage is in the prompt, and how often the answer shares a run of three words with the piece of it."""
    repeats = {True: 0, False: 0}
    in_prompt = 0
    for one in asked:
        for docs in (True, False):
            chat = Chat(bundle, docs=index if docs else None)
            reply = chat.say(one["question"], limit=_TOKENS)
            in_prompt += docs and any(_holds(source, one) for source in reply.sources)
            repeats[docs] += bool(_runs(one["answer"]) & _runs(reply.text))
    return {"in_the_prompt": in_prompt, "repeated_with": repeats[True], "repeated_without": repeats[False]}


def _runs(text: str) -> set[tuple[str, ...]]:
    words = [word.strip("`*.,:;()|") for word in text.lower().split()]
    words = [word for word in words if word]
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


if __name__ == "__main__":
    main()
