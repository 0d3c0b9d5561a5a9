"""A bound on what a Jinja template may cost: counted, not timed, so that it is the same on every machine.

The sandbox's hooks pay for values from a budget (`Budget`), before a value is made where its operands tell how large it will
be. What Jinja compiles without a hook goes through one, too: `count_everything` rewrites the template's syntax tree so that
loops, literals, slices, comparisons and what is written are passed through filters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from operator import length_hint
from types import BuiltinMethodType
from typing import Any

from jinja2 import nodes
from jinja2.runtime import LoopContext, str_join
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from pocketphi.graph.errors import InputError
from pocketphi.graph.jinja_parts import values_of

CHARGE, LOOP, JOIN = "charge value", "charge loop", "charge join"
"""Names of the filters that `count_everything` puts in; no template can spell them."""

_WORK = 1 << 25
"""Units of work of one rendering: a character is one. A second or two at the very most; a long chat takes a hundredth."""
_STEP, _ITEM, _NODE, _CALL = 32, 32, 2, 512
"""Units of a hook, of an item in a list, of a node of the syntax tree that is run, and of a call of what is not built in."""
_LARGEST = 1 << 21
"""Characters of the largest text, and units of the largest list."""
_BITS = 1 << 12
_TOO_LARGE, _TOO_MANY_DIGITS = "it makes a text or a list that is too large", "it makes a number of too many digits"
_MULTIPLY = {"center", "ljust", "rjust", "zfill", "expandtabs", "to_bytes", "replace", "join", "translate"} | {
    *("format", "format_map", "indent", "batch", "slice", "tojson", "wordwrap", "urlize")
}
"""Methods and filters whose result may be as large as the product of what they are given."""


class TooCostly(InputError):
    """A template asks for more work, or for a larger value, than any chat needs."""


class Budget:
    """What is left of one rendering. nodes: of the template's syntax tree."""

    def __init__(self, nodes: int = 1) -> None:
        self._left = _WORK
        self._nodes = nodes

    def charge(self, value: Any) -> Any:
        """The value itself, once it is paid for."""
        self._spend(_STEP + _size(value))
        if isinstance(value, Iterator) and not isinstance(value, LoopContext):
            return iter([self.charge(one) for one in value])  # its length can be told before it is used
        return value

    def loop(self, values: Any, nodes: int) -> Any:
        """What a loop runs over, as a list; nodes: of the loop's body, which each item pays for."""
        found = []
        for value in values:
            self._spend(_STEP + _NODE * nodes)
            found.append(value)
        return found

    def write(self, pieces: Iterable[str]) -> str:
        """What a template, a macro or a block has written, as one text."""
        written, size = [], 0
        for piece in pieces:
            size += len(piece)
            self._spend(_STEP + len(piece))
            if size > _LARGEST:
                raise TooCostly(_TOO_LARGE)
            written.append(piece)
        return "".join(written)

    def join(self, values: list[Any]) -> str:
        """The `~` operator."""
        self.charge(values)
        return str_join(values)

    def operator(self, name: str, left: Any, right: Any) -> None:
        """Pay for an arithmetic operator before it is computed."""
        if name == "%" and isinstance(left, str):
            self._format(left, [right])
        elif name == "*":
            _check_product([left, right])
        elif name == "**" and _bits(left) * (abs(right) if isinstance(right, int) else 1) > _BITS:
            raise TooCostly(_TOO_MANY_DIGITS)

    def call(self, function: Any, arguments: list[Any]) -> None:
        """Pay for a call before it is made; what is not built in runs a part of the template."""
        self._spend(_STEP if isinstance(function, BuiltinMethodType) else _CALL + _NODE * self._nodes)
        if isinstance(function, LoopContext):
            for values in arguments:
                self.loop(values, self._nodes)
        method = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
        self.named(getattr(method, "__name__", ""), [getattr(method, "__self__", None), *arguments])

    def named(self, name: object, arguments: list[Any]) -> None:
        """Pay for a method or a filter before it runs."""
        if name in ("format", "format_map") and isinstance(arguments[0], str):
            self._format(arguments[0], arguments[1:])
        elif name in _MULTIPLY:
            _check_product(arguments)

    def _format(self, text: str, arguments: list[Any]) -> None:
        widths = [int(number[:9]) for number in re.findall(r"\d{3,}", text)]
        given = [inner for one in arguments for inner in (one if isinstance(one, tuple | list) else [one])]
        _check_product([text, max(widths, default=1), *given])

    def _spend(self, units: int) -> None:
        self._left -= units
        if self._left < 0:
            raise TooCostly(f"it asks for more than {_WORK:,} steps")


def count_everything(tree: nodes.Template) -> nodes.Template:
    """The same template, with filters around what Jinja has no hook for."""
    counted: nodes.Template = _Counted().visit(tree)
    return counted


class _Counted(NodeTransformer):
    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        node = super().generic_visit(node, *args, **kwargs)
        sliced = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        made = isinstance(node, nodes.List | nodes.Dict) or (isinstance(node, nodes.Tuple) and node.ctx == "load")
        return _through(CHARGE, node) if sliced or made else node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  # Jinja finds it by the node's name
        size = sum(1 for _ in node.find_all(nodes.Node))
        self.generic_visit(node)
        node.iter = _through(LOOP, node.iter, nodes.Const(size))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802  # Jinja finds it by the node's name
        self.generic_visit(node)
        return _through(JOIN, nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802  # Jinja finds it by the node's name
        self.generic_visit(node)
        node.expr = _through(CHARGE, node.expr)
        for operand in node.ops:
            operand.expr = _through(CHARGE, operand.expr)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802  # Jinja finds it by the node's name
        self.generic_visit(node)
        node.nodes = [one if isinstance(one, nodes.TemplateData) else _through(CHARGE, one) for one in node.nodes]
        return node


def _through(filter_name: str, node: Any, *arguments: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, filter_name, list(arguments), [], None, None, lineno=node.lineno)


def _check_product(values: list[Any]) -> None:
    """Refuse what would be larger than a text may be, and numbers of too many digits."""
    total = 1
    for value in values:
        if isinstance(value, bool) or value is None:
            continue
        total *= max(1, abs(value)) if isinstance(value, int) else max(1, _size(value))
        if total > 4 * _LARGEST and not all(isinstance(one, int | float) for one in values):
            raise TooCostly(_TOO_LARGE)
    if _bits(total) > _BITS:
        raise TooCostly(_TOO_MANY_DIGITS)


def _size(value: Any) -> int:
    """Units of a value and of all that it holds, as often as each would be written. Raises TooCostly."""
    if isinstance(value, str | bytes):
        if len(value) > _LARGEST:
            raise TooCostly(_TOO_LARGE)
        return len(value)
    if _bits(value) > _BITS:
        raise TooCostly(_TOO_MANY_DIGITS)
    size, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        size += _ITEM + (len(one) if isinstance(one, str | bytes) else 0)
        waiting += _parts(one)
        if size + _ITEM * len(waiting) > _LARGEST:
            raise TooCostly(_TOO_LARGE)
    return size


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, Iterator):
        return [None] * length_hint(value)
    if isinstance(value, Namespace):
        return values_of(value)
    return []


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 1
