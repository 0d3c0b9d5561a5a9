"""Is the text side of a bundle what transformers makes of the model's files?

Before any work, the tokenizer files are read with transformers and brought into one form (`text_files.py`), and our own
reader, which `chat`, `eval` and the calibration use, is compared with transformers. What transformers made of the source's
files is recorded in the manifest as digests: `verify` compares all readers of the bundle's files with that.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tokenizers

from pocketphi.artifacts.manifest import TextRecord
from pocketphi.compiler.text_files import keep_spaces, load_files, normal_files, open_with_transformers
from pocketphi.compiler.text_probes import REFUSED, TOO_COSTLY, Answers, Probes, digest
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_folder import TOKENIZER_FILES
from pocketphi.graph.reading import parse_object, show
from pocketphi.graph.tokenizer import Tokenizer, library, quiet_library
from pocketphi.graph.writing import write_files
from pocketphi.targets import TARGETS, find_target
from pocketphi.targets.base import Check
from pocketphi.targets.target import TextReader

_KINDS = {
    "ids": "texts whose ids differ from transformers'",
    "chats": "chats whose prompts differ from transformers'",
    "decoded": "tokens whose texts differ from transformers'",
}


_SPACES = (
    "tokenizer_config.json: clean_up_tokenization_spaces, which takes spaces before punctuation out of what the model writes, "
    "is switched off"
)
_WHOLE_MARKERS = (
    "tokenizer_config.json: split_special_tokens is true: transformers and pocketphi read markers in a text as plain text; "
    "apps, whose tokenizers do not know the setting, read them as markers"
)


@dataclass(frozen=True)
class ModelText:
    """files: the tokenizer files that the bundle gets, name → content, none for a model without a tokenizer; notices: what the
    user should know; recorded: what the manifest keeps."""

    files: dict[str, bytes] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    recorded: TextRecord | None = None


def check_text(source: Checkpoint, targets: Collection[str] = ()) -> ModelText:
    """Read a checkpoint's tokenizer as transformers does. targets: whose own readers are tried, too.

    Raises InputError for damaged files, for a token that is no row of the embedding, and where our reader differs.
    """
    files, where = source.tokenizer_files(), source.label
    if not files:
        return ModelText()
    loaded, alone = load_files(files, source.text_settings(), where)
    told = [_SPACES] if keep_spaces(loaded) else []
    told += [_WHOLE_MARKERS] if loaded.split_special_tokens else []
    with quiet_library():  # a panic of the library is one line of ours
        return _checked(source, files, loaded, alone, targets, told)


def _checked(
    source: Checkpoint,
    files: dict[str, bytes],
    loaded: Any,
    alone: tokenizers.Tokenizer | None,
    targets: Collection[str],
    told: list[str],
) -> ModelText:
    """loaded, alone: of `load_files`; told: notices of what was switched off."""
    where, probes = source.label, Probes(loaded)
    beyond = tokens_beyond(loaded, probes.vocabulary, source.config.vocab_size)
    if beyond:
        raise InputError(
            f"{where}: the tokenizer makes token {beyond[0][0]} ({show(beyond[0][1])}), but the embedding has "
            f"{source.config.vocab_size} rows; resize it (model.resize_token_embeddings(len(tokenizer))) and save the model "
            "again, or take the tokenizer that it was trained with"
        )
    normal = library(lambda: normal_files(files, loaded, alone), f"{where}: the tokenizer")
    same = alone if normal["tokenizer.json"] == files.get("tokenizer.json") else None
    ours = Tokenizer.from_files(normal, where, same)
    came = probes.ask_ours(ours)
    expected = probes.ask_transformers(loaded, came)
    for kind, name in _KINDS.items():
        for question, want, got in probes.differences(kind, expected, came):
            raise InputError(
                f"{where}: {name}, which pocketphi does not know how to mend: {show(question, 200)} gives {show(got, 200)}, in "
                f"transformers {show(want, 200)}; simplify the tokenizer or the chat template"
            )
    made = expected.digests()
    vocabulary = digest(sorted(probes.vocabulary.items()))
    recorded = TextRecord(vocabulary, made["ids"], made["chats"], made["decoded"])
    notices = [*_changes(files, normal), *told, *_lacks(source.config, ours, probes, expected)]
    for reader in _readers(targets):
        with tempfile.TemporaryDirectory(prefix="pocketphi-") as name:
            write_files(Path(name), {**normal, **reader.settings()})
            differs = tuple(reader.differences(Path(name), loaded, probes.texts))
        recorded = replace(recorded, genai_differs=differs)
        notices += [reader.notice(differs, probes.texts)] if differs else []
    return ModelText(normal, notices, recorded)


def text_checks(folder: Path, config: ModelConfig, recorded: TextRecord | None) -> list[Check]:
    """The checks of a bundle's tokenizer files; none for a bundle without a tokenizer. Raises InputError for damaged ones.

    recorded: of its manifest
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return [Check("tokenizer files missing", 1, 0, "the model has a tokenizer")] if recorded else []
    ours, loaded = Tokenizer.load(folder), open_with_transformers(folder)
    probes = Probes(loaded)
    beyond = tokens_beyond(loaded, probes.vocabulary, config.vocab_size)
    checks = [_count("tokens beyond the embedding", [show(token) for _, token in beyond], config.vocab_size)]
    # before the first text, after which transformers has switched both off
    cuts = [name for name in ("truncation", "padding") if getattr(loaded.backend_tokenizer, name) is not None]
    checks.append(_count("tokenizer settings that cut or pad", cuts, 2))
    came = probes.ask_ours(ours)
    expected = probes.ask_transformers(loaded, came)
    for kind, name in _KINDS.items():
        wrong = [show(question) for question, _, _ in probes.differences(kind, expected, came)]
        checks.append(_count(name, wrong, len(getattr(expected, kind))))
    if recorded is None:  # each compile of such a model writes it
        checks.append(Check("answers that the manifest does not tell", 1, 0, "it has no 'text'; compile it again"))
    else:
        checks.append(_as_recorded(recorded, expected, probes))
    before = recorded.genai_differs if recorded else None
    for reader in _readers(TARGETS) if before is not None else []:
        known = len(before or ())
        differ = set(reader.differences(folder, loaded, probes.texts)) - set(before or ())
        wrong = [show(probes.texts[i]) for i in sorted(differ)]
        check = _count(f"texts that {reader.name} reads otherwise", wrong, len(probes.texts))
        checks.append(replace(check, detail=f"{check.detail}, {known} known since the compile") if known else check)
    return checks


def tokens_beyond(loaded: Any, vocabulary: Mapping[str, int], rows: int) -> list[tuple[int, str]]:
    """(id, token) that transformers' tokenizer can make and the embedding has no row for, the first id first."""
    made = {number: token for token, number in vocabulary.items() if number >= rows}
    after = loaded.backend_tokenizer.post_processor
    if after is not None:
        made = {**dict.fromkeys(_numbers(json.loads(after.__getstate__())), "of the post-processor"), **made}
    return sorted((number, token) for number, token in made.items() if number >= rows)


def _numbers(step: Any, named: str = "") -> set[int]:
    """The ids in a post-processor: `ids` of a template's tokens, the second of a pair of BERT's."""
    if isinstance(step, dict):
        return {number for name, value in step.items() for number in _numbers(value, name)}
    if isinstance(step, list):
        return {number for value in step for number in _numbers(value, named)}
    return {step} if isinstance(step, int) and named in ("ids", "sep", "cls") else set()


def _as_recorded(recorded: TextRecord, answers: Answers, probes: Probes) -> Check:
    """What transformers makes of the bundle's files is what it made of the source's."""
    wrong = [] if recorded.vocabulary == digest(sorted(probes.vocabulary.items())) else ["vocabulary"]
    for kind, made in answers.digests().items():
        pairs = itertools.zip_longest(getattr(recorded, kind), made)
        wrong += [f"{kind}[{i}]" for i, (was, now) in enumerate(pairs) if was != now]
    return _count(
        "answers that differ from those of the model's own files", wrong, sum(map(len, vars(answers).values()))
    )


def _changes(files: Mapping[str, bytes], normal: Mapping[str, bytes]) -> list[str]:
    """What the tokenizer.json of the bundle says otherwise than that of the model."""
    if "tokenizer.json" not in files:
        return ["tokenizer.json: made of tokenizer.model by transformers"]
    if normal["tokenizer.json"] == files["tokenizer.json"]:
        return []
    was, now = (parse_object(one["tokenizer.json"], "tokenizer.json") for one in (files, normal))
    found = [
        f"tokenizer.json: {name}, left behind by a training call, is switched off"
        for name in ("truncation", "padding")
        if was.get(name) is not None
    ]
    changed = [token["content"] for token in now["added_tokens"] if token not in was.get("added_tokens", ())]
    if changed:
        found.append(
            f"tokenizer.json: {len(changed)} tokens, first {show(changed[0])}, are as the files beside it say, "
            "which transformers believes"
        )
    return found


def _lacks(config: ModelConfig, ours: Tokenizer, probes: Probes, expected: Answers) -> list[str]:
    """What a user should know who wants to chat with the model."""
    found = []
    if not config.eos:
        found.append("no end token in config.json or generation_config.json: an answer ends where the cache is full")
    if ours.has_template and expected.chats[0] in (REFUSED, TOO_COSTLY):
        try:
            ours.encode_chat(probes.talks[0])
        except InputError as error:
            found.append(str(error))
    return found


def _readers(targets: Iterable[str]) -> list[TextReader]:
    """The tokenizers of these targets' own runtimes that can be asked here."""
    found = [find_target(name).text_reader() for name in targets]
    return [reader for reader in found if reader is not None and reader.installed()]


def _count(name: str, wrong: Sequence[str], of: int) -> Check:
    return Check(name, len(wrong), 0, f"first {wrong[0]}" if wrong else f"{of:,} compared")
