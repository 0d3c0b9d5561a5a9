"""Documents of every kind in an index, and a chat that answers from them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from pocketphi.artifacts.retrieval.index import Index
from pocketphi.artifacts.retrieval.prompt import INTRODUCTION
from pocketphi.compiler import cli
from pocketphi.compiler.chat import Chat
from pocketphi.compiler.cli import main

ROOM = 128


def pdf(path: Path, text: str) -> None:
    """A page, as small as the format allows."""
    drawn = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET".encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(drawn), drawn),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    content, places = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(content))
        content += b"%d 0 obj%s endobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % len(content)
    path.write_bytes(content + b"xref\n0 6\n0000000000 65535 f \n" + table + end)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "documents"
    (made / "deep" / ".git").mkdir(parents=True)
    (made / "boats.md").write_text("# Boats\n\nA blue boat costs nine.\n", "utf-8")
    (made / "deep" / "cars.rst").write_bytes("Cars\r\n====\r\n\r\nA red car costs ten.\r\n".encode("utf-16"))
    (made / "page.html").write_text(
        "<title>Fruit</title><style>p {pear: 1}</style>"
        "<h2>Stone</h2><p>A&nbsp;plum &amp;\n a cherry<br>grow.<script>pear()</script>"
    )
    (made / "deep" / ".git" / "config.txt").write_text("hidden")
    (made / "photo.jpg").write_bytes(b"\xff\xd8")
    (made / "bad.txt").write_bytes(b"caf\xe9")
    (made / "zero.csv").write_bytes(b"a\0b")
    os.symlink("/etc/hostname", made / "outside.txt")
    os.symlink("boats.md", made / "again.md")
    return made


def test_documents_of_every_kind(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pypdf")
    pdf(folder / "map.pdf", "An island with a treasure")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4\nnothing")
    out = tmp_path / "index"
    assert main(["index", str(folder), "-o", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["files"], told["passages"], told["others"], told["bytes"]) == (5, 5, 1, out.stat().st_size)
    assert told["left_out"] == {
        "bad.txt": "is no UTF-8 text at byte 3",
        "broken.pdf": "no text can be read from it (PdfStreamError)",
        "zero.csv": "is no text: it holds zero bytes",
    }
    index = Index.open(out)
    for question, source, text in [
        ("red cars", "deep/cars.rst, line 4, Cars", "A red car costs ten."),
        ("blue", "again.md, line 3, Boats", "A blue boat costs nine."),
        ("plum", "page.html, page, Fruit > Stone", "A plum & a cherry\ngrow."),
        ("treasure", "map.pdf, page 1", "An island with a treasure"),
    ]:
        found = index.search(question, 1)[0]
        assert (found.source, found.text) == (source, text)
    assert [index.search(word, 1) for word in ("pear", "hidden")] == [[], []]


def test_what_is_shown(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "index"
    assert main(["index", str(folder), "-o", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{out}: 4 passages of 4 files, 0.0 MB",
        "left out: bad.txt: is no UTF-8 text at byte 3",
        "left out: zero.csv: is no text: it holds zero bytes",
        "1 files are no documents that are known here",
    ]
    assert main(["search", str(out), "What does a car cost?", "--most", "1"]) == 0
    assert capsys.readouterr().out == "deep/cars.rst, line 4, Cars\nA red car costs ten.\n"
    assert main(["search", str(out), "elephants"]) == 0
    assert capsys.readouterr().out == "nothing\n"


def test_an_index_that_is_there(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, other = tmp_path / "index", tmp_path / "other"
    other.write_text("mine")
    assert main(["index", str(folder), "-o", str(out)]) == 0
    for arguments, said in [
        ([str(folder), "-o", str(out)], "exists; choose another -o or pass --force to replace it"),
        ([str(folder), "-o", str(other), "--force"], "is no index of documents, and --force replaces nothing else"),
        ([str(folder), "-o", str(other)], "other: exists; choose another -o\n"),
        ([str(folder), "-o", str(folder), "--force"], "expected a file, or a name that is free"),
        ([str(folder / "none"), "-o", str(tmp_path / "new")], "none: no such folder"),
        ([str(folder / "boats.md"), "-o", str(tmp_path / "new")], "boats.md: expected a folder"),
        ([str(folder / "deep" / ".git" / ".."), "-o", str(tmp_path / "a" / "b")], "no such folder"),
    ]:
        capsys.readouterr()
        assert main(["index", *arguments]) == 2
        told = capsys.readouterr().err
        assert said in told
        assert told.count("\n") == 1
    assert other.read_text() == "mine"
    before = out.read_bytes()
    assert main(["index", str(folder), "-o", str(out), "--force"]) == 0
    assert out.read_bytes() == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "way", ["UPDATE about SET value = 0 WHERE key = 'format'", "DROP TABLE words", "short", "empty"]
)
def test_an_index_that_is_no_good_is_replaced(
    way: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "index"
    assert main(["index", str(folder), "-o", str(out)]) == 0
    before = out.read_bytes()
    if way in ("short", "empty"):
        out.write_bytes(before[:5000] if way == "short" else b"")
    else:
        with contextlib.closing(sqlite3.connect(out)) as database:
            database.executescript(way)
    assert main(["search", str(out), "boats"]) == 2
    error = capsys.readouterr().err
    assert f"FOLDER -o {out} --force'" in error or way == "empty"
    assert main(["index", str(folder), "-o", str(out)]) == 2
    assert "pass --force to replace it" in capsys.readouterr().err
    assert main(["index", str(folder), "-o", str(out), "--force"]) == 0
    assert out.read_bytes() == before


def test_names_that_are_no_plain_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes that are no UTF-8, a line's end, and what colours a terminal."""
    documents, out = tmp_path / "d", tmp_path / "index"
    documents.mkdir()
    Path(os.fsdecode(os.fsencode(documents) + b"/bad\xff.txt")).write_text(
        "A \x1b[31mred\x1b[0m boat\n\tfloats\u3000on.", "utf-8"
    )
    (documents / "two\n\x1b[2Jlines.txt").write_text("A green car.")
    (documents / "not\nread.txt").write_bytes(b"\xff")
    assert main(["index", str(documents), "-o", str(out)]) == 0
    assert "left out: not\\nread.txt: is no UTF-8 text at byte 0\n" in capsys.readouterr().out
    assert main(["search", str(out), "boat"]) == 0
    assert capsys.readouterr().out == (
        "bad\\xff.txt, lines 1-2\nA \\x1b[31mred\\x1b[0m boat\n        floats\u3000on.\n"
    )
    assert main(["search", str(out), "car"]) == 0
    assert capsys.readouterr().out == "two\\n\\x1b[2Jlines.txt, line 1\nA green car.\n"
    (passage,) = Index.open(out).search("car", 1)
    assert cli._named([passage]) == "  from two\\n\\x1b[2Jlines.txt, line 1\n"


def test_links_that_lead_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = tmp_path / "d"
    documents.mkdir()
    (documents / "a.txt").symlink_to("b.txt")
    (documents / "b.txt").symlink_to("a.txt")
    (documents / "c.txt").symlink_to("none.txt")
    assert main(["index", str(documents), "-o", str(tmp_path / "index")]) == 2
    error = "holds no document that can be read (first a.txt: a link that leads to itself; remove it)"
    (documents / "c.txt").unlink()
    capsys.readouterr()
    assert main(["index", str(documents), "-o", str(tmp_path / "index")]) == 2
    assert error in capsys.readouterr().err
    (documents / "c.txt").symlink_to("none.txt")
    (documents / "d.txt").write_text("A boat.")
    assert main(["index", str(documents), "-o", str(tmp_path / "index"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == {
        "a.txt": "a link that leads to itself; remove it",
        "b.txt": "a link that leads to itself; remove it",
        "c.txt": "a link to none.txt, which is not there; put the file itself in its place",
    }


def test_a_folder_that_cannot_be_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system refuses nothing to the user root, who may run this."""
    real = os.scandir

    def scandir(path: Any) -> Any:  # or the number of an open folder
        if str(path).endswith("deep"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert main(["index", str(folder), "-o", str(tmp_path / "index"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"]["deep"] == "cannot be read (Permission denied)"
    assert main(["index", str(folder / "deep"), "-o", str(tmp_path / "other")]) == 2
    assert "holds no document that can be read (first .: cannot be read (Permission denied))" in capsys.readouterr().err


def test_how_many_passages(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(folder), "-o", str(tmp_path / "index")]) == 0
    for most in ("0", "41"):
        assert main(["search", str(tmp_path / "index"), "boats", "--most", most]) == 2
        assert f"--most {most}: expected 1 to 40" in capsys.readouterr().err
    assert main(["search", str(tmp_path / "index"), "boats", "--most", "40"]) == 0


def test_letters_that_a_pdf_may_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A font's table may say halves of a letter, which pypdf gives out."""
    pypdf = pytest.importorskip("pypdf")
    documents = tmp_path / "d"
    documents.mkdir()
    pdf(documents / "a.pdf", "boat")
    monkeypatch.setattr(pypdf.PageObject, "extract_text", lambda page: "boat \ud83d\ude00 \ud83d\0.")
    assert main(["index", str(documents), "-o", str(tmp_path / "index")]) == 0
    assert Index.open(tmp_path / "index").search("boat", 1)[0].text == "boat \U0001f600 \ufffd ."


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "holds no document; known are text, Markdown"),
        ({"a.jpg": b"x"}, "holds no document"),
        (
            {"a.txt": b"\xff", "b.md": b"\0"},
            "none of its 2 documents can be read (first a.txt: is no UTF-8 text at byte 0)",
        ),
        ({"a.txt": b"\xef\xbb\xbfab\xff"}, "(first a.txt: is no UTF-8 text at byte 5)"),
        ({"a.txt": b"\xff\xfea\0b"}, "(first a.txt: is no UTF-16 text at byte 4)"),
        ({"a.txt": b" \n"}, "its documents hold no text"),
    ],
)
def test_folders_without_documents(
    files: dict[str, bytes], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "f").mkdir()
    for name, content in files.items():
        (tmp_path / "f" / name).write_bytes(content)
    assert main(["index", str(tmp_path / "f"), "-o", str(tmp_path / "index")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "index").exists()


def test_a_chat_answers_from_documents(talking_bundle: Path, tmp_path: Path) -> None:
    documents = tmp_path / "d"
    documents.mkdir()
    (documents / "b.md").write_text("Blue boats cost 9.")
    (documents / "c.md").write_text("Red cars cost 10.")
    assert main(["index", str(documents), "-o", str(tmp_path / "index")]) == 0
    chat = Chat(talking_bundle, 2 * ROOM, docs=tmp_path / "index")
    plain = Chat(talking_bundle, 2 * ROOM)
    reply = chat.say("boats?", limit=4)
    assert [one.source for one in reply.sources] == ["b.md, line 1"]
    message = f"{INTRODUCTION}\n\nFrom b.md, line 1:\nBlue boats cost 9.\n\nQuestion: boats?"
    assert chat.messages[0] == ("user", message)
    assert reply.text == plain.say(message, limit=4).text  # the model was asked this
    assert chat.say("ok", limit=4).sources[0].source == "b.md, line 1"  # a short message leans on the one before
    assert chat.say("elephants, tigers, lions, wolves and bears", limit=4).sources == ()


def test_what_was_said_before_makes_room(talking_bundle: Path, tmp_path: Path) -> None:
    documents = tmp_path / "d"
    documents.mkdir()
    (documents / "b.md").write_text("Blue boats cost 9.")
    (documents / "c.md").write_text("Long. " * 60)
    assert main(["index", str(documents), "-o", str(tmp_path / "index")]) == 0
    chat = Chat(talking_bundle, 2 * ROOM, docs=tmp_path / "index")
    assert chat.say("boats?", limit=2).sources
    assert chat.say("blue boats?", limit=2).sources
    assert next(text for role, text in chat.messages if role == "user") == "boats?"  # its passage is gone
    assert chat.say("a long text?", limit=2).sources == ()  # it fits nowhere
    assert Chat(talking_bundle, 2 * ROOM, docs=tmp_path / "index").say("boats?", limit=2).sources


def test_the_command_says_where_it_looked(
    talking_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    documents = tmp_path / "d"
    documents.mkdir()
    (documents / "b.md").write_text("Blue boats cost 9.")
    assert main(["index", str(documents), "-o", str(tmp_path / "index")]) == 0
    capsys.readouterr()
    asked = [
        "chat",
        str(talking_bundle),
        "--max-tokens",
        str(2 * ROOM),
        "--prompt",
        "boats?",
        "--docs",
        str(tmp_path / "index"),
    ]
    assert main(asked) == 0
    assert capsys.readouterr().out.endswith("\n  from b.md, line 1\n")
    assert main([*asked, "--json"]) == 0
    (source,) = json.loads(capsys.readouterr().out)["sources"]
    assert source == {"file": "b.md", "place": "line 1", "heading": "", "text": "Blue boats cost 9."}
    assert main([*asked[:-1], str(talking_bundle / "manifest.json")]) == 2
    assert "manifest.json: is no index of documents" in capsys.readouterr().err
