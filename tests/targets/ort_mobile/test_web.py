"""The page in a real browser: a bundle's own model.onnx, run there, says what the host says in float32."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import browser
import pytest
import torch
from letters_bundle import letters_bundle
from served import served

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.hosts import open_host
from pocketphi.compiler.numerics import generate
from pocketphi.compiler.serve.web import LIBRARY
from pocketphi.graph.errors import InputError
from pocketphi.graph.tokenizer import Tokenizer
from pocketphi.targets.ort_mobile import web

END, ROOM = 2, 96
MESSAGES = [{"role": "user", "content": "Hello, who are you?"}]


@contextmanager
def address_of(bundle: Path, library: Path = LIBRARY) -> Iterator[str]:
    with served(bundle, room=ROOM, library=library) as port:
        yield f"http://127.0.0.1:{port}"


def get(address: str) -> tuple[int, str]:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(str(parts.netloc), timeout=60)
    connection.request("GET", parts.path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode("utf-8", "replace")


@pytest.mark.skipif(browser.CHROMIUM is None, reason=browser.MISSING)
@pytest.mark.skipif(not (LIBRARY / "ort.mjs").is_file(), reason="needs onnxruntime-web: make build/web")
def test_it_says_what_the_host_says(tmp_path: Path) -> None:
    """As blocks of 4 and of 8 bits, and with zero points; the host computes in float32 as well, whatever the files say."""
    made = {"4": {}, "8": {"format": "int8"}, "zeros": {"symmetric": False, "accuracy_level": 4}}
    with browser.browser() as tab:
        tab.size(390, 844, phone=True)
        for name, options in made.items():
            bundle = letters_bundle(tmp_path / name, **options)
            with address_of(bundle) as address:
                _same_as_host(tab, bundle, address)


def _same_as_host(tab: browser.Page, bundle: Path, address: str) -> None:
    tokenizer = Tokenizer.load(bundle)
    prompt = tokenizer.encode_chat(MESSAGES)
    runner = open_host(bundle, Bundle.open(bundle).manifest).runner(ROOM, exact=True)
    expected = generate(runner, torch.tensor([prompt]), 32)[0][0].tolist()
    expected = expected[: expected.index(END)] if END in expected else expected
    assert len(expected) > 8
    tab.open(address)
    tab.wait("document.documentElement.dataset.ready || document.documentElement.dataset.failed")
    assert tab.value("document.documentElement.dataset.failed") is None
    said = tab.value(f"pocketphi.ask('answer', {{messages: {MESSAGES}, limit: 32, temperature: 0}})")
    assert said["prompt"] == prompt
    assert said["tokens"] == expected
    assert said["text"] == tokenizer.decode(expected)
    tab.value("document.getElementById('text').value = 'Hi'; document.getElementById('form').requestSubmit()")
    tab.wait("document.getElementById('said').textContent")
    assert tab.value("document.querySelector('.assistant').textContent.length") > 0
    assert tab.value("document.documentElement.scrollWidth") <= 390
    assert tab.value("self.crossOriginIsolated") is True
    assert tab.said == []
    assert all(one.startswith((address, "data:", "blob:", "about:")) for one in tab.asked)
    tab.asked.clear()


def test_no_other_file_is_served(tmp_path: Path) -> None:
    bundle, library = letters_bundle(tmp_path / "bundle"), tmp_path / "web"
    library.mkdir()
    (tmp_path / "secret").write_text("hidden words")
    with address_of(bundle, library) as address:
        status, text = get(f"{address}/")
        assert (status, "make build/web" in text) == (200, True)
    for name in web.LIBRARY:
        (library / name).write_text("x")
    (library / "more").write_text("hidden words")
    with address_of(bundle, library) as address:
        assert get(f"{address}/")[0] == 200
        assert get(f"{address}/bundle/tokenizer.json")[1] == (bundle / "tokenizer.json").read_text("utf-8")
        for path in (
            *("/bundle/manifest.json", "/bundle/genai_config.json", "/bundle/../secret", "/bundle/%2e%2e%2fsecret"),
            *("/library/more", "/library/../secret", "/page/__init__.py", "/page/fetch.sh", "/bundle//etc/passwd"),
        ):
            status, text = get(f"{address}{path}")
            assert (status, "hidden words" in text) == (404, False), path


def test_what_a_browser_cannot_run_is_said(tmp_path: Path) -> None:
    bundle = Bundle.open(letters_bundle(tmp_path / "bundle"))
    (record,) = bundle.manifest.targets.values()
    files = {name: entry.bytes for name, entry in bundle.manifest.files.items()}
    assert web.settings(bundle.path, record, files)["chunk"] == 128
    with pytest.raises(InputError, match="a browser has room for 2,147,483,648"):
        web.settings(bundle.path, record, {**files, "model.onnx.data": 3 << 30})
    with pytest.raises(InputError, match="no tokenizer"):
        web.settings(bundle.path, record, {"model.onnx.data": 1})
