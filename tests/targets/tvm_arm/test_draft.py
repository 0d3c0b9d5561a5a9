"""A second bundle that guesses what comes next: no bit changes, and its cache follows whatever is done to the model's.

A draft model of the same weights is right with each guess while what its cache holds is right, so that calls tell.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_small as small
from tvm_library import Library

pytest.importorskip("tvm")

from pocketphi.graph.errors import InputError
from pocketphi.targets.tvm_arm.build_runtime import build_runtime
from pocketphi.targets.tvm_arm.process import RuntimeProcess
from pocketphi.targets.tvm_arm.toolchain import Toolchain, find_toolchain, host_arch

PROMPT = [3, 10, 17, 3, 10]
SWITCH = 20
FEWEST = 5
"""Calls for 40 tokens, where each has the seven guesses behind it that come."""


@pytest.fixture(scope="module")
def toolchain() -> Toolchain:
    return find_toolchain("linux", host_arch())


@pytest.fixture(scope="module")
def bundles(toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two that agree in nothing, one with LongRoPE's switch, and one with a cache of 16 tokens."""
    folder = tmp_path_factory.mktemp("drafts")

    def write(name: str, seed: int = 0, **how: Any) -> Path:
        params = {key: 0.5 * value for key, value in small.small_params(seed).items()}
        return small.write_small_bundle(folder / name, toolchain, params, **how)

    made = {"one": write("one"), "other": write("other", 1), "long": write("long", long_after=SWITCH)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small, "CONTEXT", 16)
        made["short"] = write("short")
    return made


Start = Callable[..., Library]


@pytest.fixture
def start(toolchain: Toolchain, bundles: dict[str, Path]) -> Any:
    """Open a bundle by its name or folder. With a draft model as much is guessed as there is room for, unless `text` says
    otherwise."""
    opened: list[Library] = []

    def make(name: str | Path = "one", draft: str | Path | None = None, text: str | None = None) -> Library:
        folder = bundles.get(str(name), Path(name))
        library = Library(build_runtime(toolchain).library, folder, draft=text or ("always" if draft else "none"))
        opened.append(library)
        if draft:
            assert library.draft(bundles.get(str(draft), draft)) == 0, library.error
        return library

    yield make
    for one in opened:
        one.close()


def answer(library: Library, tokens: list[int], count: int, **way: Any) -> tuple[list[int], int]:
    """Its tokens, and the calls for those behind the first."""
    made, first = library.generate(tokens, limit=1, **way)
    assert made == 1, library.error
    if count == 1:
        return first, 0
    before = library.calls
    made, rest = library.generate(first, limit=count - 1, **way)
    assert made == count - 1, library.error
    return first + rest, library.calls - before


WAYS: list[dict[str, Any]] = [{}, {"temperature": 1.2, "seed": 7, "top_k": 40}]


@pytest.mark.parametrize("text", ["none", "auto", "always"])
@pytest.mark.parametrize("draft", ["one", "other"])
@pytest.mark.parametrize("way", WAYS, ids=["greedy", "sampled"])
def test_no_token_is_another(start: Start, way: dict[str, Any], draft: str, text: str) -> None:
    """Whether the draft model is always right or hardly ever, and whether the text guesses too. A sampled answer uses the
    random numbers that it used without guesses, so that its distribution is the same as well."""
    plain, guessing = start(), start(draft=draft, text=text)
    for _ in range(3):
        (wanted, calls), (got, fewer) = (answer(one, PROMPT, 40, **way) for one in (plain, guessing))
        assert got == wanted
        assert fewer <= calls == 39
        plain.reset()
        guessing.reset()


def test_what_is_right_saves_calls_and_what_is_wrong_does_not(start: Start) -> None:
    assert answer(start(draft="one"), PROMPT, 41)[1] == FEWEST
    assert answer(start(draft="other"), PROMPT, 41)[1] >= 36


def test_a_model_of_the_same_size_is_not_asked_where_it_would_not_pay(start: Start) -> None:
    """As far as its size tells, before anything was measured."""
    assert answer(start(draft="one", text="none"), PROMPT, 41)[1] == 40


def test_the_cache_of_the_draft_model_follows(start: Start, tmp_path: Path) -> None:
    """After a reset, in a turn of the user's between two answers, where a session goes on in place of another text, and after
    the draft model was left out for a while: each time all of its guesses are right."""
    plain, guessing = start(), start(draft="one")
    for tokens in (PROMPT, [5, 6], [90]):
        assert answer(guessing, tokens, 9) == (answer(plain, tokens, 9)[0], 1)
    guessing.save(tmp_path / "talk")
    after = answer(plain, [1, 2], 9)[0]
    guessing.reset()
    answer(guessing, [50, 51, 52], 30)
    guessing.load(tmp_path / "talk")
    assert answer(guessing, [1, 2], 9) == (after, 1)
    guessing.load(tmp_path / "talk")
    assert guessing.draft(None) == 0
    assert answer(guessing, [1, 2], 5) == (after[:5], 4)
    guessing.load(tmp_path / "talk")
    assert guessing.draft(guessing.folder) == 0
    assert answer(guessing, [1, 2], 9) == (after, 1)


@pytest.mark.parametrize("names", [("long", "long"), ("long", "one"), ("one", "long")])
def test_longrope_in_either(start: Start, names: tuple[str, str]) -> None:
    """The switch is crossed, and left again by a reset; what is guessed never crosses it."""
    plain, guessing = start(names[0]), start(names[0], draft=names[1])
    for _ in range(2):
        wanted = answer(plain, PROMPT, 41)[0]
        got, calls = answer(guessing, PROMPT, 41)
        assert got == wanted
        if names[0] == names[1]:
            assert calls <= FEWEST + 5  # all is computed again at the switch, in chunks of 8
        plain.reset()
        guessing.reset()


def test_guesses_that_are_left_before_the_switch(start: Start) -> None:
    """The draft model has read beyond what came, where its own factors had changed already."""
    plain, guessing = start(), start(draft="long")
    for library in (plain, guessing):
        library.generate(PROMPT, limit=SWITCH - len(PROMPT))
    for token in (91, 92, 93, 94):  # other ones than were guessed
        assert answer(guessing, [token], 1) == answer(plain, [token], 1)
    assert answer(guessing, [95], 9)[0] == answer(plain, [95], 9)[0]


def test_behind_its_own_context_it_is_not_asked(start: Start) -> None:
    plain, guessing = start(), start(draft="short")
    wanted, calls = answer(plain, PROMPT, 41)
    got, fewer = answer(guessing, PROMPT, 41)
    assert got == wanted
    assert FEWEST < fewer < calls
    guessing.reset()
    assert answer(guessing, list(range(17)), 9) == answer(
        start(text="always"), list(range(17)), 9
    )  # the text alone guesses


def test_with_a_shipped_prefix_in_either(start: Start, bundles: dict[str, Path], tmp_path: Path) -> None:
    """What a model takes from its bundle's file, the draft model reads, or takes from its own."""
    folder, text = tmp_path / "shipped", [*range(20)]
    shutil.copytree(bundles["one"], folder)
    plain = start()
    plain.generate(text, limit=1)
    plain.save(folder / "prefix.session")
    wanted = answer(plain, [5], 17)[0]
    for names in (("one", folder), (folder, "one"), (folder, folder)):
        guessing = start(*names)
        assert answer(guessing, [*text, 5], 17) == (wanted, 2)


def test_what_cannot_guess_is_refused_and_the_model_goes_on(
    start: Start, bundles: dict[str, Path], tmp_path: Path
) -> None:
    def changed(name: str, **changes: Any) -> Path:
        shutil.copytree(bundles["one"], tmp_path / name)
        path = tmp_path / name / "model.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return tmp_path / name

    cut = changed("cut")
    (cut / "model.params").write_bytes(b"short")
    named = changed("named", vocabulary="a" * 64)
    (tmp_path / "empty").mkdir()
    refused: list[tuple[Path | str, Path | str, str]] = [
        ("one", tmp_path / "none", "none/model.json: No such file or directory"),
        ("one", tmp_path / "empty", "empty/model.json: No such file or directory"),
        ("one", "", "no bundle folder: expected its path, or NULL for none"),
        ("one", cut, "model.params: 5 bytes, expected"),
        ("one", changed("wide", vocab=97), "one: it has 97 tokens in place of 96"),
        ("one", named, "one: one of them does not say which tokenizer it is for: compile it again"),
        (named, changed("renamed", vocabulary="b" * 64), "named: it has another tokenizer"),
        ("one", changed("built", chunk=9), "chunk: the library was built for 8"),
    ]
    for name, folder, message in refused:
        plain, library = start(name), start(name, draft=name)
        wanted = answer(plain, PROMPT, 9)[0]
        assert answer(library, PROMPT, 1)[0] == wanted[:1]
        assert library.draft(folder) == -1
        assert message in library.error
        assert "\n" not in library.error
        assert answer(library, wanted[:1], 8)[0] == wanted[1:]
        assert library.calls == 2  # the draft model that it had is still asked


def test_one_that_fails_later_is_left(start: Start, bundles: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "draft"
    shutil.copytree(bundles["one"], folder)
    plain, guessing = start(), start(draft="one")
    assert guessing.draft(folder) == 0
    assert answer(guessing, PROMPT, 9) == (answer(plain, PROMPT, 9)[0], 1)
    os.utime(folder / "model.params", (1, 1))
    got, calls = answer(guessing, [1, 2], 9)
    assert got == answer(plain, [1, 2], 9)[0]
    assert calls > 1
    why = "the draft model is not asked any more: "
    assert guessing.error.startswith(why)
    assert guessing.error.endswith("it was changed while the model is open: close the model and open it again")
    assert answer(guessing, [1, 2], 9)[0] == answer(plain, [1, 2], 9)[0]


@pytest.mark.parametrize("arch", [host_arch()] if host_arch() == "aarch64" else [host_arch(), "aarch64"])
def test_through_a_process_that_is_started_anew(arch: str, tmp_path: Path) -> None:
    """As after Ctrl-C, which leaves an answer unread; natively and under qemu."""
    try:
        toolchain = find_toolchain("linux", arch)
        toolchain.command(Path("x"))
    except InputError as error:
        pytest.skip(str(error))
    folder = small.write_small_bundle(tmp_path / "bundle", toolchain, small.small_params())
    text = [int(token) for token in np.random.default_rng(1).integers(0, small.VOCAB, small.CHUNK)]
    with RuntimeProcess(toolchain.command(build_runtime(toolchain).runner), folder, draft="always") as process:

        def logits() -> tuple[list[np.ndarray], int]:
            begin, made = process.calls, [process.prefill(text).copy()]
            for _ in range(8):
                made.append(process.decode(int(made[-1].argmax())).copy())
            return made, process.calls - begin

        plain, _ = logits()
        process.draft(folder)
        with pytest.raises(InputError, match="No such file or directory"):
            process.draft(tmp_path / "none")
        process.reset()
        for unread in (False, True):
            process._asked = unread
            process.reset()
            guessed, calls = logits()
            assert calls == 2
            assert all(np.array_equal(a, b) for a, b in zip(plain, guessed, strict=True))
