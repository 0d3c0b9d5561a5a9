"""A bill of materials of a bundle (CycloneDX 1.6, JSON): the model, its files, and the libraries that wrote it."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from pocketphi.artifacts.bundle import Bundle, file_digest
from pocketphi.artifacts.manifest import MANIFEST, Manifest
from pocketphi.graph.errors import InputError


def sbom(bundle: Bundle) -> str:
    """JSON text, the same for the same bundle: the serial number is the manifest's digest, and there is no time in it.

    The digests of files are the manifest's: open the bundle with `check`, so that the files have them. Raises InputError
    naming the extra to install where cyclonedx-python-lib is missing.
    """
    try:
        from cyclonedx.model.bom import Bom
        from cyclonedx.output.json import JsonV1Dot6
    except ModuleNotFoundError:
        raise InputError(
            "a bill of materials needs the package 'cyclonedx-python-lib'; install it with: pip install 'pocketphi[build]'"
        ) from None
    folder, manifest = bundle.path, bundle.manifest
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"pocketphi:{file_digest(folder / MANIFEST)}"))
    bom.metadata.timestamp = None
    model, libraries = _model(folder, manifest), _libraries(manifest)
    bom.metadata.component = model
    bom.metadata.tools.components.update(libraries)
    source = _source(manifest)
    bom.components.add(source)
    bom.register_dependency(model, [source])
    return str(JsonV1Dot6(bom).output_as_string(indent=1)) + "\n"


def _model(folder: Path, manifest: Manifest) -> Any:
    """The bundle: a machine-learning model of files, each with its digest."""
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType

    files = {MANIFEST: file_digest(folder / MANIFEST)}
    files |= {name: entry.sha256 for name, entry in manifest.files.items()}
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=manifest.source.model,
        version=(manifest.sha256 or "")[:12] or None,
        bom_ref="bundle",
        components=[
            Component(type=ComponentType.FILE, name=name, bom_ref=f"file:{name}", hashes=[_sha256(digest)])
            for name, digest in files.items()
        ],
        properties=[
            Property(name="pocketphi:targets", value=" ".join(manifest.targets)),
            Property(name="pocketphi:recipe", value=manifest.recipe.described()),
            Property(name="pocketphi:parameters", value=str(manifest.model.parameters)),
        ],
    )


def _source(manifest: Manifest) -> Any:
    """The checkpoint that the bundle was made of, by the digest of its tensors and tokenizer."""
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    digest = HashType(alg=HashAlgorithm.BLAKE3, content=manifest.source.blake3)
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL, name=manifest.source.model, bom_ref="source", hashes=[digest]
    )


def _libraries(manifest: Manifest) -> list[Any]:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    versions = {"pocketphi": manifest.pocketphi, **manifest.versions}
    return [
        Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            bom_ref=f"pkg:{name}",
            purl=PackageURL("pypi", name=name, version=version),
        )
        for name, version in versions.items()
    ]


def _sha256(digest: str) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType

    return HashType(alg=HashAlgorithm.SHA_256, content=digest)
