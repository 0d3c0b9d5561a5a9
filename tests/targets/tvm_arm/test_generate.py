"""`pocketphi_generate`: the tokens of an answer, against the kits' sampler over the logits of each step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_small as small
from tvm_library import Library

pytest.importorskip("tvm")

from pocketphi.artifacts.kits.reference import Sampler
from pocketphi.targets.tvm_arm.build_runtime import RuntimeFiles, build_runtime
from pocketphi.targets.tvm_arm.process import RuntimeProcess
from pocketphi.targets.tvm_arm.toolchain import Toolchain, find_toolchain, host_arch

PROMPT = [3, 10, 17, 3, 10]


@pytest.fixture(scope="module")
def toolchain() -> Toolchain:
    return find_toolchain("linux", host_arch())


@pytest.fixture(scope="module")
def files(toolchain: Toolchain) -> RuntimeFiles:
    return build_runtime(toolchain)


@pytest.fixture(scope="module")
def folder(toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    params = {name: 0.5 * value for name, value in small.small_params().items()}
    return small.write_small_bundle(tmp_path_factory.mktemp("generate") / "bundle", toolchain, params)


@pytest.fixture
def start(files: RuntimeFiles, folder: Path) -> Any:
    opened: list[Library] = []

    def make(**options: Any) -> Library:
        opened.append(Library(files.library, folder, **options))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def expected(toolchain: Toolchain, files: RuntimeFiles, folder: Path) -> Any:
    """Tokens by the kits' sampler: (prompt, count, penalty, sampler's options) → tokens."""
    with RuntimeProcess(toolchain.command(files.runner), folder) as process:

        def answer(prompt: list[int], count: int, penalty: float = 1.0, **options: Any) -> list[int]:
            process.reset()
            sampler, seen, logits = Sampler(**options), list(prompt), process.prefill(prompt)
            made: list[int] = []
            while True:
                logits = logits.copy()
                said = sorted(set(seen))
                by = np.float32(penalty)
                logits[said] = np.where(logits[said] < 0, logits[said] * by, logits[said] / by)
                made.append(sampler.choose(logits.tolist()))
                seen.append(made[-1])
                if len(made) == count:
                    return made
                logits = process.decode(made[-1])

        yield answer


WAYS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 2.5, "top_k": 7, "seed": 2**62},
    {"temperature": 1.5, "top_p": 0.6, "seed": 1},
    {"temperature": 0.8, "top_k": 30, "top_p": 0.9, "repetition_penalty": 1.3, "seed": 3},
    {"repetition_penalty": 1.8},
]


@pytest.mark.parametrize("draft", ["none", "always"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: ",".join(way) or "greedy")
def test_the_tokens_are_the_kits_samplers(
    start: Callable[..., Library], expected: Callable[..., list[int]], way: dict[str, Any], draft: str
) -> None:
    """With guesses and without: a guess is used where it is what was chosen, so that the same random numbers lead to the same
    tokens."""
    library = start(draft=draft)
    options = {name: value for name, value in way.items() if name != "repetition_penalty"}
    wanted = expected(PROMPT, 30, way.get("repetition_penalty", 1.0), **options)
    assert library.generate(PROMPT, limit=30, **way) == (30, wanted)
    assert library.length == len(PROMPT) + 29
    library.reset()
    assert library.generate(PROMPT, limit=30, **way) == (30, wanted)


def test_where_an_answer_ends(start: Callable[..., Library], expected: Callable[..., list[int]]) -> None:
    wanted = expected(PROMPT, small.CONTEXT - len(PROMPT) + 1, temperature=1.0, seed=4)
    way = {"temperature": 1.0, "seed": 4}
    library = start()
    assert library.generate(PROMPT, **way) == (len(wanted), wanted)  # the last one has no place in the cache
    assert library.length == small.CONTEXT
    library.reset()
    assert library.generate(PROMPT, most=6, **way) == (6, wanted[:6])
    assert library.length == len(PROMPT) + 5
    library.reset()
    stop = next(token for token in wanted[1:] if token not in wanted[:1])
    at = wanted.index(stop)
    assert library.generate(PROMPT, stop=[95, stop], **way) == (at, wanted[:at])
    assert library.length == len(PROMPT) + at
    turn = [stop, 1]  # a conversation goes on after it
    assert library.generate(turn, limit=3)[1] == expected([*PROMPT, *wanted[:at], *turn], 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, r"options.temperature: -1 is not within 0 to 1000"),
        ({"temperature": "hot"}, r"options.temperature: expected a number"),
        ({"top_p": 1.5}, r"options.top_p: 1.5 is not within 0 to 1"),
        ({"repetition_penalty": 0}, r"options.repetition_penalty: 0 is not within 0.01 to 100"),
        ({"limit": 2.5}, r"options.limit: expected a whole number"),
        ({"stop": 3}, r"options.stop: expected a list"),
        (
            {"heat": 1},
            'options: no option "heat"; there are limit, temperature, top_k, top_p, repetition_penalty, seed and stop',
        ),
    ],
)
def test_bad_options_append_nothing(start: Callable[..., Library], options: dict[str, Any], message: str) -> None:
    library = start()
    assert library.generate(PROMPT, **options) == (-1, [])
    assert (library.error, library.length) == (message, 0)


def test_a_prompt_that_does_not_fit_appends_nothing(start: Callable[..., Library]) -> None:
    library = start()
    assert library.generate([1] * (small.CONTEXT + 1)) == (-1, [])
    assert library.error == "the cache holds 48 tokens: 0 are in it, 49 more do not fit"
    assert library.generate([1] * small.CONTEXT, limit=5)[0] == 1
    assert library.generate([1]) == (-1, [])
    assert library.length == small.CONTEXT
