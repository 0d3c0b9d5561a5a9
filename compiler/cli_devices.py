"""The command `devices`, and the options `--device` and `--fit` of a compile."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pocketphi.compiler.cli_options import add_options, add_target_options, options_of, target_argument
from pocketphi.compiler.devices import NUMBERS, Device
from pocketphi.compiler.options import CompileOptions, ProgramOptions, StorageOptions
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import InputError
from pocketphi.graph.ranges import check_number
from pocketphi.passes.policy import Policy
from pocketphi.targets import TARGETS

AddCommand = Callable[[str, Any, str], argparse.ArgumentParser]


def add_device_command(command: AddCommand) -> None:
    """command: as `add_build_commands` takes it."""
    devices = command(
        "devices", _devices, "the table of devices; with a model: does it fit, and how fast can it be at best"
    )
    devices.add_argument("model", nargs="?", metavar="MODEL")
    target_argument(devices, "default: all that run there")
    add_options(devices, StorageOptions)
    add_options(devices, ProgramOptions, ["context", "lora"])
    add_target_options(devices)
    devices.add_argument(
        "--prompt-tokens", type=int, metavar="N", help="longest text that is read at once (default 512)"
    )
    device_arguments(devices, fit=False)


def device_arguments(p: argparse.ArgumentParser, fit: bool = True) -> None:
    """`--device`, `--devices` and, for a compile, `--fit`."""
    p.add_argument(
        "--device", metavar="NAME", help="refuse what does not fit this device; 'pocketphi devices' lists them"
    )
    p.add_argument("--devices", type=Path, metavar="FILE", help="more devices, in TOML")
    if fit:
        p.add_argument(
            "--min-tokens-per-second",
            type=float,
            metavar="N",
            help="choose each weight's format so that the memory of --device can be fast enough",
        )
        p.add_argument("--fit", action="store_true", help="take the recipe, cache and context that fit --device")


_SLOWEST = 1e-3
"""Tokens a second. Below it the bytes that a memory gives in the meantime soon are no number that a manifest can hold."""


def read_limit(a: argparse.Namespace) -> dict[str, Any]:
    """`--min-tokens-per-second` as the option that it stands for: the bytes that the device's memory gives in that time."""
    if a.min_tokens_per_second is None:
        return {}
    flag = f"--min-tokens-per-second {a.min_tokens_per_second:g}"
    if not a.device:
        raise InputError(f"{flag}: on what? name a --device; 'pocketphi devices' lists them")
    if getattr(a, "max_read", None) is not None:
        raise InputError(f"{flag} and --max-read: each decides the formats of weights; leave out one of them")
    if not _SLOWEST <= a.min_tokens_per_second < math.inf:
        raise InputError(f"{flag}: expected a number, {_SLOWEST:g} or more")
    from pocketphi.compiler.devices import find_device

    return {"max_read": int(find_device(a.device, a.devices).bandwidth / a.min_tokens_per_second)}


def for_device(
    a: argparse.Namespace, options: CompileOptions, ui: Ui
) -> tuple[CompileOptions, Callable[[Policy], None] | None]:
    """The options as `--device` and `--fit` allow them, and what judges a policy that is chosen for a budget. Both raise
    CheckFailed where the device is too small."""
    if not a.device:
        if a.fit:
            raise InputError("--fit: to what? name a --device; 'pocketphi devices' lists them")
        return options, None
    from pocketphi.compiler.device_plan import check_fits, check_runs_on, difference, fit_options
    from pocketphi.compiler.devices import find_device

    device = find_device(a.device, a.devices)
    if options.spends:
        if a.fit:
            raise InputError("--fit: a budget decides the formats already; leave out one of them")
        for target in options.target_names:
            check_runs_on(target, device)
        return options, lambda policy: check_fits(options, device, ui.say, policy)
    fitting = fit_options(options, device, a.fit)
    if fitting != options:
        ui.say(f"{device.title}: taking {difference(options, fitting)}")
    check_fits(fitting, device, ui.say)
    return fitting, None


def _devices(a: argparse.Namespace) -> int:
    from pocketphi.compiler.device_plan import config_of, fit, runs_on
    from pocketphi.compiler.devices import find_device, read_devices
    from pocketphi.compiler.footprint import PROMPT

    chosen = [find_device(a.device, a.devices)] if a.device else list(read_devices(a.devices).values())
    if a.model is None:
        lines = [_line(device) for device in chosen]
        lines += [f"  source    {text}" for text in chosen[0].sources] if a.device else []
        lines += [f"  estimate  {text}" for text in chosen[0].estimates] if a.device else []
        lines += ["~: an estimate, not confirmed; --device NAME says where each number is from"]
        data = [{**vars(device), "estimated": sorted(device.estimated)} for device in chosen]
        print_result(a, data, "\n".join(lines))
        return 0
    options = options_of(a, Path("-"), TARGETS, recipe="rtn")
    config = config_of(a.model, options.lora)
    longest = config.max_position
    check_number("--context", options.context or longest, 2, longest, f"{a.model} has no more positions")
    if a.prompt_tokens is not None:
        why = "the context holds no more" if options.context else f"{a.model} has no more positions"
        check_number("--prompt-tokens", a.prompt_tokens, 1, options.context or longest, why)
    found = [
        fit(config, options, target, device, PROMPT if a.prompt_tokens is None else a.prompt_tokens)
        for device in chosen
        for target in options.target_names
        if runs_on(target, device) or len(chosen) == len(options.targets) == 1
    ]
    lines = [
        f"{one.device:<20} {one.target:<11} {one.described()}; largest context {one.largest_context:,}" for one in found
    ]
    print_result(a, [one.as_json() for one in found], "\n".join(lines))
    return 0 if any(one.ok for one in found) else 1


def _line(device: Device) -> str:
    """A device in one line, with ~ before each number that is an estimate."""
    mark = {name: "~" if name in device.estimated else "" for name in NUMBERS}
    return (
        f"{device.name:<20} {device.title:<38} {mark['ram']}{device.ram / 2**30:.0f} GiB, "
        f"an app {mark['app']}{device.app / 2**30:.1f} GiB, {mark['bandwidth']}{device.bandwidth / 1e9:.1f} GB/s, "
        f"{mark['features']}{' '.join(device.features)}".rstrip(" ,~")
    )


def print_result(a: argparse.Namespace, data: Any, human: str) -> None:
    """What a command found, as JSON or for people."""
    sys.stdout.write((json.dumps(data, indent=1, default=str) if a.json else human) + "\n")
