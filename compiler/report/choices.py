"""What other choices of formats would have cost: from the sensitivities that a budget was spent by.

`spend` keeps what each weight costs in each form. A report takes them only where the costs of the bundle's own formats add up
to the KL that its manifest expects: else they are of another text, or of another version of us.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.candidates import Candidates, bytes_by_target, candidates_of
from pocketphi.compiler.options import CompileOptions
from pocketphi.compiler.precision import recorded_policy
from pocketphi.compiler.report.kept import kept_about
from pocketphi.compiler.report.weights import targets_of
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import typed
from pocketphi.passes.expected import costs_of


@dataclass(frozen=True)
class Way:
    """A way to store one weight. kl: expected, in nats a token; bytes: in the files of all targets; form: in words."""

    kl: float
    bytes: int
    form: str


@dataclass(frozen=True)
class Point:
    """A whole bundle. bytes: of all its files; kl: expected, in nats a token; what: in words."""

    bytes: int
    kl: float
    what: str


@dataclass(frozen=True)
class Choices:
    """ways: of each weight; chosen: the bundle's own, one for each; around: bytes of a bundle beside its weights."""

    ways: Mapping[str, Sequence[Way]]
    chosen: Mapping[str, Way]
    around: int

    @property
    def own(self) -> Point:
        """The bundle itself."""
        return self._point(self.chosen, "this bundle")

    def frontier(self) -> list[Point]:
        """The best that there is from the smallest bundle to the largest: each step takes the change of one weight that lowers
        the expected KL most for its bytes (the convex hull of all choices)."""
        hulls = {name: hull(ways) for name, ways in self.ways.items()}
        steps = sorted(
            ((a.kl - b.kl) / (b.bytes - a.bytes), a, b) for ways in hulls.values() for a, b in pairwise(ways)
        )
        size = self.around + sum(ways[0].bytes for ways in hulls.values())
        kl = sum(ways[0].kl for ways in hulls.values())
        points = [Point(size, kl, "the smallest")]
        for _, a, b in reversed(steps):
            size, kl = size + b.bytes - a.bytes, kl + b.kl - a.kl
            points.append(Point(size, max(kl, 0.0), "the best of its size"))
        return points

    def neighbours(self) -> list[Point]:
        """The bundle with one weight stored in another way, of those on its hull."""
        own, made = self.own, []
        for name, now in self.chosen.items():
            for way in hull(self.ways[name]):
                if way != now:
                    words = f"{name}: {now.form} → {way.form}"
                    made.append(Point(own.bytes + way.bytes - now.bytes, max(0.0, own.kl + way.kl - now.kl), words))
        return made

    def alike(self) -> list[Point]:
        """Bundles whose weights all have one form, for each that every weight can have; of several in one format and of one
        size, the best."""
        forms = [{way.form: way for way in reversed(ways)} for ways in self.ways.values()]
        common = [form for form in forms[0] if all(form in ways for ways in forms)] if forms else []
        points = [self._point({str(i): ways[form] for i, ways in enumerate(forms)}, form) for form in common]
        return [one for one in points if not any(o.bytes <= one.bytes and o.kl < one.kl for o in points)]

    def _point(self, ways: Mapping[str, Way], what: str) -> Point:
        ways_bytes = sum(way.bytes for way in ways.values())
        return Point(self.around + ways_bytes, sum(way.kl for way in ways.values()), what)


def hull(ways: Sequence[Way]) -> list[Way]:
    """Those of a weight that are worth it for some price of a byte: from the smallest on, each next one costs more bytes for
    every nat that it saves."""
    best: list[Way] = []
    for way in sorted(ways, key=lambda one: (one.bytes, one.kl)):
        if best and (way.bytes == best[-1].bytes or way.kl >= best[-1].kl):
            continue
        while len(best) > 1 and _gain(best[-2], best[-1]) <= _gain(best[-1], way):
            best.pop()
        best.append(way)
    return best


def _gain(a: Way, b: Way) -> float:
    return (a.kl - b.kl) / (b.bytes - a.bytes)


def known_choices(bundle: Bundle, config: ModelConfig, cache: Path | None = None) -> Choices | str:
    """Why not, in a sentence, where they are not known."""
    recipe = bundle.manifest.recipe
    if recipe.expected is None:
        return "No budget was spent on this bundle, so that nobody measured what other formats would have cost."
    targets = targets_of(bundle)
    try:
        options = CompileOptions("-", bundle.path, targets, recipe=recipe.name, bits=16)
        candidates = candidates_of(config, options)
    except InputError as error:
        return f"The formats that were to choose from cannot be listed: {error}"
    about = {"source": bundle.manifest.source.blake3, "config": config.to_hf()}
    for said, content in kept_about("sensitivity", about, cache):
        made = _choices(bundle, config, candidates, said.get("candidates"), content)
        if made is not None:
            return made
    return (
        "The cache of this machine does not have the sensitivities that its budget was spent by; it is known that "
        f"{recipe.expected.kl:.3g} nats a token were expected."
    )


def _choices(
    bundle: Bundle, config: ModelConfig, candidates: Candidates, forms: object, content: object
) -> Choices | None:
    """None where what was kept is not of these candidates, or does not add up to what the manifest expects."""
    try:
        costs = typed(dict[str, list[float]], content, "stored costs")
        words = typed(dict[str, list[str]], forms, "stored candidates")
    except InputError:
        return None
    recipe, targets, shapes = bundle.manifest.recipe, targets_of(bundle), config.matrices()
    policy = recorded_policy(recipe, config.tied_embeddings)
    ways, chosen = {}, {}
    try:
        found = costs_of(candidates, {name: dict(zip(words[name], costs[name])) for name in candidates})
    except (KeyError, InputError):  # other forms were measured, or none can hold a weight
        return None
    for name, made in candidates.items():
        described = [one.describe() for one in made]
        ways[name] = [
            Way(kl, sum(bytes_by_target(one, shapes[name], targets)), form)
            for kl, one, form in zip(found[name], made, described)
        ]
        own = policy.quantizer(name)
        if own is None or own.describe() not in described:
            return None
        chosen[name] = ways[name][described.index(own.describe())]
    kl = sum(way.kl for way in chosen.values())
    if recipe.expected is None or float(f"{kl:.3g}") != recipe.expected.kl:
        return None
    return Choices(ways, chosen, bundle.manifest.bytes - sum(way.bytes for way in chosen.values()))
