"""Jinja's part is where it is looked for."""

from __future__ import annotations

import jinja2
import pytest

from pocketphi.graph.errors import InputError
from pocketphi.graph.jinja_parts import values_of


def test_what_a_template_put_into_a_namespace() -> None:
    seen: list[object] = []
    environment = jinja2.Environment()
    environment.globals["see"] = lambda namespace: seen.extend(values_of(namespace)) or ""
    environment.from_string("{% set n = namespace(a=1) %}{% set n.b = 'two' %}{{ see(n) }}").render()
    assert seen == [1, "two"]


def test_another_namespace_is_an_error_in_one_line() -> None:
    class Namespace:
        def __init__(self, **values: object) -> None:
            self.values = values

    with pytest.raises(
        InputError,
        match=r"^jinja2 3\.1\.6: Namespace\.__attrs, which the budget of a chat template counts, is not there; pip install ",
    ):
        values_of(Namespace(a=1))
