"""Options, each declared in one place: a field of a frozen dataclass, which says what it is for, what it may be, and whether
it decides the bytes of a bundle.

The command line, the build file, the key of a build, the manifest and the page of all options are made from these fields.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pocketphi.graph.errors import InputError
from pocketphi.graph.lora.named import Lora, NamedLora
from pocketphi.graph.places import Cache
from pocketphi.graph.reading import named, path_of

T = TypeVar("T")
KINDS: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    Path: "a path",
    Lora: "a folder, or `FOLDER=WEIGHT`",
    NamedLora: "`NAME=FOLDER`, or `NAME=FOLDER=WEIGHT`",
    Cache: "a folder, or the URL of a store",
}


@dataclass(frozen=True)
class Option:
    """What a field says of itself.

    name, kind, default: of the field, whose type is `kind`, or may be None as well where `optional`
    flag:    on the command line, without the dashes; of a bool whose default is true, the flag that makes it false
    help:    for the command line and the docs; `{default}` is filled in
    choices: the only values; empty for any. unit: a word behind them
    metavar: what stands for the value in a help
    const:   the value of a flag that is given without one
    parse:   text → value; raises InputError
    decides: whether the bytes of a bundle depend on it
    recorded: whether it stands among the recipe's options in a manifest
    stands:  of an option that names a folder, the file in it whose content stands for all of it
    many:    the field is a tuple of such values; on the command line, the flag may be repeated
    """

    name: str
    kind: type
    optional: bool
    default: Any
    flag: str
    help: str
    choices: Sequence[Any] = ()
    unit: str = ""
    metavar: str | None = None
    const: Any = None
    parse: Callable[[str], Any] | None = None
    decides: bool = True
    recorded: bool = False
    stands: str = ""
    many: bool = False

    @property
    def expected(self) -> str:
        """What a value has to be, in words."""
        return KINDS[self.kind] + (", or a list of such" if self.many else "")

    def check(self, value: Any) -> Any:
        """The value, a path made of a text. Raises InputError for one that it cannot be."""
        if self.many:
            values = value if isinstance(value, list | tuple) else [value]
            return tuple(self._parsed(one) for one in values)
        if value is None and (self.optional or self.default is None):
            return None
        if self.kind is Path and isinstance(value, str):
            return path_of(value)
        if self.kind is Cache:
            return self._parsed(value)
        kinds = (int, float) if self.kind is float else self.kind
        if not isinstance(value, kinds) or (isinstance(value, bool) and self.kind is not bool):
            raise InputError(f"--{self.flag} {named(value)}: expected {self.expected}")
        if self.choices and value not in self.choices:
            choices = [str(choice) for choice in self.choices]
            words = " or ".join(choices) if len(choices) < 3 else f"one of {', '.join(choices)}"
            raise InputError(f"--{self.flag} {named(value)}: expected {' '.join(filter(None, [words, self.unit]))}")
        return value

    def _parsed(self, value: Any) -> Any:
        """A value of a kind that is parsed."""
        if isinstance(value, str | Path) and self.parse:
            return self.parse(str(value))
        if not isinstance(value, self.kind):
            raise InputError(f"--{self.flag} {named(value)}: expected {self.expected}")
        return value


def option(default: T, help: str, **more: Any) -> T:
    """A field of `Options`. more: what else an `Option` says of itself."""
    made: T = field(default=default, metadata={"option": {"help": help, **more}})
    return made


@dataclass(frozen=True, kw_only=True)
class Options:
    """A section of options. A value that its option cannot be is an InputError when the section is made.

    contents: of the files that options name, as `content` has read them; options that are made of these share them
    """

    contents: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, one in declared(type(self)).items():
            value = getattr(self, name)
            checked = one.check(value)
            if checked is not value:
                object.__setattr__(self, name, checked)

    def content(self, name: str) -> bytes | None:
        """What the file that an option names holds, or that stands for the folder; None where it names none. It is read once:
        what is compiled is what was looked at, whatever happens to the file meanwhile. Raises InputError where it cannot be
        read."""
        path: Path | None = getattr(self, name)
        if path is None:
            return None
        if name not in self.contents:
            one = declared(type(self))[name]
            try:
                self.contents[name] = (path / one.stands).read_bytes()
            except OSError as error:
                raise InputError(f"{path}: --{one.flag} cannot be read: {error.strerror}") from None
        return self.contents[name]

    def deciding(self) -> dict[str, Any]:
        """The values that decide a bundle's bytes, by name; of a file its content."""
        found = {}
        for name, one in declared(type(self)).items():
            if one.decides:
                value: Any = self.content(name) if one.kind is Path else getattr(self, name)
                found[name] = [each.deciding() for each in value] if one.many else value
        return found


_DECLARED: dict[type[Options], dict[str, Option]] = {}


def declared(section: type[Options]) -> dict[str, Option]:
    """The options of a section, by name, in order."""
    if section in _DECLARED:
        return _DECLARED[section]
    hints = typing.get_type_hints(section)
    found = {}
    for one in dataclasses.fields(section):
        if "option" not in one.metadata:
            continue
        kinds = typing.get_args(hints[one.name]) or (hints[one.name],)
        (kind,) = (k for k in kinds if k not in (types.NoneType, Ellipsis))
        said = {"many": Ellipsis in kinds, "flag": one.name.replace("_", "-"), **one.metadata["option"]}
        found[one.name] = Option(one.name, kind, types.NoneType in kinds, one.default, **said)
    return _DECLARED.setdefault(section, found)
