"""Which formats, in which sizes of blocks, each weight may get where a budget is to be spent, and what each takes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence

from pocketphi.compiler.options import RECIPE, CompileOptions
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import FORMATS, Blocks, Format, Levels
from pocketphi.passes.choices import BLOCKS
from pocketphi.passes.quantizers import SCALE_BITS, Quantizer, make_quantizer, recipes
from pocketphi.targets import find_target
from pocketphi.targets.target import TargetOptions

_TABLES = ((1, 0), (4, 0), (16, 0), (64, 0))
_TILED = ((16, 64),)
"""Rows and columns that share a table, 0 for all columns. The second are for up to four bits: six bits have tables of 64, which
take as much as they gain. Tiles of 64 rows and 32 columns look better than they are, as few of them are measured: with them the
sample was as far from the float model at 66 MB as without any tiles, with these alone a sixteenth closer."""
_BLOCKS = {2: (16, 32, 64), 3: (16, 32, 64, 128), 5: (32, 64, 128), 6: (32, 64, 128)}
"""By width, where not all serve: small blocks cost as much as the next width, and large ones lose what that has gained."""

Candidates = dict[str, list[Quantizer]]


def candidates_of(config: ModelConfig, options: CompileOptions) -> Candidates:
    """By weight, those that all targets carry."""
    held = [find_target(one.target).holds(one) for one in options.of_targets]
    forms = [form for name, form in FORMATS.items() if all(name in codecs for codecs in held)]
    levels = {form.bits for form in forms if issubclass(form, Levels)}  # closer than even steps, at the same bytes
    forms = [form for form in forms if form.bits not in levels or issubclass(form, Levels)]
    made = list(_quantizers(forms, options.recipe))
    found: Candidates = {}
    for name, (rows, columns) in config.matrices().items():
        fit = [one for one in made if _fits(one, name, rows, columns)]
        found[name] = [one for one in fit if _is_fast(one, options.target_names)] or fit
        if not found[name]:
            raise InputError(
                f"{name}: [{rows}, {columns}] fits into no format that {' and '.join(options.target_names)} hold"
            )
    return found


def every_candidate(config: ModelConfig, tables: bool) -> Candidates:
    """By weight, all that some target might carry, rounded to nearest: what each costs is measured once for every target and
    recipe, as reading a large model forward and backward takes much longer.

    tables: palettes too, which take as long as all the others
    """
    forms = [form for form in FORMATS.values() if tables or issubclass(form, Blocks)]
    made = list(_quantizers(forms, "rtn"))
    return {
        name: [one for one in made if _fits(one, name, rows, columns)]
        for name, (rows, columns) in config.matrices().items()
    }


def bytes_by_target(quantizer: Quantizer, shape: tuple[int, int], targets: Sequence[TargetOptions]) -> list[int]:
    """What a weight [N, K] takes in the file of each target."""
    layout, form = quantizer.layout(shape), quantizer.format.name
    return [find_target(one.target).weight_bytes(form, layout, one) for one in targets]


def _quantizers(forms: Sequence[type[Format]], recipe: str) -> Iterator[Quantizer]:
    """recipe: what it cannot make is made by the usual one."""
    for form in forms:
        able = recipes(form.name)
        made_by = recipe if recipe in able else RECIPE
        if made_by not in able:
            continue
        if not issubclass(form, Blocks):
            for group, block in (*_TABLES, *(_TILED if form.bits <= 4 else ())):
                yield make_quantizer(made_by, form.name, {"group": group, "block": block})
            continue
        for block, scale_bits in itertools.product(_BLOCKS.get(form.bits, BLOCKS), SCALE_BITS.choices):
            chosen = {"block": block, "scale_bits": scale_bits}
            yield make_quantizer(made_by, form.name, chosen)
            if form.has_zeros() and form.bits <= 4:
                yield make_quantizer(made_by, form.name, {**chosen, "symmetric": False})


def _is_fast(quantizer: Quantizer, targets: Sequence[str]) -> bool:
    return all(find_target(name).is_fast(quantizer.format.name, quantizer.block) for name in targets)


def _fits(quantizer: Quantizer, name: str, rows: int, columns: int) -> bool:
    with contextlib.suppress(InputError):
        quantizer.check(name, rows, columns)
        return True
    return False
