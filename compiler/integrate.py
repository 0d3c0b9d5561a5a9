"""Write code that runs a bundle in an app: a Swift package or a Gradle module."""

from __future__ import annotations

import json
import keyword
import re
from pathlib import Path
from typing import Any

from pocketphi.artifacts.bundle import Bundle, file_digest
from pocketphi.artifacts.folder import new_folder
from pocketphi.artifacts.kits.chat_format import read_chat_format
from pocketphi.artifacts.kits.documents import document_values
from pocketphi.artifacts.kits.fill import fill
from pocketphi.artifacts.kits.reference import ChatFormat, Messages
from pocketphi.artifacts.kits.vectors import make_vectors
from pocketphi.artifacts.manifest import MANIFEST
from pocketphi.compiler import __version__
from pocketphi.compiler.footprint import bundle_footprint
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.reading import named
from pocketphi.graph.tokenizer import Tokenizer
from pocketphi.targets import all_targets, packages_of
from pocketphi.targets.target import Kit, Target

DEFAULT_CONTEXT = 2048
_LONGEST = 64
"""Characters of a name: of a folder, a class and a library."""


def integrate(
    path: Path,
    platform: str,
    out: Path,
    runtime: str | None = None,
    name: str | None = None,
    package: str | None = None,
    context: int | None = None,
) -> list[str]:
    """Write a kit for a bundle; returns its files.

    runtime: the first that the bundle has files for, if None; name: of a Swift module; package: of a Kotlin one; context:
    tokens of the cache, where the app chooses them. Raises InputError for a bundle without such files, without a tokenizer,
    or with a chat template that does more than join messages.
    """
    bundle = Bundle.open(path)
    target, kit = _choose(bundle, platform, runtime)
    for names in ((target.weights_file,), *target.app_files):
        file = next((name for name in names if name in bundle.manifest.files), names[0])
        if bundle.file(file).stat().st_size == 0:
            raise InputError(f"{bundle.path / file}: is empty; compile it again")
    module = name or _module_name(bundle.manifest.source.model)
    package = package or f"com.example.{module.lower()}"
    _check_names(module, package)
    tokenizer = Tokenizer.load(path)
    if tokenizer.tells_time:
        raise InputError(
            "the chat template writes the date of the day, which the kits cannot do without Jinja; simplify it"
        )
    chat = read_chat_format(lambda messages: _render(tokenizer, messages), tokenizer.template_words)
    values = _values(bundle, target, kit, chat, tokenizer, context) | {"name": module, "package": package}
    if out.exists():
        raise InputError(f"{out}: exists; choose another -o")
    written = []
    with new_folder(out, 0) as folder:
        vectors = make_vectors(chat, lambda messages: _render(tokenizer, messages))
        text = json.dumps(vectors, ensure_ascii=False, separators=(",", ":")) + "\n"
        for file, content in [*fill(kit.folders, values), (kit.vectors.replace("KIT", module), text)]:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(content, "utf-8")
            written.append(file)
        if kit.export is not None:
            with packages_of(target):
                written += kit.export(folder)
    return sorted(written)


def kits_of(platform: str) -> list[tuple[Target[Any], Kit]]:
    """The kits for a platform with their targets, those that are taken first before others."""
    found = [(target, kit) for target in all_targets() for kit in target.kits if kit.platform == platform]
    return sorted(found, key=lambda pair: pair[1].rank)


def _choose(bundle: Bundle, platform: str, runtime: str | None) -> tuple[Target[Any], Kit]:
    every = kits_of(platform)
    kits = [(target, kit) for target, kit in every if runtime in (None, kit.runtime)]
    if not kits:
        known = ", ".join(kit.runtime for _, kit in every)
        raise InputError(f"--runtime {runtime}: not on {platform}; expected one of {known}")
    held = bundle.manifest.targets
    for target, kit in kits:
        if target.name in held:
            return target, kit
    wanted = " or ".join(f"--target {target.name}" for target, _ in kits)
    raise InputError(f"{bundle.path}: holds {', '.join(held)}, nothing for {platform}; compile it with {wanted}")


def _values(
    bundle: Bundle, target: Target[Any], kit: Kit, chat: ChatFormat, tokenizer: Tokenizer, context: int | None
) -> dict[str, Any]:
    manifest, config = bundle.manifest, read_config(bundle.path)
    try:
        of_target = target.kit_values(manifest.targets[target.name])
    except InputError as error:
        raise InputError(f"{bundle.path}: {error}") from None
    longest = manifest.context(target.name)
    if context is not None and not 2 <= context <= longest:
        raise InputError(f"--context {context}: {bundle.path} holds up to {longest} tokens")
    shipped = manifest.prefix.tokens if manifest.prefix else 0
    if context is not None and context <= shipped + 1:
        raise InputError(
            f"--context {context}: the bundle's prefix alone has {shipped} tokens, expected {shipped + 2} or more"
        )
    tokens = context or min(longest, DEFAULT_CONTEXT + shipped)
    return {
        "runtime": kit.runtime,
        "chat": chat,
        "source": manifest.source.model,
        "version": __version__,
        "manifest_sha256": file_digest(bundle.path / MANIFEST),
        "bundle_bytes": manifest.bytes,
        "memory_bytes": bundle_footprint(bundle, target.name, context=tokens).total(),
        "context": tokens,
        "model_context": manifest.model.context,
        "chunk": 0,
        "rows": 0,
        "ring": 0,
        "long_rope_after": manifest.model.long_rope_after,
        "stops": _stops(config, chat, tokenizer),
        "recipe": manifest.recipe.described(),
        **document_values(),
        **(kit.values or {}),
        **of_target,
    }


def _stops(config: ModelConfig, chat: ChatFormat, tokenizer: Tokenizer) -> list[int]:
    """The model's end tokens, and the token with which the template closes an assistant's message, if it is one."""
    closing = tokenizer.special_tokens(chat.roles["assistant"][1].strip())
    return sorted({*config.eos, *closing[:1]})


def _render(tokenizer: Tokenizer, messages: Messages) -> str:
    return tokenizer.render_chat([{"role": role, "content": content} for role, content in messages])


def _module_name(model: str) -> str:
    words = re.findall(r"[A-Za-z0-9]+", model.removesuffix(".gguf"))
    joined = "".join(word[0].upper() + word[1:] for word in words)
    return (joined if joined[:1].isalpha() else f"Model{joined}")[:_LONGEST]


def _check_names(module: str, package: str) -> None:
    if not re.fullmatch(r"[A-Z][A-Za-z0-9_]*", module) or len(module) > _LONGEST:
        raise InputError(f"--name {named(module)}: expected a name like PhiMini: letters and digits, a capital first")
    parts = package.split(".")
    if (
        len(parts) < 2
        or len(package) > 3 * _LONGEST
        or any(not re.fullmatch(r"[a-z][a-z0-9_]*", part) or keyword.iskeyword(part) for part in parts)
    ):
        raise InputError(f"--package {named(package)}: expected a name like com.example.phi")
