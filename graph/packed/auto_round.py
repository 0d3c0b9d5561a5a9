"""auto-round's own method (https://github.com/intel/auto-round): weights packed as GPTQ's or AWQ's, with settings of its own.

`packing_format` says as whose, `extra_config` what is otherwise for some weights: those of 16 bits are floats. What it exports
as `gptq` or `awq` has such settings among theirs (`auto_round_keys.py`). A symmetric scale may be negative.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pocketphi.graph.errors import InputError
from pocketphi.graph.packed.auto_round_keys import HARMLESS, ONLY
from pocketphi.graph.packed.awq import Awq
from pocketphi.graph.packed.base import OTHERWISE, Packing, settings
from pocketphi.graph.packed.gptq import Gptq
from pocketphi.graph.reading import show

_FORMS = {
    "auto_gptq": "gptq",
    "gptq": "gptq",
    "gptq:exllamav2": "gptq",
    "exllamav2": "gptq",
    "gptqmodel": "gptq_v2",
    "auto_awq": "awq",
    "awq": "awq",
}
"""Behind `auto_round:` in `packing_format`, or in `backend`, as older versions called it."""
_FLOAT_BITS = 16


@dataclass(frozen=True, kw_only=True)
class _Settings:
    bits: int
    group_size: int
    sym: bool = True
    packing_format: str | None = None
    backend: str | None = None
    extra_config: dict[str, dict[str, Any]] | None = None


class AutoRound:
    @staticmethod
    def read(data: Mapping[str, Any], where: str) -> Packing:
        """As the method whose packing it has. Raises InputError for another one, and for what that cannot be."""
        said = settings(_Settings, data, where, ONLY, HARMLESS)
        form = said.packing_format or said.backend or ""
        kind = _FORMS.get(re.sub("^auto_?round:", "", form))
        if kind is None:
            expected = ", ".join(f"auto_round:{name}" for name in ("auto_gptq", "gptqmodel", "auto_awq"))
            raise InputError(f"{where}: packing_format is {show(form)}, expected one of {expected}; {OTHERWISE}")
        at = f"{where}: extra_config"
        others = {name: _other(said, one, f"{at}: {name}") for name, one in (said.extra_config or {}).items()}
        shared = {"bits": said.bits, "group_size": said.group_size}
        if kind != "awq":
            dynamic = {f"{'+' if one else '-'}:^(?:{name})$": one or {} for name, one in others.items()}
            return Gptq.read({**shared, "sym": said.sym, "checkpoint_format": kind, "dynamic": dynamic or None}, where)
        if odd := [name for name, one in others.items() if one and {**shared, **one} != {**shared, "sym": said.sym}]:
            raise InputError(f"{at} has other settings for {show(odd[0])}, which AWQ cannot; {OTHERWISE}")
        return Awq.read({**shared, "modules_to_not_convert": [name for name, one in others.items() if not one]}, where)


def _other(said: _Settings, one: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """What holds for weights of a name, or of names that a pattern matches; None where they are in float."""
    own = settings(_Settings, {**asdict(said), **one, "extra_config": None}, where, ONLY, HARMLESS)
    return None if own.bits >= _FLOAT_BITS else {"bits": own.bits, "group_size": own.group_size, "sym": own.sym}


PACKING = AutoRound
