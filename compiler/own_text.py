"""Text that a model writes itself, to calibrate it on: of no other text does it know what its own predictions are like.

Half of the sequences begin as a conversation does, with what the chat template writes before a user's first word; so the model
makes up the question too. The others begin with a random token (as in LLM-QAT, arXiv 2305.17888). What follows is drawn from
the model's predictions as they are, at temperature 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pocketphi.compiler.text_check import check_text
from pocketphi.compiler.ui import Ui
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.decoder import ProgramRunner, keeps
from pocketphi.graph.errors import InputError
from pocketphi.graph.ranges import check_number
from pocketphi.graph.resident import free_memory
from pocketphi.graph.tokenizer import Tokenizer
from pocketphi.graph.trace import trace
from pocketphi.passes.calibrate import own_pages

LENGTH = 256
"""Tokens of a sequence: with longer ones there were fewer, or more memory for their keys and values."""
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"


def own_text(source: Checkpoint, tokens: int, seed: int, ui: Ui) -> str:
    """Our pages of prose, dialogue and code, and then at least so many tokens of the model's own, from a seed.

    The same model, seed and number give the same text on one machine. Raises InputError for a model without a tokenizer, and
    where the keys and values of all sequences do not fit into the memory that is free.
    """
    check_number("--tokens", tokens, least=1)
    check_number("--seed", seed, least=0)
    files = check_text(source).files
    if not files:
        raise InputError("the model has no tokenizer, so that what it writes is no text")
    config, tokenizer = source.config, Tokenizer.from_files(files)
    length = min(LENGTH, config.max_position // 2)
    count = -(-tokens // length)
    opening = _opening(tokenizer)
    needed = 4 * count * (length + len(opening)) * 2 * config.layers * config.kv_heads * config.head_dim
    if needed > free_memory():
        raise InputError(
            f"--tokens {tokens}: their keys and values take {needed / 1e9:.1f} GB of memory, and {free_memory() / 1e9:.1f} GB "
            "are free; choose fewer"
        )
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(config.vocab_size, (count - count // 2, 1), generator=generator)
    starts = [torch.tensor(opening).expand(count // 2, -1)] if count > 1 else []
    plain = torch.tensor(tokenizer.encode("")).expand(len(first), -1).to(torch.int64)
    starts.append(torch.cat((plain, first), 1))
    runner = ProgramRunner(trace(source), keep=keeps(config))
    with ui.task("write text", len(starts) * length, "steps") as advance:
        rows = [row for start in starts for row in written(runner, start, length, generator, lambda: advance(1))]
    order = torch.randperm(len(rows), generator=generator).tolist()
    return "\n\n".join([own_pages(), *(tokenizer.decode(rows[i], special=True) for i in order)]) + "\n"


def written(
    runner: ProgramRunner, start: torch.Tensor, length: int, generator: torch.Generator, step: Callable[[], None]
) -> list[list[int]]:
    """What a model writes after int64 [B, S]: that, and `length` tokens, of each row. step: called once a token."""
    runner.reset()
    rows, now = [start], start
    for _ in range(length):
        logits = runner.step(now)[:, -1]
        now = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        rows.append(now)
        step()
    return [[int(token) for token in row] for row in torch.cat(rows, 1)]


def _opening(tokenizer: Tokenizer) -> Sequence[int]:
    """What comes before a user's first word; as a text begins, where there is no template."""
    if not tokenizer.has_template:
        return tokenizer.encode("\n")
    before, _, _ = tokenizer.render_chat([{"role": "user", "content": _MARK}]).partition(_MARK)
    return tokenizer.tokens(before) or tokenizer.encode("\n")
