"""Write code that runs a bundle in an app: a Swift package or a Gradle module."""

from __future__ import annotations

import json
import keyword
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketphi.artifacts.bundle import MANIFEST, Bundle, file_digest
from pocketphi.artifacts.folder import new_folder
from pocketphi.artifacts.kits.chat_format import read_chat_format
from pocketphi.artifacts.kits.fill import fill
from pocketphi.artifacts.kits.reference import ChatFormat, Messages
from pocketphi.artifacts.kits.vectors import make_vectors
from pocketphi.compiler import __version__
from pocketphi.compiler.footprint import bundle_footprint
from pocketphi.compiler.targets import missing_extra
from pocketphi.graph.config import ModelConfig, read_config
from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import named
from pocketphi.graph.tokenizer import Tokenizer


@dataclass(frozen=True)
class Kit:
    """platform, runtime: as the command line names them; target: whose files it runs; folders: of templates."""

    platform: str
    runtime: str
    target: str
    folders: tuple[str, ...]
    vectors: str


KITS = [
    Kit("ios", "coreml", "coreml", ("ios", "ios-coreml"), "Tests/KITTests/vectors.json"),
    Kit("ios", "genai", "ort-mobile", ("ios", "ios-genai"), "Tests/KITTests/vectors.json"),
    Kit("android", "genai", "ort-mobile", ("android", "android-genai"), "src/test/resources/vectors.json"),
    Kit("android", "tvm", "tvm-arm", ("android", "android-jni"), "src/test/resources/vectors.json"),
]
PLATFORMS = tuple(dict.fromkeys(kit.platform for kit in KITS))
DEFAULT_CONTEXT = 2048
_GENAI, _ORT = "0.18.0", "1.32.0"
_RUNTIME = "src/main/cpp/runtime"
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
    kit = _choose(bundle, platform, runtime)
    module = name or _module_name(bundle.manifest.source.model)
    package = package or f"com.example.{module.lower()}"
    _check_names(module, package)
    tokenizer = Tokenizer.load(path)
    if tokenizer.tells_time:
        raise InputError(
            "the chat template writes the date of the day, which the kits cannot do without Jinja; simplify it"
        )
    chat = read_chat_format(lambda messages: _render(tokenizer, messages))
    values = _values(bundle, kit, chat, tokenizer, context) | {"name": module, "package": package}
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
        if kit.target == "tvm-arm":
            written += _runtime_sources(folder)
    return sorted(written)


def _runtime_sources(folder: Path) -> list[str]:
    """The TVM runtime with its C interface, for the app's own compiler."""
    try:
        from pocketphi.targets.tvm_arm.build_runtime import export_sources
    except ModuleNotFoundError as error:
        raise missing_extra("tvm-arm", error) from None
    export_sources(folder / _RUNTIME)
    return [str(path.relative_to(folder)) for path in (folder / _RUNTIME).rglob("*") if path.is_file()]


def _choose(bundle: Bundle, platform: str, runtime: str | None) -> Kit:
    kits = [kit for kit in KITS if kit.platform == platform and runtime in (None, kit.runtime)]
    if not kits:
        known = ", ".join(kit.runtime for kit in KITS if kit.platform == platform)
        raise InputError(f"--runtime {runtime}: not on {platform}; expected one of {known}")
    held = bundle.manifest.targets
    for kit in kits:
        if kit.target in held:
            if held[kit.target].flavor == "swift-transformers":
                raise InputError(
                    f"{bundle.path}: its package is for swift-transformers; compile with --flavor functions"
                )
            return kit
    wanted = " or ".join(f"--target {kit.target}" for kit in kits)
    raise InputError(f"{bundle.path}: holds {', '.join(held)}, nothing for {platform}; compile it with {wanted}")


def _values(bundle: Bundle, kit: Kit, chat: ChatFormat, tokenizer: Tokenizer, context: int | None) -> dict[str, Any]:
    manifest, config = bundle.manifest, read_config(bundle.path)
    details = manifest.targets[kit.target]
    longest = manifest.context(kit.target)
    if context is not None and not 2 <= context <= longest:
        raise InputError(f"--context {context}: {bundle.path} holds up to {longest} tokens")
    tokens = context or min(longest, DEFAULT_CONTEXT)
    return {
        "runtime": kit.runtime,
        "chat": chat,
        "source": manifest.source.model,
        "version": __version__,
        "manifest_sha256": file_digest(bundle.path / MANIFEST),
        "bundle_bytes": manifest.bytes,
        "memory_bytes": bundle_footprint(bundle, kit.target, context=tokens).total(),
        "context": tokens,
        "model_context": manifest.model.context,
        "chunk": details.chunk or 0,
        "rows": details.cache_rows or 0,
        "long_rope_after": manifest.model.long_rope_after,
        "stops": _stops(config, chat, tokenizer),
        "recipe": manifest.recipe.described(),
        "genai_version": _GENAI,
        "ort_version": _ORT,
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
