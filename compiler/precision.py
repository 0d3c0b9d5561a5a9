"""The policy of a compile, as options and manifests say it.

A manifest has fields for what the command line can ask; rules stand in it only where those fields cannot say them.
"""

from __future__ import annotations

from pocketphi.artifacts.manifest import RecipeRecord, RuleRecord
from pocketphi.compiler.options import CompileOptions
from pocketphi.passes.policy import Policy, Rule, policy_of
from pocketphi.passes.quantizers import make_quantizer


def asked_policy(options: CompileOptions, tied: bool) -> Policy:
    """What a user asks for; tied: whether the embedding is the head. Raises InputError for what there is not."""
    return _plain(options.recipe, options, tied)


def recorded_policy(recipe: RecipeRecord, tied: bool) -> Policy:
    """What a manifest says. Raises InputError for what there is not."""
    if recipe.rules:
        return Policy(tuple(Rule(r.pattern, make_quantizer(r.recipe, r.format, r.parameters)) for r in recipe.rules))
    return _plain(recipe.name, recipe, tied)


def rule_records(policy: Policy, recipe: RecipeRecord, tied: bool) -> tuple[RuleRecord, ...]:
    """The rules for a manifest; none where its other fields say the same."""
    said = _records(recorded_policy(recipe, tied))
    return () if _records(policy) == said else _records(policy)


def _plain(recipe: str, o: CompileOptions | RecipeRecord, tied: bool) -> Policy:
    return policy_of(recipe, o.block, o.symmetric, o.palette, o.embedding_bits, o.head_bits, tied)


def _records(policy: Policy) -> tuple[RuleRecord, ...]:
    return tuple(
        RuleRecord(rule.pattern, rule.quantizer.format.name, rule.quantizer.recipe, rule.parameters)
        for rule in policy.rules
    )
