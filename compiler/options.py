"""What a user can ask of a compile, each option declared once; those of a target are in its folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pocketphi.artifacts.manifest import RecipeRecord
from pocketphi.compiler import __version__
from pocketphi.graph.errors import CheckFailed, InputError
from pocketphi.graph.formats import FORMATS, Blocks
from pocketphi.graph.lora.named import Lora, NamedLora, parse_lora, parse_named
from pocketphi.graph.options import Options, declared, option
from pocketphi.graph.places import Cache, default_cache, parse_cache
from pocketphi.graph.reading import named, nearest, place_of, show
from pocketphi.passes.choices import BLOCKS, FILE_BLOCK, GROUPS
from pocketphi.passes.policy import default_block
from pocketphi.passes.quantizers import calibrates, recipes
from pocketphi.targets import TARGETS, all_targets, find_target
from pocketphi.targets.target import Asked, TargetOptions

DEFAULT_TARGET = next(iter(TARGETS))
VERIFY = ("auto", "always", "never")
PRESETS = {"small": 3.74, "balanced": 4.5, "best": 4.5}
"""Bits a weight. `small` makes 1.8 GB of 3.8 billion parameters; `best` has another recipe, and more text."""
RECIPE, CALIBRATION_TOKENS = "search", 4096
"""Where nobody says anything."""
BEST_RECIPE, BEST_CALIBRATION_TOKENS = "two-sided", 16384
"""The same with `--preset best`."""
LEARNED = 16384
"""Tokens that scales are learned on where nobody says how many."""
BUDGETS = ("bits", "preset", "max_read", "policy")
"""Options that decide, each by itself, which weight gets which format."""


def parse_block(text: str) -> int:
    """A number, or `row` → 0. Raises InputError for anything else."""
    if text == "row":
        return 0
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise InputError(f"--block {text}: expected one of {', '.join(map(str, BLOCKS))}, or row")
    return int(text)


def parse_bits(text: str) -> float:
    """Bits a weight. Raises InputError for what is no such number."""
    if not re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,9})?", text):
        raise InputError(f"--bits {show(text)}: expected a number such as 4.25")
    return float(text)


def parse_size(text: str) -> int:
    """`1.5GB`, `750MiB`, `2000000` → bytes. Raises InputError for anything else."""
    found = re.fullmatch(r"\s*([0-9]{1,19}(?:\.[0-9]{1,19})?)\s*([kKMGT]?)(i?)B?\s*", text)
    if not found:
        raise InputError(f"{show(text)} is not a size; expected bytes, or a number with kB, MB, GB, KiB, MiB or GiB")
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kMGT".index(prefix.replace("K", "k") or " "))


@dataclass(frozen=True, kw_only=True)
class StorageOptions(Options):
    """How weights are stored, which decides their size."""

    format: str = option(
        "int4",
        "of weights: int4 (default), other widths, nl3 and nl4, whose levels lie closer together near zero, or affine4, whose "
        "blocks have an offset",
        choices=tuple(name for name, form in FORMATS.items() if issubclass(form, Blocks)),
        metavar="NAME",
    )
    block: int = option(
        cast("int", None),  # by the recipe; set when the options are made
        "weights that share a scale: 16 to 256, or row for whole rows "
        f"(default {default_block('search')}; with --recipe keep {FILE_BLOCK}, for what is not kept)",
        metavar="N",
        parse=parse_block,
    )
    symmetric: bool = option(True, "a zero point for each block", flag="asymmetric")
    scale_bits: int = option(
        16, "of a block's scale: 16 (default), or 8 and one of 16 for each row", choices=(8, 16), metavar="BITS"
    )
    palette: int | None = option(
        None,
        "in place of blocks, tables of 16 values for so many rows each (16 without a number): for the Neural Engine",
        choices=GROUPS,
        unit="rows",
        metavar="ROWS",
        const=16,
    )
    embedding_bits: int = option(4, "of the embedding: 4 (default) or 8", choices=(4, 8), metavar="BITS")
    head_bits: int = option(
        4, "of the head: 4 (default) or 8; a tied weight gets the larger", choices=(4, 8), metavar="BITS"
    )


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(StorageOptions):
    """How weights are made small."""

    recipe: str = option(
        cast("str", None),  # by the preset; set when the options are made
        f"{RECIPE} (default): scales by activations; two-sided: and by the model's gradients, slower; rtn: round to nearest; "
        "keep: the blocks of a file that is quantized",
        choices=recipes(),
        metavar="NAME",
    )
    bits: float | None = option(
        None,
        "choose each weight's format: so many bits a weight, scales counted, in the largest target's file",
        metavar="N",
        parse=parse_bits,
    )
    preset: str | None = option(
        None,
        f"the same by a name: small ({PRESETS['small']} bits), balanced ({PRESETS['balanced']}), or best, which is balanced "
        f"with --recipe {BEST_RECIPE} and --calibration-tokens {BEST_CALIBRATION_TOKENS}",
        choices=tuple(PRESETS),
        metavar="NAME",
    )
    max_read: int | None = option(
        None,
        "the same by speed: bytes of weights that are read for each token (see --min-tokens-per-second)",
        metavar="SIZE",
        parse=parse_size,
    )
    policy: Path | None = option(
        None,
        "rules that say each weight's format, in TOML or JSON (inspect BUNDLE --policy writes them)",
        metavar="FILE",
    )
    calibration: Path | None = option(
        None,
        "UTF-8 text for --recipe search and two-sided (default: pages of our own and Python's language reference)",
        metavar="FILE",
    )
    calibration_tokens: int = option(
        cast("int", None),  # likewise
        f"of that text (default {CALIBRATION_TOKENS})",
        metavar="N",
    )
    learn: int | None = option(
        None,
        "after rounding, learn the scales of weights from the float model's predictions on so many tokens of that text "
        f"({LEARNED} without a number): closer, and slower",
        metavar="TOKENS",
        const=LEARNED,
    )
    compute: str = option("cpu", "where scales are learned: cpu (default) or cuda", choices=("cpu", "cuda"))


@dataclass(frozen=True, kw_only=True)
class ProgramOptions(Options):
    """What the compiled model computes."""

    context: int | None = option(
        None, "longest sequence, in tokens (default: the model's, or the target's limit)", metavar="N"
    )
    all_logits: bool = option(False, "logits of every position instead of the last")
    lora: tuple[Lora, ...] = option(
        (),
        "a PEFT adapter to merge into the weights before they are rounded, with its weight if that is not 1; may be repeated, "
        "and the order counts",
        metavar="DIR[=WEIGHT]",
        parse=parse_lora,
    )
    adapter: tuple[NamedLora, ...] = option(
        (),
        "a PEFT adapter that stays apart, in a file of its own that an app switches by this name; may be repeated",
        metavar="NAME=DIR[=WEIGHT]",
        parse=parse_named,
    )
    prefix: Path | None = option(
        None,
        "UTF-8 text of an app's system message, with its documents: the bundle gets what the model computes of it, so that "
        "the first answer comes at once",
        metavar="FILE",
    )


@dataclass(frozen=True, kw_only=True)
class Limits(Options):
    """What a compile has to keep to, and where it works. None of it decides the bytes of a bundle, but what it refuses."""

    verify: str = option(
        "auto",
        "run the saved files against the program (auto, the default: where memory allows)",
        choices=VERIFY,
        decides=False,
    )
    max_bytes: int | None = option(
        None,
        "size of the whole bundle: chooses each weight's format, or fails where a larger one is asked for",
        metavar="SIZE",
        parse=parse_size,
    )
    max_memory: int | None = option(
        None, "fail if compiling would take more memory", metavar="SIZE", parse=parse_size, decides=False
    )
    strict: bool = option(False, "an operator left unfused, in float, or on a slow path is an error")
    force: bool = option(False, "replace the bundle at --out", decides=False)
    cache: Cache | None = option(
        None,
        "where searched weights are kept: a folder (default: $POCKETPHI_CACHE, or pocketphi in $XDG_CACHE_HOME or ~/.cache), "
        "or a URL such as s3://BUCKET/FOLDER, a store behind that folder which other machines share",
        metavar="DIR|URL",
        parse=parse_cache,
        decides=False,
    )
    dump_graphs: Path | None = option(None, "write the graph after each pass", metavar="DIR", decides=False)

    @property
    def place(self) -> Cache:
        """Where things are kept. Raises what `default_cache` raises."""
        return self.cache or default_cache()

    @property
    def cache_folder(self) -> Path | None:
        """This machine's, where one was said."""
        return self.cache.own if self.cache else None


@dataclass(frozen=True)
class CompileOptions(RecipeOptions, ProgramOptions, Limits):
    """Arguments of `compile_model`; the command line has the same. What depends on other options, such as the recipe on a
    preset, is decided when they are made: `dataclasses.replace` keeps it.

    model:   checkpoint, as `open_checkpoint` reads it
    out:     folder of the bundle
    targets: what to compile for: options of targets, or names where there is nothing to choose
    """

    model: str
    out: Path
    targets: Sequence[str | TargetOptions] = (DEFAULT_TARGET,)

    def __post_init__(self) -> None:
        super().__post_init__()
        best = self.preset == "best"
        for name, usual, of_best in (
            ("recipe", RECIPE, BEST_RECIPE),
            ("calibration_tokens", CALIBRATION_TOKENS, BEST_CALIBRATION_TOKENS),
        ):
            if getattr(self, name) is None:
                object.__setattr__(self, name, of_best if best else usual)
        self._check_budgets()
        if self.block is None and self.policy is None and not self.spends:
            object.__setattr__(self, "block", default_block(self.recipe))
        object.__setattr__(self, "out", place_of(self.out))
        chosen = [self.targets] if isinstance(self.targets, str | TargetOptions) else self.targets
        made = [find_target(one).options() if isinstance(one, str) else one for one in chosen]
        object.__setattr__(self, "targets", tuple({one.target: one for one in made}.values()))
        if self.block and self.block not in BLOCKS:
            raise InputError(f"--block {self.block}: expected one of {', '.join(map(str, BLOCKS))}, or row")
        if self.calibration_tokens < 1:
            raise InputError(f"--calibration-tokens {self.calibration_tokens}: expected a positive number")
        if self.context is not None and self.context < 2:
            raise InputError(f"--context {self.context}: expected 2 or more tokens: one of a prompt, one of its answer")
        self._check_learning()
        if self.calibration is not None and not self.uses_text:
            raise InputError(f"--calibration: --recipe {self.recipe} has no use for it; only search has")

    def _check_budgets(self) -> None:
        """Raise InputError where two options decide the formats."""
        deciding = [name for name in BUDGETS if getattr(self, name) is not None]
        flags = [f"--{declared(CompileOptions)[name].flag}" for name in (*deciding, *self._fixed)]
        if deciding and len(flags) > 1:
            raise InputError(f"{flags[0]} and {flags[1]}: each decides the formats of weights; leave out one of them")
        if deciding and self.recipe == "keep":
            raise InputError(f"{flags[0]}: --recipe keep takes the formats of the file; leave out one of them")
        if self.policy is not None and self.recipe != RECIPE:
            raise InputError(f"--policy: its rules say the recipe of each weight; leave out --recipe {self.recipe}")
        if self.bits is not None and not 1 <= self.bits <= 16:
            raise InputError(f"--bits {self.bits}: expected 1 to 16 bits a weight")

    def _check_learning(self) -> None:
        """Raise InputError for scales that cannot be learned."""
        if self.learn is not None and self.learn < 2:
            raise InputError(f"--learn {self.learn}: expected 2 or more tokens")
        if self.learn is None and self.compute != "cpu":
            raise InputError(f"--compute {self.compute}: only --learn has a use for it; leave it out")
        if self.learn is not None and self.recipe == "keep":
            raise InputError("--learn: --recipe keep takes the scales of the file; leave out one of them")

    @property
    def _fixed(self) -> list[str]:
        """The options that say a format, as far as they were given."""
        known = declared(StorageOptions).values()
        return [one.name for one in known if getattr(self, one.name) != one.default]

    @property
    def spends(self) -> bool:
        """Whether formats are to be chosen for a budget."""
        if self.bits is not None or self.preset is not None or self.max_read is not None:
            return True
        return self.max_bytes is not None and self.policy is None and calibrates(self.recipe) and not self._fixed

    @property
    def uses_text(self) -> bool:
        """Whether the calibration text decides the bytes of a bundle, as far as options tell."""
        measured = any(one.calibrates for one in self.of_targets)
        decides = self.spends or self.policy is not None or self.learn is not None
        return calibrates(self.recipe) or decides or measured

    @property
    def of_targets(self) -> tuple[TargetOptions, ...]:
        """The options of each target, in the order that was asked for."""
        return tuple(one for one in self.targets if not isinstance(one, str))

    @property
    def sources(self) -> tuple[str | Lora, ...]:
        """The model and its adapters: whose files are read."""
        return (self.model, *self.lora, *(named.lora for named in self.adapter))

    def of(self, target: str) -> TargetOptions:
        """The options of one target; its defaults where it is not among those that were asked for."""
        return next((one for one in self.of_targets if one.target == target), find_target(target).options())

    @property
    def target_names(self) -> tuple[str, ...]:
        return tuple(one.target for one in self.of_targets)

    @property
    def asked(self) -> Asked:
        """What every target wants to know."""
        return Asked(context=self.context, strict=self.strict, version=__version__, recipe=self.described())

    def check_memory(self, needed: int, instead: Callable[[int], str]) -> None:
        """Raise CheckFailed where a step would take more bytes than --max-memory. instead: limit → what would work."""
        if self.max_memory is not None and needed > self.max_memory:
            over = needed - self.max_memory
            raise CheckFailed(
                f"compiling would take {needed:,} bytes of memory, {over:,} over --max-memory; {instead(self.max_memory)}"
            )

    def described(self) -> str:
        """How the weights are quantized, in a few words."""
        return self._recipe(calibration=None).described()

    def recorded(self) -> RecipeRecord:
        """The options that decide a bundle's bytes, for its manifest."""
        if not self.uses_text:
            return self._recipe(None)
        text = self.content("calibration")
        return self._recipe("default" if text is None else hashlib.sha256(text).hexdigest())

    def _recipe(self, calibration: str | None) -> RecipeRecord:
        of_targets = {
            name: getattr(self.of(target.name), name)
            for target in all_targets()
            for name, one in declared(target.options).items()
            if one.recorded
        }
        storage = {name: getattr(self, name) for name in declared(StorageOptions)}
        if self.block is None:
            storage["block"] = default_block(self.recipe)
        return RecipeRecord(
            name=self.recipe,
            context=self.context,
            all_logits=self.all_logits,
            calibration=calibration,
            calibration_tokens=self.calibration_tokens if self.uses_text else None,
            learned=self.learn,
            **storage,
            **of_targets,
        )


def compile_options(model: str, out: Path, targets: Iterable[str] = (DEFAULT_TARGET,), **given: Any) -> CompileOptions:
    """Options by their names alone, as the command line and a build file have them: those of a target go to it.

    Raises InputError for an option that none of these targets has.
    """
    names = list(dict.fromkeys(targets))
    own = declared(CompileOptions)
    of_targets = {name: declared(find_target(name).options) for name in names}
    for name, value in given.items():
        if name not in own and not any(name in known for known in of_targets.values()):
            _refuse(name, value, names)
    made = [
        find_target(name).options(**{key: value for key, value in given.items() if key in known})
        for name, known in of_targets.items()
    ]
    return CompileOptions(model, out, made, **{name: value for name, value in given.items() if name in own})


def _refuse(name: str, value: Any, targets: Sequence[str]) -> None:
    """An option of other targets than those that are asked for."""
    known = {target.name: found[name] for target in all_targets() if name in (found := declared(target.options))}
    if not known:
        every = [*declared(CompileOptions), *(one for target in all_targets() for one in declared(target.options))]
        raise InputError(f"{named(name)} is no option of a compile; {nearest(name, every)}")
    (flag,) = {one.flag for one in known.values()}
    none = f"neither {' nor '.join(targets)} has such an option"
    have = f"{targets[0]} has no such option" if len(targets) == 1 else none
    raise InputError(f"--{flag} {named(value)}: {have}; leave it out, or compile for {' or '.join(known)}")
