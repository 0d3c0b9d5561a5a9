"""Tokenizer files as transformers reads them: loaded with it, and written so that every other reader finds the same in them.

What a folder says about a token may stand in five files, which contradict each other in many published models. transformers
merges them when it loads; here the outcome is written into `tokenizer.json`, which all readers take.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import parse_object
from pocketphi.graph.tokenizer import named_tokens, quiet_library, read_tokenizer
from pocketphi.graph.writing import write_files

Files = Mapping[str, bytes]

_SOURCES = ("tokenizer.json", "tokenizer.model")


def open_with_transformers(folder: Path) -> Any:
    """The tokenizer of a folder, as `AutoTokenizer` makes it. Raises InputError with what it says where it refuses."""
    from transformers import AutoTokenizer

    try:
        with quiet_library():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        said = " ".join(str(error).split())[:300]
        raise InputError(f"transformers cannot load the tokenizer ({type(error).__name__}: {said})") from None


def load_files(files: Files, settings: Mapping[str, Any], where: str) -> tuple[Any, tokenizers.Tokenizer | None]:
    """transformers' tokenizer of these files, and what `tokenizer.json` alone says. Where there is none, transformers converts
    others if it can. settings: the model's `config.json`, whose type may decide about the tokenizer's class.

    Raises InputError for files that it, or we, cannot read.
    """
    alone = None
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if name in files:
            parse_object(files[name], f"{where}: {name}")
    if not any(name in files for name in _SOURCES):
        came = ", ".join(sorted(files))
        raise InputError(
            f"{where}: no tokenizer.json, got {came}, which transformers does not read for such a model; "
            "save the tokenizer with save_pretrained of its fast class"
        )
    if "tokenizer.json" in files:
        alone = read_tokenizer(files["tokenizer.json"], f"{where}: tokenizer.json")
    elif not _has_sentencepiece():
        raise InputError(
            f"{where}: no tokenizer.json, only tokenizer.model, which is converted with the package sentencepiece: "
            "install it, or save the tokenizer with save_pretrained"
        )
    with tempfile.TemporaryDirectory(prefix="pocketphi-") as name:
        write_files(Path(name), files)
        (Path(name) / "config.json").write_text(json.dumps(settings), "utf-8")
        try:
            return open_with_transformers(Path(name)), alone
        except InputError as error:
            raise InputError(f"{where}: {str(error).replace(name, where)}") from None


def keep_spaces(loaded: Any) -> bool:
    """Whether transformers would take the space before punctuation out of what it decodes, which is switched off: bytes and
    words then no longer are what the model made. It does so for other kinds of tokenizers than byte-pair merges."""
    kind = type(loaded.backend_tokenizer.model).__name__
    forced = loaded.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
    cleans = bool(loaded.clean_up_tokenization_spaces) and (kind != "BPE" or bool(forced))
    loaded.clean_up_tokenization_spaces = False
    return cleans


def normal_files(files: Files, loaded: Any, alone: tokenizers.Tokenizer | None) -> dict[str, bytes]:
    """The files that a bundle holds: the same to every reader as `loaded` is to transformers.

    loaded, alone: of `load_files`. A file that says so already keeps its bytes.
    """
    backend = loaded.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    config = parse_object(files.get("tokenizer_config.json", b"{}"), "tokenizer_config.json")
    template = chat_template(loaded)
    said = {**_normal_config(config, loaded), **({} if template is None else {"chat_template": template})}
    written = _written(backend)
    same = alone is not None and alone.to_str() == written
    made = {"tokenizer.json": files["tokenizer.json"] if same else written.encode()}
    same = said == config and "tokenizer_config.json" in files
    made["tokenizer_config.json"] = files["tokenizer_config.json"] if same else _json(said)
    if "special_tokens_map.json" in files:
        tokens = parse_object(files["special_tokens_map.json"], "special_tokens_map.json")
        named = loaded.special_tokens_map
        agrees = named_tokens(tokens) == {name: named[name] for name in named if name in tokens}
        made["special_tokens_map.json"] = files["special_tokens_map.json"] if agrees else _json(named)
    if "tokenizer.model" in files:
        made["tokenizer.model"] = files["tokenizer.model"]
    if template is not None and any(name.endswith(".jinja") for name in files):
        made["chat_template.jinja"] = template.encode()
    return made


def chat_template(loaded: Any) -> str | None:
    """The template that transformers takes for a chat without tools, if there is one."""
    try:
        found = loaded.get_chat_template()
    except (ValueError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _normal_config(config: Mapping[str, Any], loaded: Any) -> dict[str, Any]:
    """`tokenizer_config.json` with the special tokens, start and end token, and flags that transformers came to."""
    said = {**config, **_start_and_end(config, loaded)}
    said.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    said["clean_up_tokenization_spaces"] = (
        False  # else swift-transformers takes out spaces, also where the key is missing
    )
    known = named_tokens(config)
    extra = config.get("extra_special_tokens")
    inside = extra if isinstance(extra, dict) else {}
    for name, token in loaded.special_tokens_map.items():
        if known.get(name) != token and name not in inside:
            said[name] = token
    if "added_tokens_decoder" in config:
        said["added_tokens_decoder"] = {
            str(number): {"content": token.content, **{flag: getattr(token, flag) for flag in _FLAGS}}
            for number, token in sorted(loaded.added_tokens_decoder.items())
        }
        if said["added_tokens_decoder"] == config["added_tokens_decoder"]:
            said["added_tokens_decoder"] = config["added_tokens_decoder"]
    return said


_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")


def _start_and_end(config: Mapping[str, Any], loaded: Any) -> dict[str, bool]:
    """What tokenizer.json itself adds, where the configuration says something else; other readers would believe it."""
    ids, plain = loaded("a").input_ids, loaded("a", add_special_tokens=False).input_ids
    at = next((i for i in range(len(ids)) if ids[i : i + len(plain)] == plain), 0)
    does = {"add_bos_token": at > 0, "add_eos_token": at + len(plain) < len(ids)}
    return {name: adds for name, adds in does.items() if bool(config.get(name, False)) != adds}


def _written(backend: Any) -> str:
    """The backend as a tokenizer.json. A token that was special once is left out of texts whatever its flag was set to later;
    written, the flag is all there is."""
    text = str(backend.to_str())
    unsure = [number for number, token in backend.get_added_tokens_decoder().items() if not token.special]
    left_out = {n for n in unsure if backend.decode([n], skip_special_tokens=False) and not backend.decode([n])}
    if not left_out:
        return text
    data = json.loads(text)
    for token in data["added_tokens"]:
        token["special"] |= token["id"] in left_out
    return json.dumps(data, ensure_ascii=False)


def _has_sentencepiece() -> bool:
    import importlib.util

    return importlib.util.find_spec("sentencepiece") is not None


def _json(data: object) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
