"""The page: a template, its style, and plotly, which the browser unpacks."""

from __future__ import annotations

import base64
import functools
import gzip
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pocketphi.graph.errors import InputError

_HERE = Path(__file__).parent


def render(facts: Mapping[str, Any], drawn: Mapping[str, Any]) -> str:
    """facts: what the template names; drawn: figures by the id of their place. Raises InputError where plotly is missing."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["size"] = size_text
    defaults = {"errors": None, "reference": None, "neighbours": None, "against": None, "changes": None}
    return environment.get_template("page.html.j2").render(
        {**defaults, **facts},
        drawn=drawn,
        figures=_json(drawn),
        plotly=_plotly(),
        style=(_HERE / "page.css").read_text("utf-8"),
        script=(_HERE / "page.js").read_text("utf-8"),
    )


def size_text(count: int) -> str:
    """`1.86 GB`, `640 kB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:,.2f} {name}"
    return f"{count} bytes"


def _json(value: Any) -> str:
    """For a script element: nothing in it ends one, or begins a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@functools.cache
def _plotly() -> str:
    """plotly.js of the Python package, in gzip and base64: a page has 2 MB of it in place of 4.8. Every browser since 2023
    unpacks it (`DecompressionStream`); an older one shows the tables."""
    found = importlib.util.find_spec("plotly")
    if found is None or not found.submodule_search_locations:
        raise InputError("a report needs the package 'plotly'; install it with: pip install 'pocketphi[report]'")
    code = (Path(found.submodule_search_locations[0]) / "package_data" / "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(code, 9, mtime=0)).decode()
