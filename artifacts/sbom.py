"""A bill of materials of a bundle (CycloneDX 1.6, JSON): the model, its files, and the libraries that wrote it."""

from __future__ import annotations

import uuid
from typing import Any

from pocketphi.artifacts.bundle import Bundle, file_digest
from pocketphi.artifacts.manifest import MANIFEST, AdapterRecord, Manifest, SwitchedRecord
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
    manifest, own = bundle.manifest, file_digest(bundle.path / MANIFEST)
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"pocketphi:{own}"))
    bom.metadata.timestamp = None
    model, sources, libraries = _components(manifest, own)
    bom.metadata.component = model
    bom.metadata.tools.components.update(libraries)
    bom.components.update(sources)
    bom.register_dependency(model, sources)
    return str(JsonV1Dot6(bom).output_as_string(indent=1)) + "\n"


def _components(manifest: Manifest, own: str) -> tuple[Any, list[Any], list[Any]]:
    """The bundle, a machine-learning model of files, each with its digest; the checkpoint that it was made of, by the digest of
    its tensors and tokenizer, and its adapters; the libraries. own: the manifest's digest."""
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    def hashed(digest: str, by: HashAlgorithm = HashAlgorithm.SHA_256) -> list[HashType]:
        return [HashType(alg=by, content=digest)]

    files = {MANIFEST: own, **{name: entry.sha256 for name, entry in manifest.files.items()}}
    model = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=manifest.source.model,
        version=(manifest.sha256 or "")[:12] or None,
        bom_ref="bundle",
        components=[
            Component(type=ComponentType.FILE, name=name, bom_ref=f"file:{name}", hashes=hashed(digest))
            for name, digest in files.items()
        ],
        properties=[
            Property(name="pocketphi:targets", value=" ".join(manifest.targets)),
            Property(name="pocketphi:recipe", value=manifest.recipe.described()),
            Property(name="pocketphi:parameters", value=str(manifest.model.parameters)),
        ],
    )
    source = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=manifest.source.model,
        bom_ref="source",
        hashes=hashed(manifest.source.blake3, HashAlgorithm.BLAKE3),
    )

    def adapter(one: AdapterRecord | SwitchedRecord, ref: str, **more: str) -> Any:
        said = {"weight": f"{one.weight:g}", **more}
        return Component(
            type=ComponentType.MACHINE_LEARNING_MODEL,
            name=one.name,
            bom_ref=ref,
            hashes=hashed(one.blake3, HashAlgorithm.BLAKE3),
            properties=[Property(name=f"pocketphi:{name}", value=value) for name, value in said.items()],
        )

    adapters = [adapter(one, f"adapter:{number}") for number, one in enumerate(manifest.source.adapters, 1)]
    switched = [adapter(one, f"switched:{one.name}", switched="yes") for one in manifest.adapters]
    libraries = [
        Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            bom_ref=f"pkg:{name}",
            purl=PackageURL("pypi", name=name, version=version),
        )
        for name, version in {"pocketphi": manifest.pocketphi, **manifest.versions}.items()
    ]
    return model, [source, *adapters, *switched], libraries
