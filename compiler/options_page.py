"""The page of all options, made from where they are declared: `python -m pocketphi.compiler.options_page > docs/options.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from pocketphi.compiler.options import CompileOptions, Limits, ProgramOptions, RecipeOptions
from pocketphi.graph.options import Options, declared
from pocketphi.targets import all_targets

_HEAD = """# Options of a compile

This page is made from the code: `python -m pocketphi.compiler.options_page > docs/options.md`.

An option has one name. The command line says `--{flag} 32`, a build file `{name} = 32`, and Python `{name}=32`. In a build
file, the options of a target stand in its table, `[targets.{target}]`; all others may stand there or in a recipe's table. In
Python, the options of a target are a value of their own: `pocketphi.compile("sample", "out", [pocketphi.{type}({name}=32)])`.
An option of a target that is not compiled for is an error.

*Bytes* says whether an option changes what is written. Two compiles that differ in none of these give the same bundle.
"""


def page() -> str:
    """The whole page, in Markdown."""
    sections = [
        ("How weights are made small", RecipeOptions),
        ("What the model computes", ProgramOptions),
        ("What a compile keeps to", Limits),
        *((f"{target.title}: `--target {target.name}`", target.options) for target in all_targets()),
    ]
    assert {name for _, section in sections[:3] for name in declared(section)} == set(declared(CompileOptions))
    target, one = next(
        (t, o) for t in all_targets() for o in declared(t.options).values() if o.kind is int and not o.choices
    )
    head = _HEAD.format(flag=one.flag, name=one.name, target=target.name, type=target.options.__name__)
    return "\n".join([head, *(line for title, section in sections for line in _section(title, section))])


def _section(title: str, section: type[Options]) -> Iterator[str]:
    yield f"## {title}\n"
    yield "| command line | build file, Python | value | default | bytes | what it does |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for one in declared(section).values():
        cells = (
            f"`--{one.flag}`",
            f"`{one.name}`",
            ", ".join(f"`{choice}`" for choice in one.choices) or one.expected,
            "" if one.default in (None, ()) else f"`{str(one.default).lower() if one.kind is bool else one.default}`",
            "yes" if one.decides else "no",
            one.help.replace("{default}", str(one.default)).replace("|", "\\|"),
        )
        yield f"| {' | '.join(cells)} |"
    yield ""


if __name__ == "__main__":
    sys.stdout.write(page())
