"""What an app's prompts begin with, computed when a bundle is made: the system message, in the words of its chat template."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from pocketphi.artifacts.bundle import file_digest
from pocketphi.artifacts.manifest import Manifest
from pocketphi.compiler.options import CompileOptions
from pocketphi.compiler.text import read_text
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.errors import InputError
from pocketphi.graph.program import Program
from pocketphi.graph.reading import file_inside
from pocketphi.graph.tokenizer import Tokenizer
from pocketphi.targets import TARGETS, find_target
from pocketphi.targets.base import Check, Host

PREFIX = "prefix.txt"
"""The text in a bundle."""

_MESSAGES = (
    "a",
    "The",
    "Z",
    " b",
    "\n\nc",
    "1",
    "é",
    "中",
    "\N{GRINNING FACE}",
    "'",
    '"',
    "<",
    "{",
    "[",
    "-",
    "#",
    "?",
)
"""Messages that begin in different ways: what all of their prompts begin with does not depend on the message."""
_ROOM = 2
"""Tokens that a context needs beside the prefix: one of a message, one of its answer."""


def check_prefix(options: CompileOptions) -> None:
    """Raise InputError, before any work, where a target's runtime cannot take a prefix that is asked for."""
    if options.prefix is None:
        return
    able = [name for name in TARGETS if find_target(name).prefix]
    for name in options.target_names:
        if not find_target(name).prefix:
            why = find_target(name).no_prefix
            raise InputError(
                f"--prefix {options.prefix}: {name} cannot have one: {why}; compile for {' or '.join(able)}"
            )


def read_prefix(options: CompileOptions, source: Checkpoint) -> tuple[str, tuple[int, ...]]:
    """The text of `--prefix` and its tokens, both empty where there is none.

    Raises InputError for a file that is no text or too long, and for a model whose prompts cannot begin with it.
    """
    if options.prefix is None:
        return "", ()
    where = f"--prefix {options.prefix}"
    text = read_text(options.prefix, "--prefix", options.content("prefix")).strip()
    if "\0" in text:
        raise InputError(f"{options.prefix}: --prefix is no text: its character {text.index(chr(0))} is a zero")
    files = source.tokenizer_files()
    if not files:
        raise InputError(f"{where}: {source.label} has no tokenizer, so that a text means nothing to it; leave it out")
    tokens = prefix_tokens(Tokenizer.from_files(files), text, where)
    context = min(options.context or source.config.max_position, source.config.max_position)
    if len(tokens) + _ROOM > context:
        raise InputError(
            f"{where}: takes {len(tokens):,} tokens of a context of {context:,}, which leaves no room for a message and its "
            "answer; shorten it, or raise --context"
        )
    return text, tokens


def prefix_tokens(tokenizer: Tokenizer, text: str, where: str) -> tuple[int, ...]:
    """What the prompts of conversations with this system message begin with, whatever is said in them.

    where: for messages. Raises InputError for a chat template that puts no such text first.
    """
    if tokenizer.tells_time:
        raise InputError(f"{where}: the chat template writes the date of the day, so that no prompt can begin with it")
    chats = [[{"role": "system", "content": text}, {"role": "user", "content": message}] for message in _MESSAGES]
    if text not in tokenizer.render_chat(chats[0]):
        raise InputError(
            f"{where}: the chat template leaves system messages out; the text would have to be part of a message"
        )
    prompts = [tokenizer.encode_chat(chat) for chat in chats]
    same = itertools.takewhile(lambda several: len(set(several)) == 1, zip(*prompts))
    return tuple(tokens[0] for tokens in same)


def prefix_checks(folder: Path, manifest: Manifest, target: str, host: Host, program: Program) -> list[Check]:
    """Whether a bundle's prefix is what its text gives, computed once more. program: that the target's files were written
    from. Raises CannotRun where this machine is not of the kind that computed it."""
    if manifest.prefix is None:
        return []
    where = str(folder / PREFIX)
    text = read_text(file_inside(folder, PREFIX, str(folder)), "the prefix")
    tokens = prefix_tokens(Tokenizer.load(folder), text, where)
    name = "prefixes that are not what their text gives"
    if len(tokens) != manifest.prefix.tokens:
        return [Check(name, 1, 0, f"{len(tokens)} tokens, the manifest says {manifest.prefix.tokens}")]
    saved = file_inside(folder, find_target(target).prefix, str(folder))
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / saved.name
        host.write_prefix(made, tokens, manifest.prefix.computed_on.get(target, ""), program)
        same = saved.is_file() and file_digest(made) == file_digest(saved)
    return [Check(name, int(not same), 0, f"{len(tokens)} tokens computed again")]


def system_message(folder: Path, manifest: Manifest) -> str | None:
    """The text that a bundle's prompts begin with, None for a bundle without."""
    return read_text(file_inside(folder, PREFIX, str(folder)), "the prefix") if manifest.prefix else None


def prefix_files(manifest: Manifest) -> set[str]:
    """Those that a bundle has for its prefix."""
    if manifest.prefix is None:
        return set()
    return {PREFIX, *(find_target(target).prefix for target in manifest.targets)}
