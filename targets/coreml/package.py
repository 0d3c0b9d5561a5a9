"""The files of a Core ML bundle.

model.mlpackage/
  Manifest.json                                    two items and their identifiers
  Data/com.apple.CoreML/model.mlmodel              the functions, about a megabyte
  Data/com.apple.CoreML/weights/weight.bin         every weight once, whatever the number of functions
verify_on_mac.py, test_vectors.npz                 a check for a Mac with coremltools; the vectors come from verification

The same program gives the same bytes: identifiers are made from the content, messages are serialized in a fixed order.
The default function is `decode`: an app that names none gets the one that is complete in itself, a prompt being fed to it
token by token, where `prefill` alone wants whole chunks.
"""

from __future__ import annotations

import functools
import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pocketphi.artifacts.stream import Progress, write_weights
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import format_of
from pocketphi.graph.program import Program, op_name
from pocketphi.targets.base import Packaged, Prepared
from pocketphi.targets.coreml.blob import ALIGN, header
from pocketphi.targets.coreml.codecs import is_chain
from pocketphi.targets.coreml.emitter import STATES
from pocketphi.targets.coreml.form import Form, make_form
from pocketphi.targets.coreml.lint import Facts, lint
from pocketphi.targets.coreml.lower import lower
from pocketphi.targets.coreml.mil import to_proto
from pocketphi.targets.coreml.options import CoreML
from pocketphi.targets.coreml.vectors import VECTORS, vectors_bytes
from pocketphi.targets.coreml.weightfile import PACKAGE, WeightFile, encode, plan_weights, stored_weights
from pocketphi.targets.target import Asked

_DATA = Path("Data/com.apple.CoreML")
MODEL_FILE = _DATA / "model.mlmodel"
WEIGHT_FILE = _DATA / "weights/weight.bin"
MANIFEST_FILE = Path("Manifest.json")
MAC_SCRIPT = "verify_on_mac.py"
FILES = frozenset({*(f"{PACKAGE}/{name}" for name in (MODEL_FILE, WEIGHT_FILE, MANIFEST_FILE)), MAC_SCRIPT, VECTORS})
REPOSITORY = "co.huggingface.exporters.name"
"""Where swift-transformers looks for a tokenizer."""
NORMS = ("edge.rms_norm", "edge.add_rms_norm", "layer_norm")
"""The operators that `norms.py` spells."""
_SMALL_FILES = 6000
"""About: of the files beside model.mlmodel and its weights."""
_AUTHOR = "com.apple.CoreML"  # of the items, as Core ML's own tools name it
_FEATURES = {
    "inputIds": "Tokens. The tail of an incomplete chunk may hold any.",
    "position": "How many tokens came before these.",
    "length": "How many of the tokens are real.",
    "total": "How many tokens the sequence has when the whole prompt is in: chooses between the rotary tables of LongRoPE.",
    "causalMask": "Zeros, [1, 1, 1, tokens so far + 1]: only its shape is read.",
    "keyCache": "Rotated keys: layers, 1, heads, rows, dimensions.",
    "valueCache": "Values, like keyCache.",
    "logits": "Scores of the next token.",
}


def model_of(program: Program, form: Form, file: WeightFile) -> Any:
    """The `Model` message, which names bytes of the weight file. No weight is read, and nothing is described."""
    return to_proto(lower(program, form, file), "main" if form.flexible else "decode", file.blobs, form.release)


class CoreMLBundle(Prepared):
    """The files of `--target coreml`, planned; weights are read when they are written."""

    def __init__(self, program: Program, options: CoreML, asked: Asked) -> None:
        self._program, self._options, self._asked = program, options, asked
        self._form = make_form(program.config, options, asked.context)
        self._file = plan_weights(program, self._form)
        self._facts = facts_of(program, self._form, self._file)
        self._units = lint(self._facts)
        best, *others = self._units
        if asked.strict and best.slow:
            raise InputError(f"coreml: {best.slow[0]}; without --strict this is only reported")
        self.bytes = self._file.size
        self.recorded = vectors_bytes(program.config.vocab_size)
        self.notes = [best.line(best=True), *(unit.line() for unit in others)]
        if self._form.flexible and options.model_id is None:
            self.notes.append("swift-transformers must be given a tokenizer: the package names no repository")

    def write(self, folder: Path, progress: Progress) -> Packaged:
        form = self._form
        file = replace(self._file, weights=stored_weights(self._program, form))
        model = self.model
        root = folder / PACKAGE
        (root / WEIGHT_FILE).parent.mkdir(parents=True)
        written = write_weights(root / WEIGHT_FILE, file.weights, file.layout, progress, encode, records(file))
        content = model.SerializeToString(deterministic=True)
        (root / MODEL_FILE).write_bytes(content)
        (root / MANIFEST_FILE).write_text(manifest(content), "utf-8")
        # the same permissions whatever the umask, so that archives of two builds are equal too
        for path in (root, *root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (folder / MAC_SCRIPT).write_bytes(mac_script())
        known = {f"{PACKAGE}/{WEIGHT_FILE}": written.sha256}
        return Packaged(self.operators, written.digests, self.notes, self.details(), known)

    @functools.cached_property
    def model(self) -> Any:
        """The `Model` message as it is written. No weight is read."""
        model = model_of(self._program, self._form, self._file)
        self._describe(model)
        return model

    @property
    def around(self) -> int:
        return self.model.ByteSize() + _SMALL_FILES

    @property
    def operators(self) -> Counter[str]:
        """`function.operator` → count, constants left out."""
        return _operators(self.model)

    def file_differences(self, package: Path) -> list[str]:
        """What of a package's weight file, beside the weights, is not as it is written: its size, and what lies between."""
        path = package / WEIGHT_FILE
        size = path.stat().st_size
        if size != self._file.size:
            return [f"{WEIGHT_FILE.name}: {size} bytes, expected {self._file.size}"]
        with path.open("rb") as file:
            for offset, content in records(self._file).items():
                file.seek(offset)
                if file.read(len(content)) != content:
                    return [f"{WEIGHT_FILE.name}: what stands at byte {offset}"]
        return []

    def _describe(self, model: Any) -> None:
        """What Xcode shows. The license of a model is its owner's to state."""
        for function in model.description.functions or [model.description]:
            for feature in (*function.input, *function.state, *function.output):
                feature.shortDescription = _FEATURES[feature.name]
        metadata = model.description.metadata
        metadata.shortDescription = (
            f"Phi-3 with {self._program.config.parameters / 1e6:,.0f} million parameters, "
            f"{self._form.context} tokens of context"
        )
        metadata.author = "pocketphi"
        metadata.versionString = self._asked.version
        named = {REPOSITORY: self._options.model_id} if self._options.model_id else {}
        values = {
            "pocketphi.version": self._asked.version,
            "pocketphi.context": str(self._form.context),
            "pocketphi.chunk": str(self._form.chunk),
            **({"pocketphi.ring": str(self._form.ring)} if self._form.ring else {}),
            "pocketphi.recipe": self._asked.recipe,
        }
        for key, value in {**values, **named}.items():
            metadata.userDefined[key] = value

    def details(self) -> dict[str, Any]:
        """What a manifest says of the package."""
        form = self._form
        return {
            "context": form.context,
            "cache_rows": form.rows,
            **({"ring": form.ring} if form.ring else {}),
            "chunk": form.chunk,
            "functions": list(form.functions),
            "attention": form.attention,
            "norm": form.norm,
            "flavor": form.flavor,
            "ios": form.ios,
            **({"model_id": self._options.model_id} if self._options.model_id else {}),
            "state_bytes": self._facts.state_bytes,
            "kv_cache_bytes_per_token": self._options.kv_cache_bytes(self._program.config),
            "weight_bytes": self._file.size,
            "compute_units": {unit.name: unit.recorded() for unit in self._units},
        }


def mac_script() -> bytes:
    """verify_on_mac.py."""
    return (Path(__file__).parent / MAC_SCRIPT).read_bytes()


def facts_of(program: Program, form: Form, file: WeightFile) -> Facts:
    """What the linter wants to know, without lowering."""
    config = program.config
    operators = Counter(op_name(node) for node in program.graph.nodes if node.op == "call_function")
    matrices = {name: weight.parts for name, weight in file.weights.items()}
    compressed = [(one.shape_of(p), one.block_of(p)) for p in matrices.values() if (one := format_of(p))]
    scales = [(block, columns) for (_, columns), block in compressed if block]
    state = (config.layers, 1, config.kv_heads, form.rows, config.head_dim)
    floats = {
        str(node.args[i].target)
        for node in program.graph.nodes
        for kind, i in (("linear", 1), ("embedding", 0))
        if node.op == "call_function" and op_name(node) == kind
    }
    return Facts(
        weight_bytes=file.size,
        states=dict.fromkeys(STATES, state),
        blocks=dict(sorted(Counter(block for block, columns in scales if block < columns).items())),
        palettes=len(compressed) - len(scales),
        chains=sum(is_chain(p) for p in matrices.values()),
        dense_bytes=sum(2 * rows * columns for (rows, columns), _ in compressed),
        float_weights=[name for name in matrices if name in floats],
        float32_norms=sum(operators[norm] for norm in NORMS) if form.norm == "fp32" else 0,
        flexible=form.flexible,
    )


def records(file: WeightFile) -> dict[int, bytes]:
    """By offset: the header, a record in front of each blob, and the constants."""
    found = {0: header(len(file.blobs))}
    for name, stored in file.blobs.items():
        found[stored.blob.offset - ALIGN] = stored.blob.record()
        if name in file.constants:
            found[stored.blob.offset] = file.constants[name].tobytes()
    return found


def manifest(model: bytes) -> str:
    """Manifest.json. Identifiers are made from the model's bytes, which hold the plan of the weights."""
    digest = hashlib.sha256(model).hexdigest()
    items = [
        ("model.mlmodel", "CoreML Model Specification", "com.apple.CoreML/model.mlmodel"),
        ("weights", "CoreML Model Weights", "com.apple.CoreML/weights"),
    ]
    ids = [str(uuid.uuid5(uuid.NAMESPACE_OID, f"{digest} {name}")).upper() for name, _, _ in items]
    entries: Mapping[str, Any] = {
        id_: {"author": _AUTHOR, "description": description, "name": name, "path": path}
        for id_, (name, description, path) in zip(ids, items)
    }
    content = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": ids[0]}
    return json.dumps(content, indent=4) + "\n"


def _operators(model: Any) -> Counter[str]:
    """`function.operator` → count, constants left out."""
    found: Counter[str] = Counter()
    for name, function in sorted(model.mlProgram.functions.items()):
        (block,) = function.block_specializations.values()
        found.update(f"{name}.{op.type}" for op in block.operations if op.type != "const")
    return found
