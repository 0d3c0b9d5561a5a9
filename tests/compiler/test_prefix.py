"""A shipped prefix: what it is, that answers stay the same with it, and what is refused before the work."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from decoder_folders import save_model
from text_folders import add_tokenizer

pytest.importorskip("tvm")

from xxhash import xxh64_intdigest as xxh64

from pocketphi.artifacts.bundle import Bundle, seal, write_manifest
from pocketphi.compiler.chat import Chat
from pocketphi.compiler.cli import main
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.plan import plan
from pocketphi.compiler.ui import Ui
from pocketphi.compiler.verify import verify_folder
from pocketphi.graph.errors import InputError
from pocketphi.graph.tokenizer import Tokenizer
from pocketphi.targets.tvm_arm.host import TvmHost, TvmRunner
from pocketphi.targets.tvm_arm.prefix import read_tokens

TEXT = "the cat on the hello is in an hour, " * 9
CACHE = {"kv_cache": "int4", "calibration_tokens": 64}
NAME = "prefixes that are not what their text gives"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prefix") / "model"
    settings = {"num_hidden_layers": 2, "head_dim": 32, "max_position_embeddings": 1024}
    return add_tokenizer(save_model(folder, "LlamaForCausalLM", torch.bfloat16, **settings))


@pytest.fixture(scope="module")
def text(model: Path) -> Path:
    path = model.parent / "prompt.txt"
    path.write_text(f"\n{TEXT}\n\n")
    return path


def built(model: Path, out: Path, **options: object) -> Bundle:
    asked = {"recipe": "rtn", "os": "host", "verify": "never", "context": 512, **options}
    return compile_model(compile_options(str(model), out, ("tvm-arm",), **asked))


@pytest.fixture(scope="module")
def bundle(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a cache whose centres a text gives."""
    out = tmp_path_factory.mktemp("prefix") / "bundle"
    return built(model, out, prefix=text, **CACHE).path


def calls(chat: Chat) -> int:
    assert isinstance(chat._runner, TvmRunner)
    return chat._runner.process.calls


def test_a_bundle_has_what_every_prompt_begins_with(bundle: Path, model: Path, text: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert (bundle / "prefix.txt").read_text() == TEXT.strip()
    tokens = read_tokens(bundle / "prefix.session")
    assert manifest.prefix is not None
    assert manifest.prefix.tokens == len(tokens) > 150
    tokenizer = Tokenizer.load(bundle)
    for said in ("Hello", "  x", "\n", "日本", "<|user|>"):
        chat = [{"role": "system", "content": TEXT.strip()}, {"role": "user", "content": said}]
        prompt = tokenizer.encode_chat(chat)
        assert prompt[: len(tokens)] == tokens
        assert len(prompt) > len(tokens)
    planned = plan(
        compile_options(str(model), bundle, ("tvm-arm",), recipe="rtn", os="host", context=512, prefix=text, **CACHE)
    )
    assert planned.artifact == sum((bundle / name).stat().st_size for name in ("model.params", "prefix.session"))


def test_answers_stay_the_same_and_come_at_once(bundle: Path, model: Path, tmp_path: Path) -> None:
    built(model, tmp_path / "plain", **CACHE)
    plain, shipped = Chat(tmp_path / "plain", system=TEXT.strip(), draft="none"), Chat(bundle, draft="none")
    for said in ("Hello", "And?"):
        assert plain.say(said, limit=6).text == shipped.say(said, limit=6).text
    assert plain.messages == shipped.messages
    first, other = Chat(bundle, draft="none"), Chat(bundle, system="Be brief.", draft="none")
    first.say("Hello", limit=1)
    assert calls(first) == 1
    other.say("Hello", limit=1)
    assert other.messages[0] == ("system", "Be brief.")


def test_a_conversation_in_a_file_begins_with_it(bundle: Path, tmp_path: Path) -> None:
    whole = Chat(bundle, draft="none")
    expected = [whole.say(said, limit=4).text for said in ("Hello", "And?")]
    said = [Chat(bundle, session=tmp_path / "talk").say(one, limit=4).text for one in ("Hello", "And?")]
    assert said == expected


def sealed(bundle: Path) -> None:
    write_manifest(bundle, Bundle.open(bundle, check=False).manifest)


def other_text(bundle: Path) -> None:
    (bundle / "prefix.txt").write_text(TEXT.strip().replace("cat", "hat"))


def other_cache(bundle: Path) -> None:
    path = bundle / "prefix.session"
    data = path.read_bytes()
    changed = data[:-9] + bytes([data[-9] ^ 1])
    path.write_bytes(changed + struct.pack("<Q", xxh64(changed)))


@pytest.mark.parametrize("spoil", [sealed, other_text, other_cache])
def test_verify_computes_it_again(bundle: Path, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    spoil(folder)
    sealed(folder)
    result = verify_folder(folder, Bundle.open(folder).manifest, Ui())
    assert [check.ok for check in result.checks if check.name == NAME] == [spoil is sealed]
    assert all(check.ok for check in result.checks if "files" in check.name)


def test_what_was_computed_elsewhere_is_not_verified(bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    text = (folder / "manifest.json").read_bytes()
    data = json.loads(text)
    data["prefix"]["computed_on"]["tvm-arm"] = "apple"
    data.pop("sha256")
    (folder / "manifest.json").write_bytes(seal(json.dumps(data, indent=1).removesuffix("\n}").encode()))
    result = verify_folder(folder, Bundle.open(folder).manifest, Ui(), as_far_as_it_runs=True)
    assert result.recorded().ok is not True
    assert result.cannot == ["the prefix was computed with apple, which this machine does not have"]


def test_a_phone_gets_what_the_same_kernels_compute_here(bundle: Path, model: Path, text: Path, tmp_path: Path) -> None:
    here, phone = Bundle.open(bundle), built(model, tmp_path / "phone", os="android", prefix=text, **CACHE)
    assert here.manifest.prefix == phone.manifest.prefix
    sessions = [(one.path / "prefix.session").read_bytes() for one in (here, phone)]
    assert sessions[0][24:-8] == sessions[1][24:-8]
    for one, data in zip((here, phone), sessions, strict=True):
        assert struct.unpack_from("<Q", data, 16) == (xxh64((one.path / "model.json").read_bytes()),)
    assert sorted(path.name for path in phone.path.iterdir() if "prefix" in path.name) == [
        "prefix.session",
        "prefix.txt",
    ]
    result = verify_folder(phone.path, phone.manifest, Ui(), as_far_as_it_runs=True)
    assert [check.ok for check in result.checks if check.name == NAME] == [True]


def test_longer_than_a_window(tmp_path: Path) -> None:
    """The cache is a ring, which it goes around."""
    settings = {"num_hidden_layers": 1, "sliding_window": 20, "max_position_embeddings": 512}
    folder = add_tokenizer(save_model(tmp_path / "model", "MistralForCausalLM", torch.bfloat16, **settings))
    (tmp_path / "long.txt").write_text(TEXT * 2)
    made = built(folder, tmp_path / "bundle", prefix=tmp_path / "long.txt", kv_cache="int8")
    tokens = read_tokens(made.path / "prefix.session")
    assert len(tokens) > 300
    logits = []
    for runner in (TvmHost(made.path).talker(512), TvmHost(made.path).runner(512)):
        logits.append([runner.step(torch.tensor([[*tokens, 70, 71, 72]])), runner.step(torch.tensor([[73]]))])
        assert runner.process.calls == (2 if len(logits) == 1 else 3)
    assert all(torch.equal(a, b) for a, b in zip(*logits, strict=True))


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b" \n", "--prefix is empty"),
    "bytes": (b"\xff\xfe\x00a", "--prefix is not UTF-8 text (byte 0)"),
    "zero": (b"ab\0c", "--prefix is no text: its character 2 is a zero"),
    "long": (b"the cat " * 700, "takes 1,4"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_no_prefix(name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, message = BAD[name]
    path = tmp_path / "prompt"
    path.write_bytes(content)
    command = ["compile", str(model), "-o", str(tmp_path / "out"), "--target", "tvm-arm", "--os", "host"]
    assert main([*command, "--prefix", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def refused(model: str | Path, text: Path, tmp_path: Path, *targets: str) -> str:
    with pytest.raises(InputError) as caught:
        compile_model(compile_options(str(model), tmp_path / "out", targets, prefix=text, recipe="rtn"))
    return str(caught.value)


def test_models_without_a_tokenizer_or_a_template(text: Path, model: Path, tmp_path: Path) -> None:
    assert "random:tiny has no tokenizer, so that a text means nothing to it" in refused(
        "random:tiny", text, tmp_path, "tvm-arm"
    )
    folder = shutil.copytree(model, tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())

    def with_template(template: str | None) -> str:
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
        return refused(folder, text, tmp_path, "tvm-arm")

    assert "chat: this model has no chat template" in with_template(None)
    users = "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}{% endif %}{% endfor %}"
    assert "the chat template leaves system messages out" in with_template(users)
    dated = "{{ strftime_now('%d') }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert "the chat template writes the date of the day" in with_template(dated)


@pytest.mark.parametrize("target", ["ort-mobile", "coreml"])
def test_targets_whose_runtime_takes_none(target: str, text: Path, tmp_path: Path) -> None:
    said = refused("random:tiny", text, tmp_path, "tvm-arm", target)
    assert said.startswith(f"--prefix {text}: {target} cannot have one: ")
    assert said.endswith("; compile for tvm-arm")


def test_no_such_file(model: Path, tmp_path: Path) -> None:
    assert "--prefix cannot be read: No such file or directory" in refused(
        model, tmp_path / "none", tmp_path, "tvm-arm"
    )


def test_a_session_is_compared_by_numbers() -> None:
    """The sum that Python writes for a library of another CPU, by published values."""
    assert xxh64(b"") == 0xEF46DB3751D8E999
    assert xxh64(b"abc") == 0x44BC2CF5AD770999
    assert xxh64(bytes(np.arange(100, dtype=np.uint8))) == xxh64(bytes(range(100)))
