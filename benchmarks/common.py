"""What the benchmarks share: measured commands, cold page caches, checkpoints that other tools accept, tables."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

FULL_MODEL = "random:phi-3-mini-4k"
POCKETPHI = [sys.executable, "-m", "pocketphi.compiler"]
BUILDER = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
GNU_TIME = Path("/usr/bin/time")
_CHUNK = 8 << 20


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a command took: wall and CPU in seconds, peak resident memory in bytes, its last words where it failed."""

    wall: float
    cpu: float
    memory: int
    error: str = ""

    def __add__(self, other: Cost) -> Cost:
        """One after the other: times add up, the larger memory counts."""
        wall, cpu = self.wall + other.wall, self.cpu + other.cpu
        return Cost(wall, cpu, max(self.memory, other.memory), self.error or other.error)


class StepError(Exception):
    """A command that a step needs did not work."""


def measure(command: Sequence[str], env: dict[str, str] | None = None) -> Cost:
    """Run a command and measure it with GNU time, or with wait4 where that is not installed."""
    with tempfile.TemporaryDirectory() as scratch:
        report, log = Path(scratch, "time"), Path(scratch, "log")
        wrapper = [str(GNU_TIME), "-v", "-o", str(report)] if GNU_TIME.exists() else []
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})}
        with log.open("wb") as output:
            begin = time.perf_counter()
            process = subprocess.Popen([*wrapper, *command], stdout=output, stderr=subprocess.STDOUT, env=variables)
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        # Without GNU time between us and the command, our own few megabytes at the fork are a floor of its figure.
        memory = _maximum_resident(report) if wrapper else usage.ru_maxrss * 1024
        words = log.read_text("utf-8", "replace").strip().splitlines() or ["no output"]
    error = f"exit {process.returncode}: {words[-1][:200]}" if process.returncode else ""
    return Cost(wall, usage.ru_utime + usage.ru_stime, memory, error)


def run(command: Sequence[str], env: dict[str, str] | None = None) -> Cost:
    """`measure`, for a step that cannot go on without it. Raises StepError with the command's last words."""
    cost = measure(command, env)
    if cost.error:
        raise StepError(cost.error)
    return cost


def _maximum_resident(report: Path) -> int:
    """Bytes, from the output of `time -v`."""
    for line in report.read_text().splitlines():
        name, _, value = line.strip().rpartition(": ")
        if name == "Maximum resident set size (kbytes)":
            return int(value) * 1024
    raise StepError(f"{GNU_TIME} -v reported no resident set size; it is not GNU time")


def files_of(folder: Path) -> list[Path]:
    """Files below a folder, or the file itself."""
    return sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else [folder]


def size_of(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in files_of(folder))


def drop_caches(paths: Iterable[Path]) -> None:
    """Write these files out and forget them: the next step pays for no earlier write and gains by no earlier read."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def seconds_to_sync(paths: Iterable[Path]) -> float:
    """Write out what is only in memory of these files."""
    begin = time.perf_counter()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return time.perf_counter() - begin


def seconds_to_read(paths: Iterable[Path]) -> float:
    """Read files from beginning to end, as the disk alone gives them."""
    paths = list(paths)
    drop_caches(paths)
    buffer = bytearray(_CHUNK)
    begin = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - begin


def seconds_to_write(path: Path, size: int) -> float:
    """Write and sync `size` bytes that do not compress, then delete them."""
    data = os.urandom(_CHUNK)
    begin = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, _CHUNK):
            file.write(memoryview(data)[: min(_CHUNK, size - start)])
        os.fsync(file.fileno())
    taken = time.perf_counter() - begin
    path.unlink()
    return taken


def make_checkpoint(model: str, work: Path) -> tuple[Path, Cost | None]:
    """The model as a Hugging Face folder in bf16, and what writing it took; reused where it exists."""
    if Path(model).is_dir():
        return Path(model), None
    folder = work / f"{model.replace(':', '-')}-checkpoint"
    if folder.exists():
        return folder, None
    return folder, run([*POCKETPHI, "make-checkpoint", model, "-o", str(folder)])


def vocab_size(checkpoint: Path) -> int:
    return int(json.loads((checkpoint / "config.json").read_text("utf-8"))["vocab_size"])


def with_llama_tokenizer(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint as llama.cpp takes a Phi-3: with a `tokenizer.model`. Weights are links to the same files.

    A checkpoint that has one is used as it is. Others get one of made-up pieces; the weights do not depend on it.
    """
    if (checkpoint / "tokenizer.model").exists():
        return checkpoint
    _link(checkpoint, folder, without="tokenizer")
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(vocab_size(checkpoint)))
    return folder


def with_fast_tokenizer(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint as transformers takes it, with a `tokenizer.json` of made-up words where it has no tokenizer."""
    if (checkpoint / "tokenizer.json").exists() or (checkpoint / "tokenizer.model").exists():
        return checkpoint
    _link(checkpoint, folder, without="tokenizer")
    words = {"<unk>": 0, **{f"word{i}": i for i in range(1, vocab_size(checkpoint))}}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}
    rest = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    tokenizer: dict[str, object] = {
        "version": "1.0",
        **rest,
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": model,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described), "utf-8")
    return folder


def built(checkpoint: Path, folder: Path) -> Path:
    """What onnxruntime-genai's model builder makes of a checkpoint at its defaults, made where it is missing."""
    if not (folder / "genai_config.json").exists():
        print("building with onnxruntime-genai …", file=sys.stderr)
        source = with_fast_tokenizer(checkpoint, folder.with_name("builder-input"))
        run([*BUILDER, "-i", str(source), "-o", str(folder), "-p", "int4", "-e", "cpu"])
    return folder


def _link(checkpoint: Path, folder: Path, without: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in files_of(checkpoint):
        if not path.name.startswith((without, "special_tokens", "added_tokens")):
            (folder / path.name).symlink_to(path.resolve())


def sentencepiece_model(size: int) -> bytes:
    """A serialized `ModelProto` of `size` pieces: unknown, start, end, 256 bytes where they fit, then made-up words.

    Fields by https://github.com/google/sentencepiece/blob/v0.2.0/src/sentencepiece_model.proto: pieces = 1 (piece = 1,
    score = 2, type = 3), trainer_spec = 2 (model_type = 3, BPE = 2; vocab_size = 4; byte_fallback = 35).
    """
    normal, unknown, control, byte = 1, 2, 3, 6
    pieces = [("<unk>", unknown), ("<s>", control), ("</s>", control)]
    with_bytes = size >= len(pieces) + 256
    pieces += [(f"<0x{i:02X}>", byte) for i in range(256)] if with_bytes else []
    pieces += [(f"word{i}", normal) for i in range(len(pieces), size)]
    out = bytearray()
    for rank, (text, kind) in enumerate(pieces[:size]):
        score = b"\x15" + struct.pack("<f", -float(rank))
        out += _field(1, _field(1, text.encode()) + score + b"\x18" + _varint(kind))
    fallback = _varint(35 << 3) + _varint(1) if with_bytes else b""
    out += _field(2, b"\x18" + _varint(2) + b"\x20" + _varint(size) + fallback)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


@dataclasses.dataclass(frozen=True)
class Bar:
    """A figure that is to stay at or under (or over) a limit; `unbound` says why the limit does not hold here.

    error: the figure's standard error, where it is known. The verdict says where a limit is missed by less than twice that.
    """

    name: str
    value: float
    limit: float
    unit: str = ""
    at_least: bool = False
    unbound: str = ""
    error: float = 0.0

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def missed(self) -> bool:
        return not self.met and not self.unbound

    def as_json(self) -> dict[str, object]:
        return {**dataclasses.asdict(self), "met": self.met}

    def row(self) -> list[str]:
        sign = "≥" if self.at_least else "≤"
        close = abs(self.value - self.limit) < 2 * self.error
        verdict = "met" if self.met else "NOT met, by less than the error" if close else "NOT met"
        error = f" ± {self.error:.1g}" if self.error else ""
        return [
            self.name,
            f"{self.value:.3g}{error} {self.unit}".strip(),
            f"{sign} {self.limit:g} {self.unit}".strip(),
            f"({self.unbound})" if self.unbound else verdict,
        ]


def judge(
    limits: Sequence[Bar], path: Path | None = None, figures: Mapping[str, object] | None = None, title: str = "Limits"
) -> int:
    """The end of a script: print the limits, write all figures with them where a path is given, and return the exit code."""
    print_table(title, ["figure", "measured", "limit", ""], [bar.row() for bar in limits])
    if path:
        data = {**(figures or {}), "limits": [bar.as_json() for bar in limits]}
        path.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    return int(any(bar.missed for bar in limits))


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell: the first and the last, which hold words, to the left, the others right."""
    print(f"\n{title}")
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        figures = (cell.rjust(width) for cell, width in zip(line[1:-1], widths[1:-1]))
        print("  " + "  ".join([line[0].ljust(widths[0]), *figures, line[-1]]).rstrip())
