"""Commands that ask a model: a text, a suite of questions, prompts and texts, or the tasks of lm-eval."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketphi.compiler.cli_devices import AddCommand, print_result
from pocketphi.compiler.cli_options import add_options
from pocketphi.compiler.options import ProgramOptions
from pocketphi.compiler.ui import ui_of
from pocketphi.graph.errors import CannotRun, InputError

if TYPE_CHECKING:
    from pocketphi.compiler.suite.found import Found

_TOKENS, _WINDOW = 8192, 512


def add_eval_command(command: AddCommand) -> argparse.ArgumentParser:
    """command: makes a parser from a name, the function that runs it, and a help text."""
    made = command(
        "eval", _eval, "how good a bundle or a model is on a text or a suite, and its distance from a reference"
    )
    made.add_argument("model", metavar="BUNDLE|MODEL")
    made.add_argument("--text", type=Path, help="a UTF-8 text (default: documentation of Python's library)")
    made.add_argument(
        "--suite",
        action="append",
        metavar="NAME",
        help="in place of a text: a file of questions, prompts or texts as JSON Lines, a folder of them, or 'behaviour'; "
        "may be repeated",
    )
    made.add_argument("--reference", metavar="MODEL", help="also how far it is from this model, and where they agree")
    add_options(made, ProgramOptions, ["lora"])
    made.add_argument("--tokens", type=int, help=f"how many tokens of the text (default {_TOKENS})")
    made.add_argument("--window", type=int, default=_WINDOW, help="tokens in one sequence (default %(default)s)")
    made.add_argument("--answer-tokens", type=int, metavar="N", help="of a suite's longest answer (default 32)")
    made.add_argument(
        "--answers",
        type=Path,
        metavar="FILE",
        help="also write what was found on each line of the suite, as JSON Lines",
    )
    return made


def add_lm_eval_command(command: AddCommand) -> argparse.ArgumentParser:
    """command: as for `add_eval_command`."""
    made = command("lm-eval", _lm_eval, "run tasks of EleutherAI's lm-eval on a bundle (extra 'lm-eval')")
    made.add_argument("model", metavar="BUNDLE|MODEL")
    made.add_argument(
        "arguments",
        nargs="+",
        metavar="-- ARGUMENT",
        help="behind two dashes, what lm-eval is told, such as: -- --tasks mmlu --limit 10",
    )
    made.add_argument(
        "--max-tokens", type=int, help="size of the K/V cache (default: what the bundle holds, at most 2048)"
    )
    made.set_defaults(online=True)
    return made


def _lm_eval(a: argparse.Namespace) -> int:
    if a.json:
        raise InputError("--json: lm-eval writes its results as JSON where it is told: -- --output_path FOLDER")
    try:
        from pocketphi.compiler.suite.lm_eval_adapter import run_tasks
    except ModuleNotFoundError as error:
        raise CannotRun(
            f"lm-eval needs the package {error.name!r}; install it with: pip install 'pocketphi[lm-eval]'"
        ) from None
    run_tasks(a.model, a.arguments, a.target, a.adapter, a.max_tokens)
    return 0


def _eval(a: argparse.Namespace) -> int:
    if a.suite:
        return _suite(a)
    from pocketphi.compiler import show
    from pocketphi.compiler.evaluate import evaluate_model
    from pocketphi.compiler.text import read_text

    for option in ("answers", "answer_tokens"):
        if getattr(a, option) is not None:
            raise InputError(f"--{option.replace('_', '-')}: belongs to a --suite")
    text = read_text(a.text, "the text") if a.text else None
    tokens = _TOKENS if a.tokens is None else a.tokens
    lora = getattr(a, "lora", ())
    result = evaluate_model(a.model, text, tokens, a.window, a.reference, ui_of(a), a.target, lora, a.adapter)
    _told(a, vars(result), lambda: show.evaluation(result))
    return 0


def _suite(a: argparse.Namespace) -> int:
    from pocketphi.compiler.suite.items import ANSWER_TOKENS, read_suite
    from pocketphi.compiler.suite.run import evaluate_suite
    from pocketphi.compiler.suite.table import show_suite

    for option in ("text", "tokens"):
        if getattr(a, option) is not None:
            raise InputError(f"--{option}: a suite holds its texts; leave out either this or --suite")
    suite = read_suite(a.suite)
    limit = ANSWER_TOKENS if a.answer_tokens is None else a.answer_tokens
    note = _notes(a.answers)
    lora = getattr(a, "lora", ())
    try:
        result = evaluate_suite(a.model, suite, a.reference, ui_of(a), a.target, lora, a.adapter, limit, a.window, note)
    except BaseException:
        if a.answers and not a.answers.stat().st_size:
            a.answers.unlink()  # nothing was found: the next try finds the place free
        raise
    _told(a, result.as_json(), lambda: show_suite(result))
    return 0


def _notes(path: Path | None) -> Callable[[Found], None]:
    """Writes what is found to a new file as it comes, which is there from the start. Raises InputError where there cannot be
    one, and where it takes no more."""
    if path is None:
        return lambda found: None
    if not path.absolute().parent.is_dir():
        raise InputError(f"--answers {path}: there is no folder {path.parent}; make it, or choose another name")
    try:
        path.open("x").close()
    except FileExistsError:
        raise InputError(f"--answers {path}: exists; choose another name") from None
    except OSError as error:
        raise InputError(f"--answers {path}: cannot be made ({error.strerror}); choose another name") from None

    def note(found: Found) -> None:
        line = json.dumps(found.as_json(), ensure_ascii=False) + "\n"
        try:
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line)
        except OSError as error:
            raise InputError(f"--answers {path}: cannot be written ({error.strerror})") from None

    return note


def _told(a: argparse.Namespace, data: Any, human: Callable[[], None]) -> None:
    if a.json:
        print_result(a, data, "")
    else:
        human()
