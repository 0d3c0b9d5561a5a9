"""Chat templates, rendered as transformers renders them and at a bounded cost.

transformers takes a second to import, which a chat cannot wait for: its environment is made again here (see
`_compile_jinja_template` in transformers/utils/chat_template_utils.py), and `compiler/text_check.py` compares the two.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import show
from pocketphi.graph.template_budget import CHARGE, JOIN, LOOP, Budget, TooCostly, count_everything

_LONGEST = 1 << 17
"""Characters of a template. The longest published ones have a sixth of it."""

_SCOPES = ("_loop_vars", "_block_vars")
"""What Jinja passes with a call in a loop or a block: all variables there. The function does not get them."""

Messages = Sequence[Mapping[str, str]]


class ChatTemplate:
    """One template, compiled. tells_time: whether what it writes depends on the date; words: the texts that its expressions
    hold, each once."""

    def __init__(self, source: str) -> None:
        """Raises InputError for what is not a template."""
        if len(source) > _LONGEST:
            raise InputError(f"chat: the chat template has {len(source):,} characters, expected {_LONGEST:,} at most")
        self._environment = _Environment()
        self._template = _guarded(lambda: self._compile(source))

    def _compile(self, source: str) -> jinja2.Template:
        tree = self._environment.parse(source)
        self._nodes = sum(1 for _ in tree.find_all(nodes.Node))
        self.tells_time = any(name.name == "strftime_now" for name in tree.find_all(nodes.Name))
        texts = [const.value for const in tree.find_all(nodes.Const) if isinstance(const.value, str)]
        self.words = tuple(dict.fromkeys(filter(None, texts)))
        tree = count_everything(tree)
        tree.set_environment(self._environment)
        code = self._environment.compile(tree)
        return jinja2.Template.from_code(self._environment, code, self._environment.make_globals(None))

    def render(
        self, messages: Messages, tokens: Mapping[str, str], now: datetime.datetime | None = None, answer: bool = True
    ) -> str:
        """The text of a conversation. messages: `role` and `content` each; tokens: the special ones, by name; now: the time
        that the template may ask for; answer: end where the assistant's answer starts.

        Raises InputError where the template refuses the messages, fails, or asks for more work than any chat needs.
        """
        self._environment.budget = Budget(self._nodes)
        self._environment.now = now
        chat = [dict(message) for message in messages]
        values = {**tokens, "messages": chat, "tools": None, "documents": None, "add_generation_prompt": answer}
        return _guarded(lambda: self._environment.concat(self._template.generate(values)))


class _Environment(ImmutableSandboxedEnvironment):
    """transformers' environment, whose every hook pays for what it makes."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
        self.budget = Budget()
        self.now: datetime.datetime | None = None
        self.filters["tojson"] = _to_json
        self.globals.update(
            raise_exception=_refuse, strftime_now=self._strftime_now, dict=_Dict(), namespace=_Namespace, lipsum=_lipsum
        )
        self.filters = {name: self._paid(name, function) for name, function in self.filters.items()}
        self.filters[CHARGE] = lambda value: self.budget.charge(value)
        self.filters[LOOP] = lambda values, size: self.budget.loop(values, size)
        self.filters[JOIN] = lambda values: self.budget.join(values)

    def concat(self, pieces: Iterable[str]) -> str:  # a static method in the base class
        """The text of what a template, a macro or a block has written."""
        return self.budget.write(pieces)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.budget.operator(operator, left, right)
        return self.budget.charge(super().call_binop(context, operator, left, right))

    def getitem(self, obj: Any, argument: Any) -> Any:
        return self.budget.charge(super().getitem(obj, argument))

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self.budget.charge(super().getattr(obj, attribute))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  # as in the base class
        __self.budget.call(__obj, [*args, *(value for name, value in kwargs.items() if name not in _SCOPES)])
        return __self.budget.charge(super().call(__context, __obj, *args, **kwargs))

    def _paid(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        skip = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def paid(*args: Any, **kwargs: Any) -> Any:
            self.budget.named(name, [*args[skip:], *kwargs.values()])
            return self.budget.charge(function(*args, **kwargs))

        return paid

    def _strftime_now(self, format: str) -> str:
        return (self.now or datetime.datetime.now()).strftime(format)


class _Generation(Extension):
    """`{% generation %}`: marks the assistant's words for training; they are written as they are."""

    tags = {"generation"}  # noqa: RUF012  # as the base class declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Macro) -> str:
        return caller()


class _Dict:
    """`dict` as a template may have it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(Namespace):
    """Names that start with an underscore lead to Python's own insides."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {show(name)}: it starts with an underscore")


def _guarded(work: Callable[[], Any]) -> Any:
    """Whatever a template raises is one line of InputError."""
    try:
        return work()
    except TooCostly as error:
        raise TooCostly(f"chat: the chat template costs too much: {error}") from None
    except Exception as error:  # templates are programs: anything may happen in them
        kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
        said = " ".join(str(error).split())
        raise InputError(f"chat: the chat template failed ({kind}{said[:300]})") from None


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _lipsum(*args: Any, **kwargs: Any) -> str:
    raise jinja2.TemplateError("lipsum writes another text each time")


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As transformers': Jinja's own would escape what HTML has a meaning for."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
