"""The report: its numbers against the files, plotly's own rules and an exact search; and the page in a real browser."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from collections import Counter, defaultdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.cli import main
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.report.choices import Choices, Way, hull, known_choices
from pocketphi.compiler.report.errors import places, weight_errors
from pocketphi.compiler.report.figures import by_layer, treemap
from pocketphi.compiler.report.kept import kept_about
from pocketphi.compiler.report.layer import known_layers
from pocketphi.compiler.report.make import Asked, report
from pocketphi.compiler.report.weights import file_rows, weight_rows
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.sealed import read_sealed, write_sealed
from pocketphi.passes.allocate import Choice, allocate, smallest

FIGURES = re.compile(r'<script type="application/json" id="figures">(.*?)</script>', re.DOTALL)
BITS = 4.6


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def spent(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Bundle:
    """A bundle whose formats were chosen for a budget, with what that left in a cache."""
    out = tmp_path_factory.mktemp("spent") / "bundle"
    return compile_model(compile_options("random:tiny", out, bits=BITS, recipe="rtn", verify="never", cache=cache))


@pytest.fixture(scope="module")
def page(spent: Bundle, tiny_bundle: Path, cache: Path) -> str:
    return report(spent, Asked(Bundle.open(tiny_bundle), reference="random:tiny", cache=cache))


def drawn(page: str) -> dict[str, Any]:
    found = FIGURES.search(page)
    assert found is not None
    return dict(json.loads(found[1]))


def test_bytes_are_those_of_the_file(spent: Bundle) -> None:
    """What each weight is said to take lies in model.onnx.data under its name."""
    onnx = pytest.importorskip("onnx")
    lengths: defaultdict[str, int] = defaultdict(int)
    names = {row.name: row for row in weight_rows(spent, read_config(spent.path))}
    for held in onnx.load(spent.path / "model.onnx", load_external_data=False).graph.initializer:
        length = {entry.key: entry.value for entry in held.external_data}.get("length", 0)
        owner = next((name for name in names if held.name.startswith(name)), None)
        if owner:
            lengths[owner] += int(length)
    assert {name: row.bytes[0] for name, row in names.items()} == dict(lengths)


def test_a_treemap_adds_up(spent: Bundle) -> None:
    rows = weight_rows(spent, read_config(spent.path))
    (trace,) = treemap(rows, file_rows(spent, rows), spent.manifest.bytes, list(spent.manifest.targets))["data"]
    inside: Counter[str] = Counter()
    for parent, value in zip(trace["parents"], trace["values"]):
        inside[parent] += value
    sizes = dict(zip(trace["ids"], trace["values"]))
    assert len(sizes) == len(trace["ids"])
    assert sizes["all"] == sum(path.stat().st_size for path in spent.path.iterdir() if path.name != "manifest.json")
    assert {name: sizes[name] for name in inside if name} == {name: size for name, size in inside.items() if name}


def test_figures_are_what_plotly_takes(page: str) -> None:
    objects = pytest.importorskip("plotly.graph_objects")
    figures = drawn(page)
    assert set(figures) == {"bytes", "bits", "costs", "quality", "errors", "memory-ort-mobile", "roofline-ort-mobile"}
    for figure in figures.values():
        objects.Figure(figure)  # raises for a property that there is not, and a value that it cannot have
    figures["bytes"]["data"][0]["tilling"] = {}
    with pytest.raises(ValueError, match="tilling"):
        objects.Figure(figures["bytes"])


def test_the_frontier_is_as_good_as_can_be(spent: Bundle, cache: Path) -> None:
    """At each of its sizes dynamic programming over all choices finds nothing better."""
    choices = known_choices(spent, read_config(spent.path), cache)
    assert isinstance(choices, Choices)
    assert spent.manifest.recipe.expected is not None
    assert choices.own.bytes == spent.manifest.bytes
    assert choices.own.kl == pytest.approx(spent.manifest.recipe.expected.kl, rel=5e-3)  # is written with three digits
    front, tables = choices.frontier(), [[Choice(w.kl, w.bytes) for w in ways] for ways in choices.ways.values()]
    assert len(front) > 10
    least = smallest(tables)
    for point in front[:: len(front) // 6]:
        spare = point.bytes - choices.around - least
        found = [
            sum(table[i].cost for table, i in zip(tables, allocate(tables, least + room)))
            for room in (spare, int(1.002 * spare) + 1)  # it may leave a thousandth of what there is above the smallest
        ]
        assert found[1] * (1 - 1e-9) <= point.kl <= found[0] * (1 + 1e-9)
    below = [one for one in front if one.bytes <= choices.own.bytes]
    assert choices.own.kl <= below[-1].kl  # its own budget was spent by that search
    sizes, costs = [one.bytes for one in front], [one.kl for one in front]
    for one in choices.neighbours():  # nothing lies below the lines between its points
        assert one.kl >= np.interp(one.bytes, sizes, costs) * (1 - 1e-9)


def test_a_hull_leaves_out_what_no_price_buys() -> None:
    ways = [
        Way(4.0, 10, "a"),
        Way(3.9, 20, "b"),
        Way(1.0, 30, "c"),
        Way(2.0, 35, "d"),
        Way(0.9, 60, "e"),
        Way(4.5, 10, "f"),
    ]
    assert [way.form for way in hull(ways)] == ["a", "c", "e"]


def test_costs_of_something_else_are_not_taken(spent: Bundle, tiny_bundle: Path, tmp_path: Path, cache: Path) -> None:
    config = read_config(spent.path)
    (path,) = (cache / "known").glob("sensitivity-*")
    content, _ = read_sealed(path) or (None, None)
    assert content is not None
    first = next(iter(content["content"]))
    content["content"][first] = [2 * cost + 1 for cost in content["content"][first]]
    (tmp_path / "known").mkdir()
    write_sealed(tmp_path / "known" / path.name, content)
    assert "does not have the sensitivities" in str(known_choices(spent, config, tmp_path))
    (tmp_path / "known" / path.name).write_bytes(path.read_bytes()[:-1])  # damaged
    assert list(kept_about("sensitivity", {}, tmp_path)) == []
    assert "No budget was spent" in str(known_choices(Bundle.open(tiny_bundle), config, cache))


def test_errors_are_those_of_the_weights(tiny_bundle: Path) -> None:
    """Of round to nearest in blocks of 32 with a symmetric scale, computed anew in plain numpy."""
    made = weight_errors(Bundle.open(tiny_bundle), "random:tiny", (), Ui())
    source = open_checkpoint("random:tiny")
    block = Bundle.open(tiny_bundle).manifest.recipe.block
    for name, relative in made.relative.items():
        pieces = [source.read(name, a, b).float().numpy() for a, b in places(source.tensors[name].shape[0])]
        w = np.concatenate(pieces).reshape(-1, block)
        largest = np.take_along_axis(w, np.abs(w).argmax(1)[:, None], 1)
        scale = np.where(largest == 0, 1, largest / -8).astype(np.float16).astype(np.float32)
        rounded = np.clip(np.rint(w / scale), -8, 7) * scale
        expected = np.linalg.norm(rounded - w) / np.linalg.norm(w)
        assert relative == pytest.approx(expected, rel=1e-3), name
    assert len(made.relative) == len(read_config(tiny_bundle).matrices())


def test_rows_that_are_compared_lie_all_over() -> None:
    assert places(200) == [(0, 200)]
    found = places(10_000)
    assert len(found) == 16
    assert (found[0][0], found[-1][1]) == (0, 10_000)
    assert all(b - a == 16 for a, b in found)


def test_another_model_is_no_reference(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="other weights than the bundle"):
        weight_errors(Bundle.open(tiny_bundle), "random:tiny-moe", (), Ui())


def test_one_layer_is_that_of_the_trace(spent: Bundle, cache: Path) -> None:
    from tiny_phi3 import fused, traced

    before, after = known_layers(spent, read_config(spent.path), {}, cache)
    for layer, program in ((before, traced()), (after, fused())):
        calls = [n for n in program.graph.nodes if n.op == "call_function" and "getitem" not in str(n.target)]
        assert layer.all_calls == len(calls)
    assert [call.operator for call in after.calls if call.ours] == [
        "edge.add_rms_norm",
        "edge.attention",
        "edge.add_rms_norm",
        "edge.gated_silu",
    ]
    assert all(
        name.startswith(("model.layers.1.", "rope."))
        for call in after.calls
        for name in call.weight.split(", ")
        if name
    )
    assert known_layers(spent, read_config(spent.path), {}, cache / "none") == []


class Seen(HTMLParser):
    """Elements that are open, and what would load something."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [str(value) for name, value in attrs if name in ("src", "href", "data", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(page: str) -> None:
    seen = Seen()
    seen.feed(page)
    assert seen.open == []
    assert all(one.startswith(("#", "data:,")) for one in seen.loads)
    assert "default-src 'none'" in page
    assert len(page.encode()) <= 3_000_000


def test_what_a_model_says_of_itself_is_text(spent: Bundle, cache: Path) -> None:
    odd = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    source = dataclasses.replace(spent.manifest.source, model=odd, notices=(odd,))
    made = report(Bundle(spent.path, dataclasses.replace(spent.manifest, source=source)), Asked(cache=cache))
    assert odd not in made
    assert "&lt;img src=x onerror=alert(1)&gt;" in made
    seen = Seen()
    seen.feed(made)
    assert (seen.open, [one for one in seen.loads if not one.startswith(("#", "data:,"))]) == ([], [])
    named = dataclasses.replace(weight_rows(spent, read_config(spent.path))[0], kind="</script>")
    assert by_layer([named], {named.name: 1.0}, "x")["data"][0]["x"] == ["</script>"]


def test_what_is_not_known_is_said(tiny_bundle: Path, tmp_path: Path) -> None:
    made = report(Bundle.open(tiny_bundle), Asked(cache=tmp_path))
    for words in (
        "How far rounding moved each weight is not known",
        "What each weight costs in KL is not known. No budget was spent",
        "What other choices would have cost is not known",
        "is not in the cache of this machine",
        "This bundle was not verified",
    ):
        assert words in made
    assert "All quantized weights take 4." in made
    assert set(drawn(made)) == {"bytes", "memory-ort-mobile", "roofline-ort-mobile"}


def test_the_command(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.html"
    again = ["report", str(tiny_bundle), "-o", str(out)]
    assert main([*again, "--against", str(tiny_bundle), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"report": str(out), "bytes": out.stat().st_size}
    assert "There is no difference in files" in out.read_text("utf-8")
    assert main([*again, "--json"]) == 0  # a report is written again
    assert "There is no difference" not in out.read_text("utf-8")
    capsys.readouterr()
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine")
    for command in ("report", "sbom"):
        for place, why in (
            (mine, "exists and is not a"),
            (tmp_path, "cannot be written: Is a dir"),
            ("/proc/zz", "cannot"),
        ):
            assert main([command, str(tiny_bundle), "-o", str(place)]) == 2
            assert f"-o {place}: {why}" in capsys.readouterr().err
    assert mine.read_text() == "<p>mine"
    for _ in range(2):
        assert main(["sbom", str(tiny_bundle), "-o", str(tmp_path / "bom.json")]) == 0
    assert main([*again, "--lora", "somewhere"]) == 2
    assert "--lora: of what? it belongs to a --reference" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2


def test_without_plotly_it_says_what_to_install(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pocketphi.compiler.report import page

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "plotly" else real(name))
    page._plotly.cache_clear()
    with pytest.raises(
        InputError, match=r"a report needs the package 'plotly'; install it with: pip install 'pocketphi\[report\]'"
    ):
        report(Bundle.open(tiny_bundle))
    page._plotly.cache_clear()


@pytest.mark.skipif(browser.CHROMIUM is None, reason=browser.MISSING)
def test_in_a_browser(page: str, tmp_path: Path) -> None:
    """On a phone and on a desk, light and dark: everything is drawn, nothing is wider than the window, nobody complains."""
    (tmp_path / "report.html").write_text(page, "utf-8")
    address = (tmp_path / "report.html").as_uri()
    with browser.browser() as tab:
        for width, phone, dark in ((390, True, False), (1440, False, True)):
            tab.size(width, 900, phone, dark)
            tab.open(address)
            tab.wait("document.documentElement.dataset.drawn")
            empty = "filter((one) => !one.querySelector('svg path')).map((one) => one.id)"
            assert tab.value(f"[...document.querySelectorAll('.figure')].{empty}") == []
            assert tab.value("document.documentElement.scrollWidth") <= width
            colour = tab.value("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", colour))) < 3 * 64) is dark
        assert tab.said == []
        assert [one for one in tab.asked if not one.startswith(("file:", "data:", "blob:"))] == []
