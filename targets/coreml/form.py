"""The form of a Core ML package: how long its cache is, how many tokens a call takes, how attention and norms are spelled.

A package is static: these are fixed when it is written, and everything else that varies is data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.packing import rounded_up
from pocketphi.targets.coreml.options import DEFAULT_CHUNK, DEFAULT_CONTEXT, CoreML, ring_of
from pocketphi.targets.coreml.releases import OLDEST, RELEASES, Release


@dataclass(frozen=True)
class Form:
    """Choices that hold for a whole package.

    context:   tokens that the cache is made for
    chunk:     tokens that a call of `prefill` takes
    attention: `sdpa`: one fused operator; `decomposed`: products and a softmax, queries scaled first
    norm:      `max-scaled`: float16 throughout; `fp32`: squares and sums in float32
    ring:      position p lies in row p mod ring; 0 where each position has a row of its own
    flavor:    `functions`: `prefill` and `decode`; `swift-transformers`: one function of any length, for that library
    ios:       the oldest release that runs it
    """

    context: int
    chunk: int
    attention: str = "sdpa"
    norm: str = "max-scaled"
    flavor: str = "functions"
    ios: int = OLDEST
    ring: int = 0

    @property
    def release(self) -> Release:
        return RELEASES[self.ios]

    @property
    def positions(self) -> int:
        """Positions that a text may have: the context, filled up to whole chunks, because a chunk is written in one piece."""
        return rounded_up(self.context, self.chunk)

    @property
    def keys(self) -> int:
        """Rows of the cache that attention reads."""
        return self.ring or self.positions

    @property
    def rows(self) -> int:
        """Rows of the cache. What a call pads its last chunk with may lie behind a ring's end, where nobody reads it."""
        return self.ring + self.chunk if self.ring else self.positions

    @property
    def flexible(self) -> bool:
        """Whether a call may have any number of tokens."""
        return self.flavor == "swift-transformers"

    @property
    def functions(self) -> dict[str, int | None]:
        """Function → tokens that a call takes; None for any number."""
        return {"main": None} if self.flexible else {"prefill": self.chunk, "decode": 1}


def make_form(config: ModelConfig, options: CoreML, context: int | None = None) -> Form:
    """Fill in defaults. Raises InputError for what a package of this model cannot be."""
    longest, chunk = config.max_position, options.chunk
    if context is not None and not 2 <= context <= longest:
        raise InputError(
            f"coreml: a context of {context} tokens; the model has {longest} positions, choose 2 to {longest}"
        )
    tokens = context or min(DEFAULT_CONTEXT, longest)
    if chunk is not None and not 2 <= chunk <= tokens:
        raise InputError(f"coreml: prefill chunks of {chunk} tokens in a context of {tokens}; choose 2 to {tokens}")
    chunk = chunk or min(DEFAULT_CHUNK, tokens)
    made = Form(tokens, chunk, options.attention, options.norm, options.flavor, options.ios)
    ring = 0 if made.flexible else ring_of(config, chunk) or 0
    return replace(made, ring=ring) if 0 < ring + chunk < made.positions else made
