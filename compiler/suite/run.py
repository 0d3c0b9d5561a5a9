"""Ask a model, and its float reference, everything in a suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pocketphi.compiler.evaluate import check_compared, check_vocabulary, open_model
from pocketphi.compiler.suite.asking import answer, choose, most_tokens, predict
from pocketphi.compiler.suite.found import Found, SuiteResult, figures_of
from pocketphi.compiler.suite.items import ANSWER_TOKENS, MOST_ANSWER, Choice, Line, Suite, Text
from pocketphi.compiler.suite.side import Side
from pocketphi.compiler.ui import Advance, Ui
from pocketphi.graph.errors import InputError
from pocketphi.graph.lora.named import Lora
from pocketphi.graph.ranges import check_number
from pocketphi.graph.tokenizer import Tokenizer

WINDOW = 512


def evaluate_suite(
    model: str,
    suite: Suite,
    reference: str | None,
    ui: Ui,
    target: str | None = None,
    lora: Sequence[Lora] = (),
    adapter: str | None = None,
    answer_tokens: int = ANSWER_TOKENS,
    window: int = WINDOW,
    note: Callable[[Found], None] = lambda found: None,
    said: str | None = None,
) -> SuiteResult:
    """Run a bundle or a checkpoint, and the reference where there is one, on all lines of a suite.

    target, lora, adapter: as for `evaluate_model`; answer_tokens: of the longest answer to a prompt that does not say; window:
    tokens of a text that are run as one; note: called with what was found on a line, as it is found; said: what
    messages call the model, its own name if None.

    Raises InputError for a suite that the model cannot be asked, before anything runs.
    """
    is_bundle = check_compared(model, reference, lora, adapter)
    check_number("--answer-tokens", answer_tokens, 1, MOST_ANSWER)
    check_number("--window", window, least=2)
    own = open_model(model, target, () if is_bundle else lora, adapter)
    other = None if reference is None else open_model(reference, None, lora if is_bundle else ())
    if other:
        check_vocabulary(reference, other.config, model, own.config)
    if not own.files:
        raise InputError(
            f"{said or model} has no tokenizer, so that a text means nothing to it, and no suite can be asked"
        )
    tokenizer = Tokenizer.from_files(own.files, said or model)
    context = min(one.context for one in (own, other) if one)
    sides = [Side(one.runner, one.config, tokenizer, context) for one in (own, other) if one]
    longest = _longest(suite.lines, sides[0], answer_tokens, window)
    for side in sides:
        side.context = longest
    found = []
    with ui.task("suite", len(suite.lines) * len(sides), "lines") as advance:
        for one in _ask(suite.lines, sides[0], sides[1] if other else None, answer_tokens, window, advance):
            found.append(one)
            note(one)
    return SuiteResult(model, suite.names, suite.digest, reference, answer_tokens, figures_of(found))


def _longest(lines: Sequence[Line], side: Side, answer_tokens: int, window: int) -> int:
    """Tokens of the longest line with its answer. Raises InputError for one that is not held."""
    longest = 2
    for line in lines:
        try:
            total = most_tokens(line, side, answer_tokens, window)
        except InputError as error:
            raise InputError(f"{line.where}: {error}") from None
        if total > side.context:
            raise InputError(
                f"{line.where}: {total:,} tokens with the answer, and {side.context:,} are held; leave the line out, make it "
                "shorter, or compile with a larger --context"
            )
        longest = max(longest, total)
    return longest


def _ask(
    lines: Sequence[Line], side: Side, other: Side | None, answer_tokens: int, window: int, advance: Advance
) -> Iterator[Found]:
    """First what is scored, then what is answered."""
    answered = []
    for line in lines:
        if isinstance(line.item, Choice):
            yield choose(line, line.item, side, other)
        elif isinstance(line.item, Text):
            yield predict(line, line.item, side, other, window)
        else:
            answered.append(line)
            continue
        advance(2 if other else 1)
    yield from answer(answered, side, other, answer_tokens, advance)
