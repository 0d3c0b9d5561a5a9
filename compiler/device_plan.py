"""Does a model fit a device, up to which context, and how fast can it be at best? Before anything is compiled."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketphi.compiler.devices import Device
from pocketphi.compiler.footprint import PROMPT, footprint, kept_weights
from pocketphi.compiler.options import CompileOptions
from pocketphi.graph.adapters import bytes_of_factors
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import CheckFailed, InputError
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.kept import Kept
from pocketphi.graph.lora.named import Lora, NamedLora
from pocketphi.graph.options import declared
from pocketphi.graph.published import PUBLISHED
from pocketphi.passes.choices import BLOCKS
from pocketphi.passes.policy import Policy
from pocketphi.targets import all_targets, find_target
from pocketphi.targets.kv_cache import NAME as KV_CACHE
from pocketphi.targets.memory import Footprint
from pocketphi.targets.target import TargetOptions

_LEAST_CONTEXT = 512
_SMALL = "int8"
"""A type of cache that changes predictions hardly. With int4 they change as much as by the rounding of weights."""


@dataclass(frozen=True)
class Fit:
    """A model on a device.

    needed: bytes with the whole context; available: what an app may use; largest_context: tokens that fit, up to the model's;
    decode, decode_full: tokens a second that the memory's bandwidth allows, with an empty cache and with a full one
    """

    device: str
    target: str
    recipe: str
    context: int
    prompt: int
    needed: int
    available: int
    largest_context: int
    decode: float
    decode_full: float
    footprint: Footprint
    measured: str

    @property
    def ok(self) -> bool:
        return self.needed <= self.available

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "ok": self.ok}

    def described(self) -> str:
        """One line: whether it fits, and what it takes."""
        need, have = f"{self.needed / 1e9:,.2f} GB", f"{self.available / 1e9:,.2f} GB"
        speed = f"at most {self.decode:,.0f} tokens/s, {self.decode_full:,.0f} with a full cache"
        if self.ok:
            return f"fits: {need} of {have}, {self.context:,} tokens; {speed}"
        over = self.needed - self.available
        return f"does not fit: {over:,} bytes too many ({need} of {have}, {self.context:,} tokens)"


def config_of(model: str, lora: Sequence[Lora] = ()) -> ModelConfig:
    """A model's shape, without reading a weight, but where an adapter may change it. Raises InputError as `open_checkpoint`
    does."""
    if lora:
        from pocketphi.graph.opening import open_checkpoint

        return open_checkpoint(model, lora).config
    kind, _, shape = model.partition(":")
    if kind == "random" and (name := shape.partition("@")[0]) in PUBLISHED:
        return PUBLISHED[name]
    if (Path(model) / "config.json").is_file():
        return read_config(Path(model))
    from pocketphi.graph.opening import open_checkpoint

    return open_checkpoint(model).config


def _kept(options: CompileOptions) -> dict[str, Kept]:
    """Only the file knows what is taken over of it."""
    if options.recipe != "keep":
        return {}
    from pocketphi.graph.opening import open_checkpoint

    return kept_weights(open_checkpoint(options.model, options.lora))


@functools.lru_cache(maxsize=1)
def _adapter_sizes(model: str, lora: tuple[Lora, ...], named: tuple[NamedLora, ...]) -> list[int]:
    """Bytes of the adapters that an app is to switch."""
    if not named:
        return []
    from pocketphi.graph.lora.beside import open_beside
    from pocketphi.graph.opening import open_checkpoint

    source = open_checkpoint(model, lora)
    adapters = open_beside(named, source, list(source.config.tensors()))
    return [bytes_of_factors(source.config, one.ranks) for one in adapters.values()]


def runs_on(target: str, device: Device) -> bool:
    """Whether a device's system has the target's runtime."""
    platforms = find_target(target).platforms
    return platforms is None or device.platform in platforms


def check_runs_on(target: str, device: Device) -> None:
    """Raise InputError for a target that the device's system does not run."""
    if not runs_on(target, device):
        other = next(one.name for one in all_targets() if runs_on(one.name, device))
        raise InputError(f"--device {device.name}: has no {find_target(target).title}; compile for --target {other}")


def fit(
    config: ModelConfig,
    options: CompileOptions,
    target: str,
    device: Device,
    prompt: int = PROMPT,
    policy: Policy | None = None,
) -> Fit:
    """policy: what the options say if None. Raises InputError for a target that the device's system does not run."""
    check_runs_on(target, device)
    made = footprint(config, target, options, prompt, kept=_kept(options), policy=policy)
    made = made.with_adapters(_adapter_sizes(options.model, options.lora, options.adapter))
    return fit_of(made, config, target, device, options.described(), prompt)


def fit_of(made: Footprint, config: ModelConfig, target: str, device: Device, recipe: str, prompt: int = PROMPT) -> Fit:
    """Of a model whose memory is known. recipe: in words."""
    return Fit(
        device=device.name,
        target=target,
        recipe=recipe,
        context=made.context,
        prompt=min(prompt, made.context),
        needed=made.total(),
        available=device.app,
        largest_context=min(made.largest_context(device.app), config.max_position),
        decode=device.bandwidth / made.read_per_token,
        decode_full=device.bandwidth / (made.read_per_token + made.kv_cache()),
        footprint=made,
        measured=find_target(target).measured,
    )


def check_fits(
    options: CompileOptions, device: Device, say: Callable[[str], None], policy: Policy | None = None
) -> None:
    """Say how much of the device each target takes. Raises CheckFailed where one does not fit. policy: as in `fit`."""
    config = config_of(options.model, options.lora)
    for target in options.target_names:
        found = fit(config, options, target, device, policy=policy)
        if not found.ok:
            raise CheckFailed(f"{_refusal(found, device)}; choose a smaller budget or --context")
        say(f"{device.title}, {target}: {found.described()}")


def fit_options(options: CompileOptions, device: Device, choose: bool) -> CompileOptions:
    """The options, if every target fits; with `choose`, else the nearest that do: larger blocks first, then a
    cache of int8, then a shorter context.

    Raises CheckFailed saying by how many bytes it does not fit, and what would.
    """
    config = config_of(options.model, options.lora)
    found = [fit(config, options, target, device) for target in options.target_names]
    over = max(found, key=lambda one: one.needed - one.available)
    if over.ok:
        return options
    for other in _alternatives(config, options, over.context):
        if other == options:
            continue
        if all(fit(config, other, target, device).ok for target in other.target_names):
            if choose:
                return other
            raise CheckFailed(f"{_refusal(over, device)}; would fit: {difference(options, other)}; --fit takes that")
    coarsest = _blocks(config, options)[-1:]
    least = dataclasses.replace(options, block=coarsest[0]) if coarsest else options
    weights = fit(config, least, over.target, device).footprint.total(0)
    means = f"with {changed} " if (changed := difference(options, least)) else ""
    raise CheckFailed(f"{_refusal(over, device)}; nothing would fit: {means}the weights alone take {weights:,} bytes")


def _alternatives(config: ModelConfig, options: CompileOptions, context: int) -> Iterator[CompileOptions]:
    """In the order in which to try: a coarser recipe costs quality a little, a cache of int8 speed in prompts, and a shorter
    context what can be said."""
    blocks = _blocks(config, options)
    contexts = [context]
    while contexts[-1] // 2 >= min(_LEAST_CONTEXT, context):
        contexts.append(contexts[-1] // 2)
    for tokens in contexts:
        shorter = tokens if tokens != context else options.context
        for cached in _caches(options):
            for block in blocks[:3]:
                yield dataclasses.replace(options, block=block, context=shorter, targets=cached)


def _caches(options: CompileOptions) -> list[tuple[TargetOptions, ...]]:
    """The targets as they are; and with a cache of int8, where all have one and none has another than its default."""
    changed: dict[str, Any] = {KV_CACHE: _SMALL}
    for one in options.of_targets:
        cache = declared(type(one)).get(KV_CACHE)
        if cache is None or _SMALL not in cache.choices or getattr(one, KV_CACHE) != cache.default:
            return [options.of_targets]
    return [options.of_targets, tuple(dataclasses.replace(one, **changed) for one in options.of_targets)]


def _blocks(config: ModelConfig, options: CompileOptions) -> list[int]:
    """The options' block and coarser ones; alone where there is none coarser, or the recipe leaves no choice."""
    if options.palette or not options.block or options.recipe == "keep":
        return [options.block]
    widths = {columns for _, columns in config.matrices().values()}
    return [block for block in BLOCKS if block >= options.block and not any(width % block for width in widths)]


def _refusal(found: Fit, device: Device) -> str:
    return (
        f"{device.title}: {found.target} needs {found.needed:,} bytes with {found.context:,} tokens, "
        f"{found.needed - found.available:,} more than the {found.available:,} that an app may use"
    )


def difference(options: CompileOptions, other: CompileOptions) -> str:
    """As options of the command line: what `fit_options` changed."""
    changed = [name for name in ("block", "context") if getattr(options, name) != getattr(other, name)]
    said = [f"--{name} {getattr(other, name)}" for name in changed]
    return " ".join([*said, *([f"--kv-cache {_SMALL}"] if options.targets != other.targets else [])])
