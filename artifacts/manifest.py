"""What a bundle's `manifest.json` says, as one typed value: read from the file, written from the same.

A field that has a default is left out of the file where it holds nothing, so that a manifest may gain fields and those written
before keep their bytes. Every other field has to be there.
"""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import FORMATS, Affine
from pocketphi.graph.lora.named import NAME
from pocketphi.graph.reading import named, parse_object, show, typed

FORMAT = 2
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9A-Za-z]{1,40}){0,9}([-+][0-9A-Za-z._-]{1,60})?")
_LIBRARY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")
_MOST = 1 << 63
_OF_ANY_TARGET = ("operators", "notes", "weights")


@dataclass(frozen=True)
class FileRecord:
    """A file of the bundle: its size, and its SHA-256 in 64 lower-case hex digits."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class AdapterRecord:
    """An adapter that was merged into the weights. name: of its folder; blake3: digest of its two files; weight: what its
    change was multiplied with."""

    name: str
    blake3: str
    weight: float


@dataclass(frozen=True)
class SwitchedRecord:
    """An adapter in a file of its own, which an app switches. name: of the file, without its ending; blake3: digest of the two
    files that it was made of; weight: what its change was multiplied with; ranks: by the weight that it changes; values:
    digest of its factors, whatever file holds them; bytes: of these in float32."""

    name: str
    blake3: str
    weight: float
    ranks: dict[str, int]
    values: str
    bytes: int


@dataclass(frozen=True)
class SourceRecord:
    """What was compiled. model: its name; blake3: digest of its tensors and tokenizer; notices: what was found in it that a
    user should know; adapters: merged into its tensors, in this order."""

    model: str
    blake3: str
    notices: tuple[str, ...] = ()
    adapters: tuple[AdapterRecord, ...] = ()


@dataclass(frozen=True)
class RuleRecord:
    """Weights whose names a pattern (`fnmatch`) matches get this format from this recipe."""

    pattern: str
    format: str
    recipe: str
    parameters: dict[str, int | bool]


@dataclass(frozen=True)
class ExpectedRecord:
    """What rules that were chosen for a budget are expected to cost. kl: nats a token to the float model."""

    budget: str
    kl: float


@dataclass(frozen=True)
class RecipeRecord:
    """The options that decide how weights are quantized; see `compiler.options.CompileOptions`.

    rules: which weight gets which format, the first that matches; none where the other fields say it
    expected: where they were chosen for a budget
    smooth: norms gave off factors of their channels to the matrices behind them
    calibration: `default`, the SHA-256 of a text, or None for a recipe that has no use for one
    learned: tokens of it that scales were learned on, after rounding
    """

    name: str
    block: int
    symmetric: bool
    palette: int | None
    embedding_bits: int
    head_bits: int
    context: int | None
    all_logits: bool
    accuracy_level: int
    calibration: str | None
    calibration_tokens: int | None
    rules: tuple[RuleRecord, ...] = ()
    expected: ExpectedRecord | None = None
    format: str = "int4"
    scale_bits: int = 16
    smooth: bool = False
    learned: int | None = None

    def described(self) -> str:
        """How weights are quantized, in a few words."""
        if self.rules:
            formats = " and ".join(dict.fromkeys(rule.format for rule in self.rules))
            kept = self.name == "keep"
            mixed = f"a mix of {formats} by {len(self.rules)} rules{self._learned}"
            return f"{formats}, as the file has them" if kept else mixed
        if self.palette:
            how = f"palettes of {self.palette} rows"
        else:
            form = FORMATS.get(self.format)
            zeros = "symmetric" if self.symmetric else "asymmetric"
            kind = "with offsets" if form and issubclass(form, Affine) else zeros
            how = f"block {self.block or 'row'}, {kind}"
            how += f", scales of {self.scale_bits} bits" if self.scale_bits != 16 else ""
        eight = [what for what, bits in (("embedding", self.embedding_bits), ("head", self.head_bits)) if bits == 8]
        return f"{self.format} {self.name}, {how}" + (f", int8 {' and '.join(eight)}" if eight else "") + self._learned

    @property
    def _learned(self) -> str:
        return ", learned scales" if self.learned else ""


@dataclass(frozen=True)
class ModelRecord:
    """context: tokens; long_rope_after: tokens after which LongRoPE changes its factors."""

    parameters: int
    layers: int
    context: int
    sliding_window: int | None
    long_rope_after: int | None
    kv_cache_bytes_per_token: int


@dataclass(frozen=True)
class PassRecord:
    """What a pass did: rule → how often; (place, reason) of what it left alone; dead nodes deleted."""

    name: str
    applied: dict[str, int]
    refused: tuple[tuple[str, str], ...]
    removed: int


@dataclass(frozen=True, kw_only=True)
class TargetRecord:
    """What was written for a target. operators: of its own → count; notes: for the user; weights: name → BLAKE3 digest of
    the canonical bytes; details: what else the target has to say of itself, which stands between these in the file."""

    operators: dict[str, int]
    notes: tuple[str, ...]
    details: dict[str, Any]
    weights: dict[str, str]

    @property
    def context(self) -> int | None:
        """Tokens that its files hold, where they have a limit of their own."""
        return self.details.get("context")

    @property
    def kv_cache_bytes_per_token(self) -> int | None:
        """Where it is not the model's."""
        return self.details.get("kv_cache_bytes_per_token")

    def as_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {"operators": self.operators, "notes": list(self.notes), **self.details, "weights": self.weights}


@dataclass(frozen=True)
class TextRecord:
    """Digests of what transformers answered for the tokenizer of the model's own files, and which texts onnxruntime-genai read
    otherwise, None where it was not asked."""

    vocabulary: str
    ids: tuple[str, ...]
    chats: tuple[str, ...]
    decoded: tuple[str, ...]
    genai_differs: tuple[int, ...] | None = None


def vocabulary_of(text: TextRecord | None) -> str:
    """The digest of a tokenizer's tokens and their numbers, "" where there is no tokenizer."""
    return text.vocabulary if text else ""


@dataclass(frozen=True)
class PrefixRecord:
    """What an app's prompts begin with. tokens: how many; computed_on: by target, whose kernels computed their cache."""

    tokens: int
    computed_on: dict[str, str]


@dataclass(frozen=True)
class CheckRecord:
    """One claim of a verification, with what was measured; see `targets.base.Check`."""

    name: str
    measured: float
    bound: int | float
    ok: bool
    detail: str


@dataclass(frozen=True)
class VerificationRecord:
    """The checks of a verification. ok: None where none failed, but not all could be run, for this reason; where all were met,
    the reason is what a user has to know nevertheless; quantization_error: `kl`, `top1` and `tokens`, with a reference."""

    ok: bool | None
    checks: tuple[CheckRecord, ...]
    quantization_error: dict[str, float] | None
    reason: str | None = None

    def as_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return dict(_plain(self))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """versions: of libraries that decided the bytes; operators: of the graph → count; targets, files: by name.

    verification: None where there was none. text: digests of what a reader has to make of the tokenizer files.
    adapters: that an app may switch, beside those that were merged into the source.
    prefix: None where a bundle ships none.
    sha256: of the bytes before it, None in a manifest without a seal.
    """

    format: int
    pocketphi: str
    versions: dict[str, str]
    source: SourceRecord
    recipe: RecipeRecord
    model: ModelRecord
    passes: tuple[PassRecord, ...]
    operators: dict[str, int]
    targets: dict[str, TargetRecord]
    verification: VerificationRecord | None
    text: TextRecord | None = None
    adapters: tuple[SwitchedRecord, ...] = ()
    prefix: PrefixRecord | None = None
    files: dict[str, FileRecord]
    sha256: str | None = None

    @property
    def switched(self) -> tuple[str, ...]:
        """The names of the adapters that an app may switch."""
        return tuple(one.name for one in self.adapters)

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(entry.bytes for entry in self.files.values())

    @property
    def checks(self) -> tuple[CheckRecord, ...]:
        """Those of the verification; none where there was none."""
        return self.verification.checks if self.verification else ()

    @property
    def verified(self) -> bool:
        """Whether every check was run and met."""
        return self.verification is not None and self.verification.ok is True

    def context(self, target: str | None = None) -> int:
        """Tokens that the files of a target hold, the first if None: its own limit where it has one, the model's otherwise."""
        own = self.targets[target or next(iter(self.targets))].context
        return self.model.context if own is None else own

    def as_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        return dict(_plain(self))


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """A manifest from the bytes of its file. Raises InputError naming the first place that is not as it should be."""
    where = f"{path}: damaged"
    data = parse_object(content, where)
    if "format" in data and data["format"] != FORMAT:
        raise InputError(
            f"{path.parent}: bundle format {show(data['format'])}, this pocketphi reads {FORMAT}; compile it again"
        )
    for place, number in _whole_numbers(data, ""):
        if not 0 <= number < _MOST:
            raise InputError(f"{where}: {named(place)} is {show(number)}, expected a count")
    targets = data.get("targets")
    if isinstance(targets, dict):
        data = {
            **data,
            "targets": {name: _target(entry, f"{where}: targets.{named(name)}") for name, entry in targets.items()},
        }
    manifest = typed(Manifest, data, where)
    _check_names(manifest.files, where)
    for name, entry in manifest.files.items():
        if not _DIGEST.fullmatch(entry.sha256):
            raise InputError(f"{where}: files.{name}.sha256 is {show(entry.sha256)}, expected 64 lower-case hex digits")
    for name in manifest.versions:
        if not _LIBRARY.fullmatch(name):
            raise InputError(f"{where}: versions: names {show(name)}, which is no name of a library")
    for place, problem in _odd_words(manifest):
        raise InputError(f"{where}: {place} {problem}")
    odd = [name for name in manifest.targets if named(name) != name or not name]
    if odd or not manifest.targets:
        raise InputError(f"{where}: targets: names {show(odd[0]) if odd else 'none'}")
    return manifest


def _odd_words(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(place, what is wrong) of texts and numbers that say nothing, whatever the files are."""
    for name, version in {"pocketphi": manifest.pocketphi, **manifest.versions}.items():
        if not _VERSION.fullmatch(version):
            yield name if name == "pocketphi" else f"versions.{name}", f"is {show(version)}, expected a version"
    digests = {"source.blake3": manifest.source.blake3}
    digests |= {f"source.adapters.{i}.blake3": one.blake3 for i, one in enumerate(manifest.source.adapters)}
    for i, switched in enumerate(manifest.adapters):
        digests |= {f"adapters.{i}.blake3": switched.blake3, f"adapters.{i}.values": switched.values}
        if not NAME.fullmatch(switched.name) or switched.name.endswith("."):
            yield f"adapters.{i}.name", f"is {show(switched.name)}, which is no name of a file"
        if not switched.ranks or 0 in switched.ranks.values():
            yield f"adapters.{i}.ranks", "are none, or one is 0"
    names = [one.name.casefold() for one in manifest.adapters]
    if len(set(names)) < len(names):
        yield "adapters", "has two of one name"
    if manifest.recipe.calibration not in (None, "default"):
        digests["recipe.calibration"] = str(manifest.recipe.calibration)
    for place, digest in digests.items():
        if not _DIGEST.fullmatch(digest):
            yield place, f"is {show(digest)}, expected 64 lower-case hex digits"
    numbers = {f"source.adapters.{i}.weight": one.weight for i, one in enumerate(manifest.source.adapters)}
    numbers |= {f"adapters.{i}.weight": one.weight for i, one in enumerate(manifest.adapters)}
    if manifest.recipe.expected:
        numbers["recipe.expected.kl"] = manifest.recipe.expected.kl
    for place, number in numbers.items():
        if not math.isfinite(number) or (number < 0 and place == "recipe.expected.kl"):
            yield place, f"is {show(number)}, expected a number"
    if manifest.recipe.calibration_tokens == 0:
        yield "recipe.calibration_tokens", "is 0, expected a positive number"
    verification = manifest.verification
    if verification:
        for i, check in enumerate(verification.checks):
            within = check.measured <= float(f"{check.bound:.2g}")  # what was measured is written with two digits
            if check.ok and not within:
                yield f"verification.checks.{i}", f"is ok with {show(check.measured)} over {show(check.bound)}"
            if verification.ok and not check.ok:
                yield "verification.ok", f"is true, though {show(check.name)} failed"


def _target(entry: object, where: str) -> object:
    """A target's entry with its details apart."""
    if not isinstance(entry, dict):
        return entry
    own = {key: held for key, held in entry.items() if key in _OF_ANY_TARGET}
    details = {key: held for key, held in entry.items() if key not in _OF_ANY_TARGET}
    for key in ("context", "kv_cache_bytes_per_token"):
        if key in details and (isinstance(details[key], bool) or not isinstance(details[key], int)):
            raise InputError(f"{where}.{key} is {show(details[key])}, expected a count")
    return {**own, "details": details}


def _check_names(names: Mapping[str, object], where: str) -> None:
    """Raise InputError for a name that a phone's file system, or this one, would take for another file."""
    seen: dict[str, str] = {}
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"{where}: names {show(name)}, which lies outside the bundle")
        if not name.isprintable() or str(path) != name or name == "." or len(name.encode()) > 1024:
            raise InputError(f"{where}: names {show(name)}, which is no name of a file")
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise InputError(f"{where}: names {show(other)} and {show(name)}, which are one file on some systems")


def _whole_numbers(value: object, place: str) -> Iterator[tuple[str, int]]:
    """Every whole number of a JSON value, with where it stands."""
    if isinstance(value, dict):
        for key, held in value.items():
            yield from _whole_numbers(held, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, held in enumerate(value):
            yield from _whole_numbers(held, f"{place}.{index}")
    elif isinstance(value, int) and not isinstance(value, bool):
        yield place, value


def _plain(value: Any) -> Any:
    """A record as JSON holds it, without the fields that hold nothing."""
    if isinstance(value, dict):
        return {key: _plain(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(held) for held in value]
    if isinstance(value, TargetRecord):
        return value.as_json()
    if not dataclasses.is_dataclass(value):
        return value
    held = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {
        field.name: _plain(one)
        for field, one in held.items()
        if field.default is dataclasses.MISSING or one != field.default
    }
