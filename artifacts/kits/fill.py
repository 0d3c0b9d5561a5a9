"""Fill the kits' templates: Swift and Kotlin as they are, with «values» and <% lines %> in the syntax of Jinja."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).with_name("templates")


def fill(folders: Sequence[str], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(path, text) of every file of some template folders. values: among others `name` of a Swift module (`KIT` in paths) and
    `package` of a Kotlin one (its folders below `kotlin/`)."""
    environment = jinja2.Environment(
        variable_start_string="«",
        variable_end_string="»",
        block_start_string="<%",
        block_end_string="%>",
        comment_start_string="<#",
        comment_end_string="#>",
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )
    environment.filters |= {"kotlin": kotlin_literal, "swift": swift_literal}
    for folder in folders:
        for path in sorted((TEMPLATES / folder).rglob("*")):
            if path.is_file():
                name = str(path.relative_to(TEMPLATES / folder)).replace("KIT", str(values["name"]))
                name = name.replace("/kotlin/", f"/kotlin/{str(values['package']).replace('.', '/')}/")
                yield name, environment.from_string(path.read_text("utf-8")).render(values)


def kotlin_literal(text: str) -> str:
    """A Kotlin string of this text: JSON's escapes, and `$`."""
    return json.dumps(text).replace("$", "\\$").replace("\\f", "\\u000c")


def swift_literal(text: str) -> str:
    """A Swift string of this text; escapes `\\u{…}`."""
    plain = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}
    return '"' + "".join(plain.get(c, c if c.isprintable() else f"\\u{{{ord(c):x}}}") for c in text) + '"'
