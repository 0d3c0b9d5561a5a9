"""The command `devices`, and the options `--device` and `--fit` of a compile."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pocketphi.compiler.arguments import check_number
from pocketphi.compiler.devices import NUMBERS, Device
from pocketphi.compiler.options import TARGETS, CompileOptions, parse_block
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import InputError
from pocketphi.passes.choices import FILE_BLOCK, default_block

AddCommand = Callable[[str, Any, str], argparse.ArgumentParser]


def add_device_command(command: AddCommand) -> None:
    """command: as `add_build_commands` takes it."""
    devices = command(
        "devices", _devices, "the table of devices; with a model: does it fit, and how fast can it be at best"
    )
    devices.add_argument("model", nargs="?", metavar="MODEL")
    devices.add_argument("--target", action="append", choices=TARGETS, help="default: all that run there")
    form_arguments(devices)
    devices.add_argument("--kv-cache", default="fp16", metavar="TYPE", help="of tvm-arm: fp16 (default) or int8")
    devices.add_argument("--context", type=int, help="longest sequence (default: the model's; Core ML at most 2048)")
    devices.add_argument(
        "--prompt-tokens", type=int, metavar="N", help="longest text that is read at once (default 512)"
    )
    device_arguments(devices, fit=False)


def form_arguments(p: argparse.ArgumentParser) -> None:
    """How weights are stored, which decides their size."""
    p.add_argument(
        "--block",
        type=parse_block,
        metavar="N",
        help="weights that share a scale: 16 to 256, or row for whole rows "
        f"(default {default_block('search')}; of --recipe keep {FILE_BLOCK})",
    )
    p.add_argument("--asymmetric", action="store_true", help="a zero point for each block")
    p.add_argument(
        "--palette",
        type=int,
        nargs="?",
        const=16,
        metavar="ROWS",
        help="in place of blocks, tables of 16 values for so many rows each (16 without a number): for the Neural Engine",
    )
    for what in ("embedding", "head"):
        p.add_argument(f"--{what}-bits", type=int, choices=[4, 8], default=4, help="default %(default)s")


def form_options(a: argparse.Namespace) -> dict[str, Any]:
    """What `form_arguments` read, as `CompileOptions` calls it."""
    kept = {name: getattr(a, name) for name in ("block", "palette", "embedding_bits", "head_bits")}
    return {**kept, "symmetric": not a.asymmetric}


def device_arguments(p: argparse.ArgumentParser, fit: bool = True) -> None:
    """`--device`, `--devices` and, for a compile, `--fit`."""
    p.add_argument(
        "--device", metavar="NAME", help="refuse what does not fit this device; 'pocketphi devices' lists them"
    )
    p.add_argument("--devices", type=Path, metavar="FILE", help="more devices, in TOML")
    if fit:
        p.add_argument("--fit", action="store_true", help="take the recipe and context that fit --device")


def for_device(a: argparse.Namespace, options: CompileOptions, ui: Ui) -> CompileOptions:
    """The options as `--device` and `--fit` allow them. Raises CheckFailed where the device is too small."""
    if not a.device:
        if a.fit:
            raise InputError("--fit: to what? name a --device; 'pocketphi devices' lists them")
        return options
    from pocketphi.compiler.device_plan import config_of, difference, fit, fit_options
    from pocketphi.compiler.devices import find_device

    device = find_device(a.device, a.devices)
    fitting = fit_options(options, device, a.fit)
    if fitting != options:
        ui.say(f"{device.title}: taking {difference(options, fitting)}")
    for target in fitting.targets:
        ui.say(f"{device.title}, {target}: {fit(config_of(fitting.model), fitting, target, device).described()}")
    return fitting


def _devices(a: argparse.Namespace) -> int:
    from pocketphi.compiler.device_plan import config_of, fit
    from pocketphi.compiler.devices import find_device, read_devices
    from pocketphi.compiler.footprint import PROMPT

    chosen = [find_device(a.device, a.devices)] if a.device else list(read_devices(a.devices).values())
    if a.model is None:
        lines = [_line(device) for device in chosen]
        lines += [f"  source    {text}" for text in chosen[0].sources] if a.device else []
        lines += [f"  estimate  {text}" for text in chosen[0].estimates] if a.device else []
        lines += ["~: an estimate, not confirmed; --device NAME says where each number is from"]
        data = [{**vars(device), "estimated": sorted(device.estimated)} for device in chosen]
        _print(a, data, "\n".join(lines))
        return 0
    targets = tuple(a.target or TARGETS)
    options = CompileOptions(
        a.model,
        Path("-"),
        targets,
        recipe="rtn",
        **form_options(a),
        context=a.context,
        kv_cache=a.kv_cache,
    )
    config = config_of(a.model)
    longest = config.max_position
    check_number("--context", a.context or longest, 2, longest, f"{a.model} has no more positions")
    if a.prompt_tokens is not None:
        why = "the context holds no more" if a.context else f"{a.model} has no more positions"
        check_number("--prompt-tokens", a.prompt_tokens, 1, a.context or longest, why)
    found = [
        fit(config, options, target, device, PROMPT if a.prompt_tokens is None else a.prompt_tokens)
        for device in chosen
        for target in targets
        if target != "coreml" or device.platform == "ios" or len(chosen) == len(targets) == 1
    ]
    lines = [
        f"{one.device:<20} {one.target:<11} {one.described()}; largest context {one.largest_context:,}" for one in found
    ]
    _print(a, [one.as_json() for one in found], "\n".join(lines))
    return 0 if any(one.ok for one in found) else 1


def _line(device: Device) -> str:
    """A device in one line, with ~ before each number that is an estimate."""
    mark = {name: "~" if name in device.estimated else "" for name in NUMBERS}
    return (
        f"{device.name:<20} {device.title:<38} {mark['ram']}{device.ram / 2**30:.0f} GiB, "
        f"an app {mark['app']}{device.app / 2**30:.1f} GiB, {mark['bandwidth']}{device.bandwidth / 1e9:.1f} GB/s, "
        f"{mark['features']}{' '.join(device.features)}".rstrip(" ,~")
    )


def _print(a: argparse.Namespace, data: Any, human: str) -> None:
    sys.stdout.write((json.dumps(data, indent=1) if a.json else human) + "\n")
