"""What is kept between commands: the second one gives the same, and does less; what is damaged is found out again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hf_folders import configure, save, tensors
from text_folders import add_tokenizer
from tiny_phi3 import TINY, VARIANTS, checkpoint, differing, runs

from pocketphi.compiler import known, known_graphs, known_text
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.known import Known
from pocketphi.compiler.known_graphs import KnownGraphs
from pocketphi.compiler.options import CompileOptions
from pocketphi.compiler.text_check import ModelText, check_text
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.errors import InputError
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.graph.sealed import read_sealed, write_sealed
from pocketphi.graph.write_checkpoint import write_checkpoint
from pocketphi.passes.fuse_gated_mlp import FuseGatedMlp

Counted = Callable[[], int]


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """How often a model was traced since the last time it was asked."""
    sources: list[Checkpoint] = []
    real = known_graphs.trace_apart

    def counted(source: Checkpoint) -> tuple[dict[str, Any], bytes]:
        made = real(source)
        sources.append(source)
        return made

    def count() -> int:
        found = len(sources)
        sources.clear()
        return found

    monkeypatch.setattr(known_graphs, "trace_apart", counted)
    return count


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def entries(cache: Path, kind: str) -> list[Path]:
    return sorted((cache / "known").glob(f"{kind}-*"))


def test_the_second_bundle_is_the_first(tmp_path: Path, traces: Counted) -> None:
    """From the same shape, traced once: the weights are others."""
    cache = tmp_path / "cache"
    first = CompileOptions("random:tiny", tmp_path / "first", recipe="rtn", verify="always", cache=cache)
    compile_model(first)
    assert traces() == 1
    compile_model(replace(first, out=tmp_path / "second"))
    compile_model(replace(first, model="random:tiny@1", out=tmp_path / "other"))
    assert traces() == 0
    compile_model(replace(first, out=tmp_path / "cold", cache=tmp_path / "empty"))
    assert traces() == 1
    assert contents(tmp_path / "second") == contents(tmp_path / "first") == contents(tmp_path / "cold")
    assert contents(tmp_path / "other")["model.onnx.data"] != contents(tmp_path / "first")["model.onnx.data"]


def test_the_second_command_does_not_import_transformers(with_text: Path, tmp_path: Path) -> None:
    program = """if True:
        import sys
        from pocketphi.compiler.cli import main
        code = main(sys.argv[1:])
        heavy = [name for name in ("transformers", "sympy", "torch._dynamo") if name in sys.modules]
        print(code, heavy, file=sys.stderr)
    """
    arguments = [
        "compile",
        str(with_text),
        "-o",
        str(tmp_path / "b"),
        "--dry-run",
        "--json",
        "--cache",
        str(tmp_path / "c"),
    ]
    said = []
    for expected in ("0 ['transformers'", "0 []"):
        run = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
        assert run.stderr.splitlines()[-1].startswith(expected)
        said.append({key: value for key, value in json.loads(run.stdout).items() if key != "compile_memory"})
    assert said[0] == said[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_graph_is_recalled(variant: str, tmp_path: Path, traces: Counted) -> None:
    first, second = (KnownGraphs(checkpoint(variant), tmp_path) for _ in range(2))
    made, recalled = first.fused(None), second.fused(None)
    assert recalled[1] == made[1]
    assert recalled[0].dump() == made[0].dump()
    assert second.traced.dump() == first.traced.dump()
    assert traces() == 1
    assert differing(runs(recalled[0]), runs(second.traced)) == []


def test_what_a_pass_refused_is_recalled(tmp_path: Path, traces: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        FuseGatedMlp, "rewrite", lambda self, program, report: report.refuse("layer 0", "it has another gate")
    )
    made, recalled = (KnownGraphs(checkpoint("tiny"), tmp_path).fused(None)[1] for _ in range(2))
    assert recalled == made
    assert [report.refused for report in recalled if report.name == FuseGatedMlp.name] == [
        [("layer 0", "it has another gate")]
    ]


def test_a_recalled_graph_is_the_callers_own(tmp_path: Path, traces: Counted) -> None:
    for _ in range(2):
        graphs = KnownGraphs(checkpoint("tiny"), tmp_path)
        program, _ = graphs.fused(None)
        program.graph.output_node().args = ({"logits": program.outputs["logits"]},)
        assert program.remove_dead() > 0
        assert "present.0.key" in graphs.traced.outputs


def test_what_decides_a_graph(tmp_path: Path, traces: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    KnownGraphs(checkpoint("tiny"), tmp_path).fused(None)
    assert traces() == 1
    program, _ = KnownGraphs(checkpoint("tiny"), tmp_path).fused(100)
    assert traces() == 0  # only the tables of the rotary embedding are others
    assert program.weights["rope.cos"].parts[""].shape == (100, 8)
    KnownGraphs(checkpoint("full"), tmp_path).fused(None)
    assert traces() == 1
    for changed in ("pocketphi.compiler.known.our_code", "torch.backends.cpu.get_cpu_capability"):
        monkeypatch.setattr(changed, lambda: "another")
        KnownGraphs(checkpoint("tiny"), tmp_path).fused(None)
        assert traces() == 1
    monkeypatch.setattr("importlib.metadata.version", lambda name: "another")
    KnownGraphs(checkpoint("tiny"), tmp_path).fused(None)
    assert traces() == 1


def test_graphs_after_each_pass_are_written_as_without_a_cache(tmp_path: Path, traces: Counted) -> None:
    for name in ("cold", "warm"):
        KnownGraphs(checkpoint("tiny"), tmp_path / "cache").fused(None, tmp_path / name)
    assert contents(tmp_path / "warm") == contents(tmp_path / "cold")
    assert sorted(contents(tmp_path / "warm"))[:2] == ["00-traced.txt", "01-canonicalize.txt"]


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def of_another(path: Path) -> None:
    """What lies there was kept for another shape."""
    found = read_sealed(path)
    assert found is not None
    content, data = found
    content["about"]["config"]["vocab_size"] += 1
    write_sealed(path, content, [data])


def sealed_but_wrong(path: Path) -> None:
    found = read_sealed(path)
    assert found is not None
    content, data = found
    content["content"]["program"]["nodes"][-2][3] = [{"node": 0}] * 3
    content["content"]["program"]["nodes"][-2][2] = "aten.nothing.default"
    write_sealed(path, content, [data])


@pytest.mark.parametrize("spoil", [damaged, cut, of_another, sealed_but_wrong, Path.unlink])
def test_what_is_damaged_is_found_out_again(spoil: Callable[[Path], None], tmp_path: Path, traces: Counted) -> None:
    first = KnownGraphs(checkpoint("tiny"), tmp_path).fused(None)
    good = contents(tmp_path)
    assert len(entries(tmp_path, "graph")) == 2
    for path in entries(tmp_path, "graph"):
        spoil(path)
    again = KnownGraphs(checkpoint("tiny"), tmp_path).fused(None)
    assert traces() == 2
    assert (again[0].dump(), again[1]) == (first[0].dump(), first[1])
    assert contents(tmp_path) == good  # and kept


def test_settings_are_asked_about_once(tmp_path: Path, traces: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = save(tmp_path, tensors()), tmp_path / "cache"
    asked: list[int] = []

    def use() -> int:
        source = open_checkpoint(folder)
        check = source.check_settings
        monkeypatch.setattr(source, "check_settings", lambda: (asked.append(1), check())[1], raising=False)
        KnownGraphs(source, cache).fused(None)
        count = len(asked)
        asked.clear()
        return count

    assert [use(), use()] == [1, 0]
    configure(folder, torch_dtype="bfloat16")  # another file of the same shape
    assert [use(), use()] == [1, 0]
    for path in entries(cache, "agreement"):
        damaged(path)
    assert [use(), use()] == [1, 0]


def test_a_refusal_is_not_kept(tmp_path: Path, traces: Counted) -> None:
    folder, cache = save(tmp_path, tensors()), tmp_path / "cache"
    KnownGraphs(open_checkpoint(folder), cache).fused(None)
    configure(folder, attention_bias=True)
    for _ in range(2):
        with pytest.raises(InputError, match="attention_bias"):
            KnownGraphs(open_checkpoint(folder), cache).fused(None)


@pytest.fixture
def with_text(tmp_path: Path) -> Path:
    """A folder with a tokenizer."""
    source = RandomWeights("random:text", replace(TINY, vocab_size=384))
    (tmp_path / "model").mkdir()
    write_checkpoint(source, tmp_path / "model", "bf16")
    return add_tokenizer(tmp_path / "model")


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """How often a tokenizer was checked since the last time it was asked."""
    checked: list[Checkpoint] = []

    def counted(source: Checkpoint, targets: Any) -> ModelText:
        checked.append(source)
        return check_text(source, targets)

    def count() -> int:
        found = len(checked)
        checked.clear()
        return found

    monkeypatch.setattr(known_text, "check_text", counted)
    return count


def test_a_tokenizer_is_checked_once(
    with_text: Path, tmp_path: Path, texts: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    source = open_checkpoint(with_text)
    expected = check_text(source, ["ort-mobile"])
    assert expected.recorded
    assert [known_text.known_text(source, ["ort-mobile"], cache) for _ in range(2)] == [expected] * 2
    assert texts() == 1
    assert known_text.known_text(source, ["coreml"], cache) == check_text(source, ["coreml"])
    assert texts() == 1
    (with_text / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert known_text.known_text(open_checkpoint(with_text), ["coreml"], cache).files.keys() >= {"chat_template.jinja"}
    assert texts() == 1
    other = {**source.text_settings(), "model_type": "llama"}  # by which transformers may choose another class
    monkeypatch.setattr(source, "text_settings", lambda: other)
    known_text.known_text(source, ["coreml"], cache)
    assert texts() == 1


@pytest.mark.parametrize("spoil", [damaged, cut, of_another, Path.unlink])
def test_a_damaged_answer_about_a_tokenizer_is_asked_again(
    spoil: Callable[[Path], None], with_text: Path, tmp_path: Path, texts: Counted
) -> None:
    source, cache = open_checkpoint(with_text), tmp_path / "cache"
    expected = known_text.known_text(source, [], cache)
    good = contents(cache)
    (path,) = entries(cache, "text")
    spoil(path)
    assert known_text.known_text(source, [], cache) == expected
    assert texts() == 2
    assert contents(cache) == good


def test_a_stored_text_with_other_sizes(with_text: Path, tmp_path: Path, texts: Counted) -> None:
    source, cache = open_checkpoint(with_text), tmp_path / "cache"
    expected = known_text.known_text(source, [], cache)
    (path,) = entries(cache, "text")
    for change in (1, -(10**6)):
        found = read_sealed(path)
        assert found is not None
        content, data = found
        content["content"]["files"]["tokenizer.json"] += change
        write_sealed(path, content, [data])
        assert known_text.known_text(source, [], cache) == expected
    assert texts() == 3


def test_where_nothing_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    nowhere = Known("word", [], tmp_path / "file")
    nowhere.keep({"a": 1}, "b")
    assert nowhere.find({"a": 1}) is None
    for name in ("HOME", "POCKETPHI_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    homeless = Known("word", [], None)
    homeless.keep({"a": 1}, "b")
    assert homeless.find({"a": 1}) is None
    assert os.listdir(tmp_path) == ["file"]


def test_the_oldest_of_many_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "_MOST", 2)
    kept, other = Known("one", [], tmp_path), Known("other", [], tmp_path)
    other.keep({"a": 0})
    for number in range(4):
        kept.keep({"a": number}, number)
        (path,) = (path for path in entries(tmp_path, "one") if path.stat().st_mtime > 10)
        os.utime(path, (number, number))
    assert [kept.find({"a": number}) is not None for number in range(4)] == [False, False, True, True]
    assert other.find({"a": 0}) is not None


def test_what_a_clock_ahead_left_does_not_stay_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "_MOST", 2)
    kept = Known("one", [], tmp_path)
    for number in range(2):
        kept.keep({"a": number}, number)
    for path in entries(tmp_path, "one"):
        os.utime(path, (time.time() + 7 * 86400,) * 2)
    for number in range(2, 4):
        kept.keep({"a": number}, number)
    assert [kept.find({"a": number}) is not None for number in range(4)] == [False, False, True, True]


def test_kinds_are_kept_apart(tmp_path: Path) -> None:
    one, other = Known("one", [], tmp_path), Known("other", [], tmp_path)
    one.keep({"a": 1.5}, ["b"], [b"\x00", b"\x01\x02"])
    found = one.find({"a": 1.5})
    assert found is not None
    assert (found[0], bytes(found[1])) == (["b"], b"\x00\x01\x02")
    assert one.find({"a": 1.25}) is None
    assert other.find({"a": 1.5}) is None


def test_what_the_tracer_raises_comes_out_of_its_process(tmp_path: Path) -> None:
    folder = configure(save(tmp_path, tensors()), attention_bias=True)
    with pytest.raises(InputError, match="attention_bias"):
        known_graphs.trace_apart(open_checkpoint(folder))
