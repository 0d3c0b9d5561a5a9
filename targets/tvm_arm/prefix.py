"""The cache of an app's first tokens, computed by the runtime when a bundle is made, in the form of a saved conversation.

A library that runs here computes it itself. For any other, as one for a phone, the same kernels are built for this machine:
they round in another order, so that the file is not bit for bit what the phone would have computed. docs/tvm-arm.md says how
far it is from that.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from xxhash import xxh64_hexdigest

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.cpu import cpu_flags
from pocketphi.graph.errors import CannotRun
from pocketphi.graph.packing import rounded_up
from pocketphi.graph.reading import read_json, read_whole
from pocketphi.targets.tvm_arm.build_runtime import build_runtime
from pocketphi.targets.tvm_arm.description import DESCRIPTION, described_text
from pocketphi.targets.tvm_arm.isa import ISAS, Isa
from pocketphi.targets.tvm_arm.kv_cache import KvCache, cache_rows
from pocketphi.targets.tvm_arm.platform import Platform, host_isa, lacking
from pocketphi.targets.tvm_arm.process import RuntimeProcess
from pocketphi.targets.tvm_arm.toolchain import find_toolchain, host_arch

_HEAD, _COUNTS, _SUM = 16, 8, 8
"""Of a session's file, see runtime/session.h: bytes before the numbers, numbers of 8 bytes, and bytes of the sum."""


def prefix_bytes(config: ModelConfig, cache: KvCache, tokens: int) -> int:
    """Size of the file."""
    rows = cache_rows(config, tokens)
    return _HEAD + 8 * _COUNTS + rounded_up(4 * tokens, 8) + cache.bytes(config, rows) + _SUM


def computing_isa(platform: Platform) -> Isa:
    """What a prefix for a platform is computed on here: its own instructions, where they run, or the widest ones of this
    machine."""
    return platform.isa if _is_native(platform) else host_isa()


def find_computing_isa(name: str) -> Isa:
    """The instructions that a manifest says. Raises CannotRun where this machine lacks them."""
    isa = ISAS.get(name)
    if isa is None or isa.arch != host_arch() or lacking(isa, cpu_flags()):
        raise CannotRun(
            f"the prefix was computed with {name or 'unknown instructions'}, which this machine does not have"
        )
    return isa


def write_prefix(
    out: Path, tokens: Sequence[int], folder: Path, platform: Platform, isa: Isa, build: Callable[[Isa, Path], None]
) -> None:
    """Compute the cache of `tokens` for the bundle in `folder`, which is for `platform`.

    isa: of this machine; build: writes the files of the same model for it into a folder, where the bundle's are for another
    """
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        place = folder
        if not (_is_native(platform) and isa == platform.isa):
            place = Path(scratch)
            build(isa, place)
            # such a library holds other parameters; what it saves belongs to the bundle
            described = {
                **read_json(place / DESCRIPTION),
                "sessions_of": xxh64_hexdigest(read_whole(folder / DESCRIPTION)),
            }
            (place / DESCRIPTION).write_text(described_text(described), "utf-8")
        runner = build_runtime(find_toolchain("linux", isa.arch)).runner
        with RuntimeProcess([str(runner)], place, max_tokens=len(tokens), prefix=False) as process:
            process.prefill(tokens)
            process.save(out, "")


def read_tokens(path: Path) -> list[int]:
    """Of a session's file."""
    with path.open("rb") as file:
        (count,) = struct.unpack_from("<q", file.read(_HEAD + 8 * _COUNTS), _HEAD + 16)
        return list(struct.unpack(f"<{count}i", file.read(4 * count)))


def _is_native(platform: Platform) -> bool:
    same = platform.system == "linux" and platform.isa.arch == host_arch()
    return same and not lacking(platform.isa, cpu_flags())
