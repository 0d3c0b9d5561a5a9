"""Kits of a bundle that has the sample's tokenizer and template, and nothing to run: the kits never look into the model."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from manifests import a_manifest

from pocketphi.artifacts.bundle import write_manifest
from pocketphi.compiler.integrate import kits_of
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.gguf_file import GgufFile, sample_path
from pocketphi.targets import find_target

TARGETS: dict[str, dict[str, Any]] = {
    "ort-mobile": {},
    "coreml": {"context": 1024, "chunk": 64, "cache_rows": 1024, "flavor": "functions"},
    "tvm-arm": {},
}
STUBS = Path(__file__).parent.parent / "kits" / "stubs"
ANDROID = Path(__file__).parents[2] / "build/android/android.jar"
"""Android's interfaces, of API 23: the newest that Debian has."""
JARS = Path("/usr/share/java")
NEEDED = [
    "junit4.jar",
    "hamcrest.jar",
    "com.android.json.jar",
    "kotlin-stdlib.jar",
    "kotlin-stdlib-jdk7.jar",
    "kotlinx-coroutines-core.jar",
    "atomicfu.jar",
    "asm.jar",
    "sqlite-jdbc.jar",
]


@functools.cache
def sample_files() -> tuple[dict[str, bytes], ModelConfig]:
    """Tokenizer files and config of the sample."""
    source = GgufFile(sample_path())
    return source.tokenizer_files(), source.config


def make_bundle(folder: Path, targets: dict[str, Any], **changes: Any) -> Path:
    """changes: of the model's entry in the manifest."""
    files, config = sample_files()
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    for target in targets:
        chosen = find_target(target)
        for name in (chosen.weights_file, *(names[0] for names in chosen.app_files)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(bytes(1000))
    model = {"parameters": config.parameters, "context": config.max_position, **changes}
    write_manifest(folder, a_manifest(targets, model=model))
    return folder


KITS = [kit for platform in ("ios", "android") for _, kit in kits_of(platform)]


def sources_of(kit: Path) -> list[Path]:
    """All that a kit has, with its tests and its example, and stand-ins for what Debian has not or has too old."""
    return [
        *(kit / folder for folder in ("src/main/kotlin", "src/test/kotlin", "example")),
        STUBS / "flow",
        STUBS / "compose",
        STUBS / "sqlite",
    ]
