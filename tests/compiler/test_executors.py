"""A matrix on a Dask cluster of processes: a killed worker's work is done again, with the same bytes; what is refused, and what
becomes of the others."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from clusters import cluster, process_is_killed, starting_worker_is_killed, worker_is_killed_once
from heard import Heard

from pocketphi.artifacts.bundle import file_digest
from pocketphi.compiler.build import build_matrix
from pocketphi.compiler.build_file import read_build_file
from pocketphi.compiler.build_key import SourceDigests, bundle_key
from pocketphi.compiler.build_one import Job
from pocketphi.compiler.cli import main
from pocketphi.compiler.executors import dask_cluster, find_executor, machine, on_worker
from pocketphi.compiler.executors.dask_cluster import Dask
from pocketphi.compiler.executors.serial import Serial
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import CannotRun, InputError
from pocketphi.graph.places import Cache
from pocketphi.graph.writing import left_over_names

FILE = """
[build]
out = "bundles"
cache = "cache"

[models]
tiny = "random:tiny"

[targets.ort-mobile]
verify = "never"

[recipes]
a = { recipe = "rtn" }
b = { recipe = "rtn", block = 16 }
c = { recipe = "rtn", symmetric = false }
"""
NAMES = [f"tiny-ort-mobile-{recipe}" for recipe in "abc"]


def write(folder: Path, text: str = FILE) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "pocketphi.toml").write_text(text)
    return folder / "pocketphi.toml"


def digests(folder: Path) -> dict[str, str]:
    """Of all files of the bundles, and what lies beside them."""
    return {
        path.relative_to(folder).as_posix(): file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".html"
    }


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The matrix as it is built without Dask."""
    file = read_build_file(write(tmp_path_factory.mktemp("serial")))
    assert [result.exit_code for result in build_matrix(file, Ui())] == [0, 0, 0]
    return file.out


def with_traces_of(serial: Path, folder: Path) -> None:
    """A cache in which a build need not trace, which takes longer than all else."""
    shutil.copytree(serial.parent / "cache" / "known", folder / "cache" / "known")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Once a worker was killed, this file is there."""
    return worker_is_killed_once(tmp_path_factory.mktemp("hook") / "site")


@pytest.fixture(scope="module")
def three_workers(tmp_path_factory: pytest.TempPathFactory, killed: Path) -> Iterator[str]:
    with cluster(tmp_path_factory.mktemp("dask"), 3, str(killed.parent / "site")) as address:
        yield address


def test_one_of_three_workers_is_killed_in_the_middle(
    three_workers: str, killed: Path, serial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path)
    with_traces_of(serial, tmp_path)
    assert not killed.exists()
    assert main(["build", str(file), "--executor", three_workers]) == 0
    captured = capsys.readouterr()
    assert killed.exists()
    assert captured.out == f"3 of 3 bundles as they should be, in {tmp_path / 'bundles'}\n"
    assert f"{three_workers}: 3 bundles at a time" in captured.err
    for name in NAMES:
        assert f"{name}: tracing random:tiny" in captured.err
    assert [line for line in captured.err.splitlines() if line.startswith("[3/3]")] != []
    assert digests(tmp_path / "bundles") == digests(serial)
    assert left_over_names(tmp_path / "cache", None) == []


def test_a_cluster_that_is_not_like_this_machine_is_refused(
    three_workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = {**machine.describe(["torch"], cpu=False), "torch": "1.0"}
    monkeypatch.setattr(dask_cluster, "describe", lambda *_: ours)
    assert main(["build", str(write(tmp_path)), "--executor", three_workers]) == 2
    said = capsys.readouterr().err
    assert f"--executor {three_workers}: the worker tcp://127.0.0.1:" in said
    assert "for torch, the machine that started the build has 1.0; install the same there" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "bundles").exists()


def test_a_process_that_keeps_dying_stops_no_other(
    tmp_path: Path, serial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = read_build_file(write(tmp_path / "m", FILE.replace("[targets", 'gone = "nowhere"\n[targets')))
    file = replace(file, cells=[cell for cell in file.cells if not cell.name.endswith("-c")])
    with_traces_of(serial, file.path.parent)
    dots = process_is_killed(tmp_path / "site", bundle_key(file.cells[1].options, SourceDigests()))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(dask_cluster, "_TRIES", 2)
    ui = Heard()
    results = build_matrix(file, ui, executor=Dask(workers=1))
    assert results[0].error is None
    assert [(result.name, result.exit_code) for result in results] == [
        (NAMES[0], 0),
        (NAMES[1], 2),
        ("gone-ort-mobile-a", 2),
        ("gone-ort-mobile-b", 2),
    ]
    assert results[1].error == "its process was ended by the system 2 times (signal 9); is there enough memory?"
    assert dots.read_text() == ".."
    assert str(results[2].error).startswith("nowhere: no such model; expected a folder")
    assert digests(file.out / NAMES[0]) == digests(serial / NAMES[0])


def test_a_scheduler_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dask_cluster, "_CONNECT_SECONDS", 0.5)
    assert main(["build", str(write(tmp_path)), "--executor", "dask://127.0.0.1:9"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("pocketphi: --executor dask://127.0.0.1:9: no Dask scheduler answers (")
    assert said.endswith("start one with 'dask scheduler'")


@pytest.mark.parametrize(("sent", "why"), [(b"", "says nothing"), (bytes(range(100, 130)), "is something else")])
def test_what_listens_is_no_scheduler(
    sent: bytes, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that says nothing, as a web server does to what is no request of its own, and one that says anything."""
    monkeypatch.setattr(dask_cluster, "_CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(20)
        answering = threading.Thread(target=lambda: held.append(listening.accept()[0]) or held[0].sendall(sent))
        held: list[socket.socket] = []
        answering.start()
        where = f"dask://127.0.0.1:{listening.getsockname()[1]}"
        assert main(["build", str(write(tmp_path)), "--executor", where]) == 2
        answering.join()
        held[0].close()
    why = f"no Dask scheduler answers (what listens there {why}); start one with 'dask scheduler'"
    assert capsys.readouterr().err == f"pocketphi: --executor {where}: {why}\n"


def test_a_probe_that_a_killed_build_left(tmp_path: Path) -> None:
    """Any build takes it away, also one without Dask; one that is in use stays."""
    cache = tmp_path / "cache"
    code = (
        "import os, signal, sys; from pathlib import Path; from pocketphi.compiler.executors.dask_cluster import _probed; "
        "from pocketphi.graph.places import Cache; from pocketphi.compiler.ui import Ui\n"
        "with _probed(Cache(Path(sys.argv[1])), Ui()): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(cache)], check=False).returncode == -signal.SIGKILL
    (left,) = left_over_names(cache, None)
    file = read_build_file(write(tmp_path, FILE.replace("random:tiny", "nowhere")))
    with dask_cluster._probed(Cache(cache), Ui()) as used:
        assert {path.name for path in left_over_names(cache, None)} == {left.name, used}
        assert {result.exit_code for result in build_matrix(file, Ui())} == {2}
        assert [path.name for path in left_over_names(cache, None)] == [used]
    assert left_over_names(cache, None) == []


def test_processes_that_are_killed_while_they_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of them is killed the first time, and another one then; and all are, each time."""
    flag = starting_worker_is_killed(tmp_path / "site", 1)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    with Dask(workers=1)._client() as client:
        assert len(client.nthreads()) == 1
    assert flag.read_text() == "."
    starting_worker_is_killed(tmp_path / "more", 99)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "more"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(dask_cluster, "_TRIES", 2)
    said = r"--executor local:1: the processes did not start, 2 times \(Nanny failed to start"
    with pytest.raises(CannotRun, match=said), Dask(workers=1)._client():
        pass


def test_a_scheduler_without_workers(tmp_path: Path) -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, processes=False, dashboard_address=None) as empty:
        where = Dask(address=empty.scheduler_address)
        with pytest.raises(InputError, match="the scheduler has no workers; start some with 'dask worker'"):
            build_matrix(read_build_file(write(tmp_path)), Ui(), executor=where)


@pytest.mark.parametrize(
    "text", ["", "dask://host", "dask://", "local:0", "local:", "local:x", "tcp://h:1", "dask://h:1234567"]
)
def test_executors_that_there_are_not(text: str) -> None:
    with pytest.raises(InputError, match=r"--executor .*: expected serial, local:N for N processes"):
        find_executor(text)


def test_executors() -> None:
    assert find_executor("serial") == Serial()
    assert find_executor("local:3") == Dask(workers=3)
    assert find_executor("dask://h:8786") == Dask(address="tcp://h:8786")
    with pytest.raises(InputError, match=r"--executor local:999: expected 256 processes at most"):
        find_executor("local:999")


def test_dask_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(CannotRun, match=r"--executor needs the package 'distributed'; .*'pocketphi\[dask\]'"):
        find_executor("local:2")


@pytest.fixture
def fit(tmp_path: Path) -> on_worker.Fit:
    """What this machine has."""
    (tmp_path / "probe").write_text("probe")
    (tmp_path / "model").write_text("weights")
    own = machine.describe(["torch"], cpu=True)
    return on_worker.Fit(own, ["torch"], True, [(tmp_path / "model", 7)], Cache(tmp_path), "probe")


def test_this_machine_is_fit(fit: on_worker.Fit, tmp_path: Path) -> None:
    assert on_worker.why_unfit(fit) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "probe"]


def test_why_a_machine_is_not_fit(fit: on_worker.Fit, tmp_path: Path) -> None:
    def why(**other: object) -> str:
        return on_worker.why_unfit(replace(fit, **other)) or ""  # type: ignore[arg-type]

    def on(**other: str) -> str:
        return why(machine={**fit.machine, **other})

    assert "for torch, the machine that started the build has 2.0; install the same there" in on(torch="2.0")
    assert "for pocketphi's own code, the machine" in on(**{"pocketphi's own code": "0123"})
    assert on(CPU=fit.machine["CPU"] + " avx9").startswith("has another CPU, which lacks avx9: sums come out otherwise")
    vectors = fit.machine["CPU"].split()
    assert f"which has {vectors[-1]} besides: " in on(CPU=" ".join(vectors[:-1]))
    assert "/no as it is where the build was started: models have to be at the same paths" in why(
        files=[(Path("/no"), 7)]
    )
    assert "models have to be at the same paths" in why(files=[(tmp_path / "model", 8)])
    assert "the cache has to be a folder that all machines share" in why(cache=Cache(tmp_path / "other"))
    assert "does not see what was written to" in why(probe="another")
    assert f"does not see what was written to file://{tmp_path}/store" in why(
        cache=Cache(store=f"file://{tmp_path}/store")
    )


def test_files_that_are_others_on_another_machine(tmp_path: Path) -> None:
    """The same content is the same, also where it was copied."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"one")
    sources = SourceDigests()
    sources.of(str(folder))
    assert sources.files() == [(folder / "model.safetensors", 3)]
    (folder / "model.safetensors").write_bytes(b"one")
    sources.recognize()
    sources.check(str(folder))
    (folder / "model.safetensors").write_bytes(b"two")
    with pytest.raises(InputError, match="holds something else here than where the build was started"):
        sources.recognize()


def test_a_key_that_comes_out_otherwise_on_another_machine(tmp_path: Path) -> None:
    file = read_build_file(write(tmp_path))
    cell = file.cells[0]
    job = Job(cell, file.out / cell.name, Cache(tmp_path / "cache"), None, file.measure, SourceDigests(), key="0123")
    (result,) = Serial().run([job], Ui())
    assert "would be another bundle here" in str(result.error)
    assert "than where the build was started (0123)" in str(result.error)


def test_one_calibration_goes_ahead_of_those_that_share_it(tmp_path: Path) -> None:
    text = """
[models]
one = "random:tiny"
two = "random:tiny-moe"
[targets]
ort-mobile = {}
coreml = {}
[recipes]
search = {}
rtn = {}
"""
    cells = read_build_file(write(tmp_path, text)).cells
    jobs = [
        Job(cell, Path(), Cache(), None, read_build_file(write(tmp_path, text)).measure, SourceDigests())
        for cell in cells
    ]
    begin, behind = dask_cluster._in_order(jobs)
    assert [job.name for job in begin] == [
        *("one-ort-mobile-search", "one-ort-mobile-rtn", "one-coreml-rtn"),
        *("two-ort-mobile-search", "two-ort-mobile-rtn", "two-coreml-rtn"),
    ]
    assert {first: [job.name for job in others] for first, others in behind.items()} == {
        "one-ort-mobile-search": ["one-coreml-search"],
        "two-ort-mobile-search": ["two-coreml-search"],
    }
