"""Declared options on a command line: as arguments of a parser, and as the options that came."""

from __future__ import annotations

import argparse
from collections.abc import Container, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pocketphi.compiler.options import DEFAULT_TARGET, CompileOptions, compile_options
from pocketphi.graph.options import Option, Options, declared
from pocketphi.targets import TARGETS, all_targets
from pocketphi.targets.target import Target


def add_options(parser: argparse._ActionsContainer, section: type[Options], only: Container[str] | None = None) -> None:
    """Every option of a section, or only some. One that is not given is left out of the namespace, so that its default is
    said in one place."""
    for name, one in declared(section).items():
        if only is None or name in only:
            _add(parser, one)


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """Those of each target, in a group of its own. One that several have is in a group of theirs, with what each says of it."""
    holders: dict[str, list[Target[Any]]] = {}
    for target in all_targets():
        for name in declared(target.options):
            holders.setdefault(name, []).append(target)
    for target in all_targets():
        own = [name for name in declared(target.options) if holders[name] == [target]]
        if own:
            add_options(parser.add_argument_group(target.title), target.options, own)
    shared = {name: several for name, several in holders.items() if len(several) > 1}
    if shared:
        group = parser.add_argument_group("several targets")
        for name, several in shared.items():
            of_each = [(target.name, declared(target.options)[name]) for target in several]
            _add(group, replace(of_each[0][1], help="; ".join(f"{which}: {one.help}" for which, one in of_each)))


def target_argument(parser: argparse.ArgumentParser, help: str) -> None:
    """`--target`, which may be repeated."""
    parser.add_argument("--target", action="append", choices=list(TARGETS), help=help)


def options_of(
    a: argparse.Namespace, out: Path, targets: Iterable[str] = (DEFAULT_TARGET,), **more: Any
) -> CompileOptions:
    """What the arguments say; more: said for them."""
    known = {*declared(CompileOptions), *(name for target in all_targets() for name in declared(target.options))}
    given = {name: value for name, value in vars(a).items() if name in known}
    return compile_options(a.model, out, a.target or targets, **{**given, **more})


def _add(parser: argparse._ActionsContainer, one: Option) -> None:
    help = one.help.replace("{default}", str(one.default)).replace("%", "%%")
    said: dict[str, Any] = {"dest": one.name, "default": argparse.SUPPRESS, "help": help}
    if one.kind is bool:
        parser.add_argument(f"--{one.flag}", action="store_const", const=not one.default, **said)
        return
    if one.const is not None:
        said |= {"nargs": "?", "const": one.const}
    metavar = one.metavar or (f"{{{','.join(map(str, one.choices))}}}" if one.choices else None)
    if one.many:
        said["action"] = "append"
    parser.add_argument(f"--{one.flag}", type=one.parse or one.kind, metavar=metavar, **said)
