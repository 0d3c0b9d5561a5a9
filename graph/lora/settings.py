"""`adapter_config.json`, key by key: honoured, known to change nothing, or refused by name.

The keys and their defaults are those of PEFT's `LoraConfig`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import Field

from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import show, typed

N = TypeVar("N", int, float)
Rank = Annotated[int, Field(gt=0, le=1 << 16)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Index = Annotated[int, Field(ge=0, le=1 << 31)]


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The keys that are honoured."""

    peft_type: str | None = None
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    r: Rank = 8
    lora_alpha: Finite = 8.0
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Finite] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    target_modules: str | tuple[str, ...] | None = None
    exclude_modules: str | tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] | None = None
    layers_to_transform: Index | tuple[Index, ...] | None = None
    layers_pattern: str | tuple[str, ...] | None = None
    trainable_token_indices: tuple[Index, ...] | dict[str, tuple[Index, ...]] | None = None
    ensure_weight_tying: bool = False
    init_lora_weights: bool | str | None = True
    bias: str | None = "none"

    def rank(self, path: str) -> int:
        """Of a module, by its name in transformers' class."""
        return _by_pattern(self.rank_pattern, path, self.r)

    def scaling(self, path: str) -> float:
        """What B·A of a module is multiplied with: alpha / r, or alpha / √r (arXiv 2312.03732)."""
        alpha, rank = _by_pattern(self.alpha_pattern, path, self.lora_alpha), self.rank(path)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def tokens(self) -> dict[str, tuple[int, ...]]:
        """The ending of an embedding's name → the rows of it that were trained."""
        found = self.trainable_token_indices or {}
        return found if isinstance(found, dict) else {"embed_tokens": found}


_HARMLESS = frozenset(
    """
    auto_mapping corda_config eva_config fan_in_fan_out inference_mode loftq_config lora_dropout lora_ga_config megatron_core
    peft_version qalora_group_size revision runtime_config
    """.split()  # noqa: SIM905 - a list would take a line for each
)
"""Training, bookkeeping, and what only initialization reads. `fan_in_fan_out` is of layers that store [in, out]: PEFT sets it
to false where it meets a Linear, and all layers of these models are such."""

_REFUSED = {
    "alora_invocation_tokens": "it works from a certain token on, so that it cannot be merged",
    "arrow_config": "it chooses among adapters for each token, so that it cannot be merged",
    "kasa_config": "KaSA changes the base's weights too",
    "layer_replication": "it makes other layers than the base has",
    "lora_bias": "it adds a bias to layers that have none, which PEFT cannot merge either",
    "megatron_config": "it is for the layers of Megatron",
    "monteclora_config": "Monteclora adapters are not known",
    "target_parameters": "adapters of parameters that are no module's weight are not known",
    "use_bdlora": "block-diagonal adapters are not known",
    "use_qalora": "it adds up groups of inputs, which only a GPTQ base can merge",
    "velora_config": "VeLoRA adapters are not known",
}
"""Keys that are refused where they ask for anything, and why."""

_INITS = ("gaussian", "eva", "orthogonal", "true", "false")
"""Ways to begin that leave the base's weights as they are. All others take a part of the base out of it."""

_TASKS = ("CAUSAL_LM", "FEATURE_EXTRACTION", None)
_LONGEST_PATTERN, _MOST_REPEATS = 2000, 12


def read_settings(data: Mapping[str, Any], where: str) -> LoraSettings:
    """Raises InputError for another kind of adapter, and for a key that is not known or cannot be honoured."""
    kind = data.get("peft_type")
    if kind != "LORA":
        raise InputError(
            f"{where}: peft_type is {show(kind)}, expected 'LORA'; merge it with PEFT, and compile the result"
        )
    settings = typed(LoraSettings, data, where)
    for key, why in _REFUSED.items():
        if data.get(key):
            raise InputError(f"{where}: {key} is {show(data[key])}: {why}")
    known = {*_HARMLESS, *_REFUSED, *LoraSettings.__dataclass_fields__}
    if unknown := [key for key in sorted(data.keys() - known) if data[key]]:
        raise InputError(
            f"{where}: unknown key {show(unknown[0])} = {show(data[unknown[0]])}: what it does is not known"
        )
    if settings.task_type not in _TASKS:
        raise InputError(f"{where}: task_type is {show(settings.task_type)}, expected 'CAUSAL_LM'")
    if settings.bias not in ("none", "all", "lora_only", None):
        raise InputError(f"{where}: bias is {show(settings.bias)}, expected 'none', 'all' or 'lora_only'")
    init = str(settings.init_lora_weights).lower()
    if init not in _INITS and settings.init_lora_weights is not None:
        raise InputError(
            f"{where}: init_lora_weights is {show(settings.init_lora_weights)}: it is for a base whose weights were changed "
            "before the training; save it with PEFT's path_initial_model_for_weight_conversion"
        )
    if isinstance(settings.target_modules, str) and settings.layers_to_transform is not None:
        raise InputError(f"{where}: layers_to_transform goes with a list of target_modules, not with a pattern")
    for pattern in _patterns(settings):
        _check_pattern(pattern, where)
    return settings


def _by_pattern(patterns: Mapping[str, N] | None, path: str, default: N) -> N:
    """As PEFT's `get_pattern_key`: the first pattern that the end of a module's name matches."""
    found = (value for pattern, value in (patterns or {}).items() if re.match(rf"(.*\.)?({pattern})$", path))
    return next(found, default)


def _patterns(settings: LoraSettings) -> Iterator[str]:
    """All that is used as a regular expression."""
    yield from settings.rank_pattern or ()
    yield from settings.alpha_pattern or ()
    yield from (one for one in (settings.target_modules, settings.exclude_modules) if isinstance(one, str))
    yield from settings.modules_to_save or ()
    layers = settings.layers_pattern
    yield from (layers,) if isinstance(layers, str) else layers or ()


def _check_pattern(pattern: str, where: str) -> None:
    """Raises InputError for one that is not valid, or could take for ever: a repeat in a repeat, or many of them."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(f"{where}: {show(pattern)} is no regular expression ({error})") from None
    bare = re.sub(r"\\.|\[(?:\\.|[^\]])*\]", "x", pattern)
    repeats = re.findall(r"[*+]|\{\d*,\d*\}", bare)
    if len(pattern) > _LONGEST_PATTERN or len(repeats) > _MOST_REPEATS or _nested(bare):
        raise InputError(f"{where}: the pattern {show(pattern)} repeats too much; list the modules by their names")


def _nested(pattern: str) -> bool:
    """Whether a group that is repeated has a repeat in it. pattern: without escapes and character classes."""
    while group := re.search(r"\((?:\?(?:[:=!]|<[=!]|P?<\w+>))?([^()]*)\)(\*|\+|\{\d*,?\d*\})?", pattern):
        inside, repeated = bool(re.search(r"[*+]|\{\d*,\d*\}", group[1])), bool(group[2])
        if inside and repeated:
            return True
        left = "x*" if inside or repeated else "x"
        pattern = pattern[: group.start()] + left + pattern[group.end() :]
    return False
