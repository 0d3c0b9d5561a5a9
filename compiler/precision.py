"""The policy of a compile, as options and manifests say it.

A manifest has fields for what the command line can ask; rules stand in it only where those fields cannot say them.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.manifest import RecipeRecord, RuleRecord
from pocketphi.compiler.options import CompileOptions
from pocketphi.compiler.policy_file import read_policy, write_policy
from pocketphi.graph.hf_config import read_config
from pocketphi.passes.policy import Policy, Rule, policy_of
from pocketphi.passes.quantizers import Keep, make_quantizer

if TYPE_CHECKING:
    from pocketphi.graph.checkpoint import Checkpoint


def asked_policy(options: CompileOptions, tied: bool) -> Policy:
    """What a user asks for, and where formats are to be chosen (`compiler.spend`), what would be without.

    tied: whether the embedding is the head. Raises InputError for what there is not.
    """
    if options.policy is not None:
        return read_policy(options)
    return _plain(options.recipe, options, tied)


def kept_policy(policy: Policy, source: Checkpoint) -> Policy:
    """The same with a rule for each kind of weight that `keep` takes over in another form than the options say, so that a
    manifest says of each weight what it is. All layers alike get one rule."""
    held: dict[str, dict[str, Rule]] = {}
    for name in source.tensors:
        quantizer, kept = policy.quantizer(name), source.kept(name)
        if kept and isinstance(quantizer, Keep):
            kind = re.sub(r"^(model\.layers\.)\d+\.", r"\1*.", name)
            held.setdefault(kind, {})[name] = Rule(name, quantizer.taking(kept))
    rules = []
    for kind, found in held.items():
        said = {rule.quantizer.describe() for rule in found.values()}
        alike = len(said) == 1 and sum(fnmatchcase(name, kind) for name in source.tensors) == len(found)
        made = [replace(next(iter(found.values())), pattern=kind)] if alike else list(found.values())
        rules += [rule for rule in made if rule.quantizer.describe() != _described(policy, next(iter(found)))]
    return replace(policy, rules=(*rules, *policy.rules))


def _described(policy: Policy, name: str) -> str:
    quantizer = policy.quantizer(name)
    return quantizer.describe() if quantizer else ""


def recorded_policy(recipe: RecipeRecord, tied: bool) -> Policy:
    """What a manifest says. Raises InputError for what there is not."""
    if recipe.rules:
        policy = Policy(tuple(Rule(r.pattern, make_quantizer(r.recipe, r.format, r.parameters)) for r in recipe.rules))
    else:
        policy = _plain(recipe.name, recipe, tied)
    return replace(policy, smooth=recipe.smooth)


def policy_of_bundle(bundle: Bundle) -> str:
    """The rules of a bundle as a policy file."""
    recipe = bundle.manifest.recipe
    policy = recorded_policy(recipe, read_config(bundle.path).tied_embeddings)
    return write_policy(records(policy), policy.smooth)


def rule_records(policy: Policy, recipe: RecipeRecord, tied: bool) -> tuple[RuleRecord, ...]:
    """The rules for a manifest; none where its other fields say the same."""
    said = records(recorded_policy(recipe, tied))
    return () if records(policy) == said else records(policy)


def _plain(recipe: str, o: CompileOptions | RecipeRecord, tied: bool) -> Policy:
    widths = o.embedding_bits, o.head_bits
    return policy_of(recipe, o.block, o.symmetric, o.palette, *widths, tied, form=o.format, scale_bits=o.scale_bits)


def records(policy: Policy) -> tuple[RuleRecord, ...]:
    """All rules, as manifests and policy files have them."""
    return tuple(
        RuleRecord(rule.pattern, rule.quantizer.format.name, rule.quantizer.recipe, rule.parameters)
        for rule in policy.rules
    )
