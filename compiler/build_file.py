"""`pocketphi.toml`: models × targets × recipes, with gates that each bundle must pass.

Longer than most files here: it is one format, and each of its values has a message of its own for what is wrong with it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pocketphi.compiler.options import DEFAULT_TARGET, CompileOptions, compile_options, parse_size
from pocketphi.compiler.suite.gates import SUITE_GATES
from pocketphi.compiler.suite.items import ANSWER_TOKENS, MOST_ANSWER, SHIPPED, Suite, read_suite
from pocketphi.graph.errors import InputError
from pocketphi.graph.lora.named import NamedLora, parse_lora, parse_named
from pocketphi.graph.options import KINDS, Option, declared
from pocketphi.graph.places import Cache, parse_cache
from pocketphi.graph.reading import either, named, nearest, parse_toml, read_whole, resolved, show
from pocketphi.graph.stores import is_url
from pocketphi.passes.quantizers import recipes
from pocketphi.targets import TARGETS, all_targets

_SECTIONS = ("build", "models", "targets", "recipes", "gates", "measure")
_BUILD = ("out", "cache", "device", "sign", "baseline")
_MEASURE = ("text", "tokens", "window", "suite", "answer_tokens")
_NOT_SET_HERE = {"force", "cache", "dump_graphs"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LARGEST, MOST = 1 << 20, 1 << 63


@dataclass(frozen=True)
class Gates:
    """What a bundle must not exceed; None: no gate.

    max_bytes: of all its files; kl: nats a token to the float model; ppl: perplexity; lowering: the largest KL divergence
    (nats a token) that its verification measured; suite: bounds of what a suite finds, by their names in SUITE_GATES
    """

    max_bytes: int | None = None
    kl: float | None = None
    ppl: float | None = None
    lowering: float | None = None
    suite: Mapping[str, float] = field(default_factory=dict)


_OWN_GATES = ("max_bytes", "kl", "ppl", "lowering")
_GATES = (*_OWN_GATES, *SUITE_GATES)


@dataclass(frozen=True)
class Measure:
    """How gates are measured. text: a UTF-8 file, documentation of Python's library if None; see `evaluate_model`; suite: for
    the gates of suites, read where there is one; answer_tokens: see `evaluate_suite`"""

    text: Path | None = None
    tokens: int = 2048
    window: int = 512
    suite: Suite | None = None
    answer_tokens: int = ANSWER_TOKENS


@dataclass(frozen=True)
class Cell:
    """One bundle to build: name: MODEL-TARGET-RECIPE, also its folder's."""

    name: str
    options: CompileOptions
    gates: Gates


@dataclass(frozen=True)
class BuildFile:
    """A matrix, read. sign: a private key, as `pocketphi sign --key` takes it; baseline: folder of bundles to compare with."""

    path: Path
    out: Path
    cells: list[Cell]
    cache: Cache | None = None
    device: str | None = None
    sign: str | None = None
    baseline: Path | None = None
    measure: Measure = field(default_factory=Measure)


def read_build_file(path: Path) -> BuildFile:
    """Raises InputError, with the nearest name, for a key or a target that there is not, and for a value of another type."""
    content = read_whole(path, "expected a build file in TOML", LARGEST)
    return _Reader(path, parse_toml(content, str(path))).read()


class _Reader:
    def __init__(self, path: Path, data: Mapping[str, Any]) -> None:
        self._path, self._data = path, data
        self._folder = resolved(path).parent

    def read(self) -> BuildFile:
        self._check_keys("", self._data, _SECTIONS)
        build = self._table("build", _BUILD)
        measure = self._table("measure", _MEASURE)
        for key in build:
            self._typed("build", key, build[key], str)
        models = self._models()
        targets = self._targets() or {DEFAULT_TARGET: {}}
        tables = self._recipes() or {recipes()[0]: {}}
        gates = self._gates(list(targets))
        measured = self._measure(measure, gates.values())
        cells = []
        for model, target, recipe in itertools.product(models, targets, tables):
            name = f"{model}-{target}-{recipe}"
            try:
                made = compile_options(models[model], Path(name), (target,), **{**tables[recipe], **targets[target]})
            except InputError as error:
                raise InputError(f"{self._path}: {name}: {error}") from None
            cells.append(Cell(name, made, gates[target]))
        self._check_names_differ(cells)
        return BuildFile(
            path=self._path,
            out=self._at("build.out", build.get("out", "bundles")),
            cells=cells,
            cache=self._cache(build["cache"]) if "cache" in build else None,
            device=build.get("device"),
            sign=self._key(build.get("sign")),
            baseline=self._at("build.baseline", build["baseline"]) if "baseline" in build else None,
            measure=measured,
        )

    def _check_names_differ(self, cells: Iterable[Cell]) -> None:
        """Also where a file system does not tell capital letters from others."""
        seen: set[str] = set()
        for cell in cells:
            if cell.name.casefold() in seen:
                raise InputError(
                    f"{self._path}: two bundles would be {cell.name}; give a model or a recipe another name"
                )
            seen.add(cell.name.casefold())

    def _models(self) -> dict[str, str]:
        models = self._table("models", None)
        if not models:
            raise InputError(f'{self._path}: names no model; expected [models] with lines like: chat = "sample"')
        for name, source in models.items():
            self._name("models", name)
            self._typed("models", name, source, str)
            local = self._at(f"models.{name}", source)
            models[name] = str(local) if _exists(local) and not source.startswith("random:") else source
        return models

    def _targets(self) -> dict[str, dict[str, Any]]:
        found = self._tables("targets")
        self._check_keys("targets", found, TARGETS)
        return {name: self._values(f"targets.{name}", table) for name, table in found.items()}

    def _recipes(self) -> dict[str, dict[str, Any]]:
        made = {}
        for name, table in self._tables("recipes").items():
            values = self._values(f"recipes.{name}", table)
            made[name] = {"recipe": name, **values} if name in recipes() else values
        return made

    def _tables(self, section: str) -> dict[str, Any]:
        """Tables of compile options, by name; a list of names where there are none to set."""
        found = self._data.get(section, {})
        if isinstance(found, list) and all(isinstance(name, str) for name in found):
            found = {name: {"recipe": name} if section == "recipes" else {} for name in found}
        if not isinstance(found, dict):
            raise InputError(f"{self._path}: {section}: expected tables or a list of names, got {show(found)}")
        for name, table in found.items():
            self._name(section, name)
            if not isinstance(table, dict):
                raise InputError(f"{self._path}: {section}.{name}: expected a table of options, got {show(table)}")
        return found

    def _values(self, where: str, table: Mapping[str, Any]) -> dict[str, Any]:
        """Options by their names. One that a bundle's target does not have is refused with that bundle."""
        known = _options()
        self._check_keys(where, table, known)
        return {key: self._option(where, value, known[key]) for key, value in table.items()}

    def _option(self, where: str, value: Any, one: Option) -> Any:
        if one.parse is parse_size:
            return self._size(where, one.name, value)
        if one.many:
            return [self._lora(where, one, text) for text in (value if isinstance(value, list) else [value])]
        self._typed(where, one.name, value, str if one.kind is Path else one.kind)
        return self._at(f"{where}.{one.name}", value) if one.kind is Path else value

    def _lora(self, where: str, one: Option, text: Any) -> Any:
        """An adapter's folder counts from the file's folder on."""
        self._typed(where, one.name, text, str)
        named_one = parse_named(text) if one.kind is NamedLora else None
        found = named_one.lora if named_one else parse_lora(text)
        found = replace(found, folder=self._at(f"{where}.{one.name}", str(found.folder)))
        return replace(named_one, lora=found) if named_one else found

    def _gates(self, targets: list[str]) -> dict[str, Gates]:
        """Gates for every target: the common ones, and its own over them."""
        table = self._table("gates", [*_GATES, *targets])
        common = {key: value for key, value in table.items() if key in _GATES}
        made = {}
        for target in targets:
            own = table.get(target, {})
            self._check_keys(f"gates.{target}", own, _GATES)
            values = {key: self._gate(key, value) for key, value in {**common, **own}.items()}
            own_gates = {key: values.pop(key) for key in _OWN_GATES if key in values}
            made[target] = Gates(**own_gates, suite=values)
        return made

    def _gate(self, key: str, value: Any) -> Any:
        if key == "max_bytes":
            return self._size("gates", key, value)
        counted = key in SUITE_GATES and SUITE_GATES[key].counted
        limit = float(self._typed("gates", key, value, int if counted else float))
        if not 0 <= limit < float("inf"):
            raise InputError(f"{self._path}: gates.{key} is {limit}, expected a number that is not negative")
        if key in SUITE_GATES and SUITE_GATES[key].least and limit > 1:
            raise InputError(f"{self._path}: gates.{key} is {limit}, expected a share from 0 to 1")
        return limit

    def _measure(self, table: dict[str, Any], gates: Iterable[Gates]) -> Measure:
        suite = self._suite(table, list(dict.fromkeys(key for one in gates for key in one.suite)))
        kinds = {"text": str, "tokens": int, "window": int, "answer_tokens": int}
        values = {key: self._typed("measure", key, value, kinds[key]) for key, value in table.items()}
        for key in ("tokens", "window"):
            if values.get(key, 2) < 2:
                raise InputError(f"{self._path}: measure.{key} is {values[key]}, expected at least 2")
        limit = values.get("answer_tokens", 1)
        if not 1 <= limit <= MOST_ANSWER:
            raise InputError(f"{self._path}: measure.answer_tokens is {limit}, expected 1 to {MOST_ANSWER}")
        text = self._at("measure.text", values["text"]) if "text" in values else None
        if text and not text.is_file():
            raise InputError(f"{self._path}: measure.text {text}: no such file")
        return Measure(**{**values, "text": text, "suite": suite})

    def _suite(self, table: dict[str, Any], gates: list[str]) -> Suite | None:
        """The suite that gates are measured with, taken out of the table; None where no gate is about one."""
        for key in ("suite", "answer_tokens"):
            if key in table and not gates:
                raise InputError(
                    f"{self._path}: measure.{key}: no gate is about a suite, so that nothing would be asked; add one to "
                    f"[gates], {either(list(SUITE_GATES))}, or leave it out"
                )
        if not gates:
            return None
        names = table.pop("suite", "behaviour")
        names = names if isinstance(names, list) else [names]
        for name in names:
            self._typed("measure", "suite", name, str)
        paths = [name if name in SHIPPED else str(self._at("measure.suite", name)) for name in names]
        suite = read_suite(paths, f"{self._path}: measure.suite")
        held = {line.kind for line in suite.lines}
        for gate in gates:
            if not held & set(SUITE_GATES[gate].kinds):
                wanted, came = " or ".join(SUITE_GATES[gate].kinds), ", ".join(sorted(held))
                raise InputError(
                    f"{self._path}: gates.{gate} is about lines of the kind {wanted}; measure.suite has {came}"
                )
        return suite

    def _table(self, section: str, known: Iterable[str] | None) -> dict[str, Any]:
        table = self._data.get(section, {})
        if not isinstance(table, dict):
            raise InputError(f"{self._path}: {section}: expected a table, [{section}], got {show(table)}")
        if known is not None:
            self._check_keys(section, table, known)
        return dict(table)

    def _check_keys(self, section: str, table: Any, known: Iterable[str]) -> None:
        if not isinstance(table, dict):
            raise InputError(f"{self._path}: {section}: expected a table, got {show(table)}")
        check_keys(self._path, section, table, known)

    def _typed(self, section: str, key: str, value: Any, kind: type) -> Any:
        right = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
        if not right or (isinstance(value, int) and not -MOST < value < MOST):
            raise InputError(f"{self._path}: {section}.{key} is {show(value)}, expected {KINDS[kind]}")
        return value

    def _size(self, section: str, key: str, value: Any) -> int:
        """Bytes as a number, or as a text with a unit."""
        if not isinstance(value, str):
            size = int(self._typed(section, key, value, int))
            if size < 0:
                raise InputError(f"{self._path}: {section}.{key} is {size}, expected a number of bytes")
            return size
        return size_of(value, f"{self._path}: {section}.{key}")

    def _name(self, section: str, name: str) -> None:
        if not NAME.fullmatch(name):
            raise InputError(
                f"{self._path}: {section}.{show(name)}: expected a name of letters, digits, '.', '_' and '-'"
            )

    def _cache(self, text: str) -> Cache:
        if not is_url(text):
            return Cache(self._at("build.cache", text))
        try:
            return parse_cache(text)
        except InputError as error:
            raise InputError(f"{self._path}: build.cache: {error}") from None

    def _key(self, key: str | None) -> str | None:
        return key if key is None or key.startswith("env:") else str(self._at("build.sign", key))

    def _at(self, where: str, path: str) -> Path:
        """A path in the file, from the file's folder."""
        try:
            if path and path.isprintable():
                return self._folder / Path(path).expanduser()
        except RuntimeError:  # the home of a user that there is not
            pass
        raise InputError(f"{self._path}: {where} is {show(path)}, which cannot be a path")


def _options() -> dict[str, Option]:
    """The options that a build file may set."""
    own = {name: one for name, one in declared(CompileOptions).items() if name not in _NOT_SET_HERE}
    return own | {name: one for target in all_targets() for name, one in declared(target.options).items()}


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for a file
        return False


def check_keys(path: Path, section: str, table: Iterable[str], known: Iterable[str]) -> None:
    """Raise InputError for the first key of a table that there is not."""
    for key in table:
        if key not in known:
            what, prefix = "target" if section == "targets" else "key", f"{section}." if section else ""
            raise InputError(f"{path}: unknown {what} {prefix}{named(key)}; {nearest(key, known)}")


def size_of(text: str, where: str) -> int:
    """As `parse_size`; where: what stands before its message."""
    try:
        return parse_size(text)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
