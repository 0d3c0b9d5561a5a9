"""A policy as a file that a user can edit: TOML, or JSON of the same form.

smooth = true  # norms give off factors of their channels first; left out, they do not

[[rules]]
pattern = "model.layers.*.mlp.down_proj.weight"
format = "int8"
recipe = "search"
block = 64
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

from pocketphi.artifacts.manifest import RuleRecord
from pocketphi.compiler.options import CompileOptions
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import FORMATS
from pocketphi.graph.reading import named, parse_json, parse_toml, show
from pocketphi.passes.policy import Policy, Rule
from pocketphi.passes.quantizers import make_quantizer
from pocketphi.targets import find_target

_NEEDED = ("pattern", "format", "recipe")


def read_policy(options: CompileOptions) -> Policy:
    """The rules of `--policy`. Raises InputError naming the rule that is not as it should be."""
    content, where = options.content("policy") or b"", str(options.policy)
    json_file = options.policy is not None and options.policy.suffix == ".json"
    data: Any = (parse_json if json_file else parse_toml)(content, where)
    rules = data.get("rules") if isinstance(data, dict) else None
    if not isinstance(rules, list) or not rules or not set(data) <= {"rules", "smooth"}:
        raise InputError(f"{where}: expected a list of rules, [[rules]], and nothing else but smooth")
    smooth = data.get("smooth", False)
    if not isinstance(smooth, bool):
        raise InputError(f"{where}: smooth is {show(smooth)}, expected true or false")
    return Policy(tuple(_rule(f"{where}: rule {number}", rule) for number, rule in enumerate(rules, 1)), smooth)


def write_policy(rules: Collection[RuleRecord], smooth: bool = False) -> str:
    """Rules as such a file, in TOML; a text in JSON is one in TOML too."""
    texts = ["smooth = true"] if smooth else []
    for rule in rules:
        said = {"pattern": rule.pattern, "format": rule.format, "recipe": rule.recipe, **rule.parameters}
        texts.append("\n".join(["[[rules]]", *(f"{key} = {json.dumps(value)}" for key, value in said.items())]))
    return "\n\n".join(texts) + "\n"


def check_policy(policy: Policy, config: ModelConfig, options: CompileOptions) -> None:
    """Raise InputError, before any work, for a rule that no weight follows, a weight that follows none, and a format that a
    target's files cannot hold."""
    names = list(config.matrices())
    for rule in policy.rules:
        matched = [name for name in names if fnmatchcase(name, rule.pattern)]
        if not matched:
            raise InputError(f"{options.policy}: {named(rule.pattern)} matches no weight; there is {names[0]}")
        if rule.pattern != "*" and not any(policy.rule(name) is rule for name in matched):
            first = policy.rule(matched[0])
            raise InputError(
                f"{options.policy}: no weight follows {named(rule.pattern)}: the first rule that matches counts, which is "
                f"{named(first.pattern if first else '')} for {matched[0]}; put it before"
            )
    for name in names:
        quantizer = policy.quantizer(name)
        if quantizer is None:
            raise InputError(f'{options.policy}: no rule matches {name}; a last one with pattern = "*" takes the rest')
        form = quantizer.format
        for one in options.of_targets:
            target = find_target(one.target)
            held = target.holds(one)
            if form.name not in held:
                raise InputError(
                    f"{options.policy}: {name} is to be {form.name}, which {target.name} cannot hold; "
                    f"{target.instead(form)} (it holds {', '.join(held)})"
                )


def _rule(where: str, rule: Any) -> Rule:
    if not isinstance(rule, Mapping):
        raise InputError(f"{where} is {show(rule)}, expected pattern, format and recipe")
    for key in _NEEDED:
        if not isinstance(rule.get(key), str):
            raise InputError(f"{where}: {key} is {show(rule.get(key))}, expected a text")
    if rule["format"] not in FORMATS:
        raise InputError(f"{where}: format {named(rule['format'])}: expected one of {', '.join(FORMATS)}")
    parameters = {key: value for key, value in rule.items() if key not in _NEEDED}
    try:
        return Rule(rule["pattern"], make_quantizer(rule["recipe"], rule["format"], parameters))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
