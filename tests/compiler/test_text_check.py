"""The text side against transformers and onnxruntime-genai: what a folder says, what a bundle holds, what verify sees."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from text_folders import PHI3, SPECIAL, Edit, add_tokenizer, model_folder, token_id

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.manifest import TextRecord, parse_manifest
from pocketphi.compiler import text_check, text_files
from pocketphi.compiler.chat import Chat
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.evaluate import open_runner
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.plan import plan
from pocketphi.compiler.text import tokens_of
from pocketphi.compiler.text_check import ModelText, check_text, text_checks
from pocketphi.compiler.ui import Ui
from pocketphi.compiler.verify import verify_folder
from pocketphi.graph import random_weights, tokenizer
from pocketphi.graph.chat_template import _Environment
from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_folder import HfFolder
from pocketphi.graph.random_weights import PUBLISHED, RandomWeights
from pocketphi.graph.tokenizer import TextStream, Tokenizer
from pocketphi.graph.write_checkpoint import write_checkpoint
from pocketphi.graph.writing import write_files
from pocketphi.passes.calibrate import default_text

ROWS = 384
TALK = [{"role": "system", "content": " the cat \n"}, {"role": "user", "content": "  in the  cat\n"}]
LONG = "the cat in the hello on and more " * 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of 384 tokens, without a tokenizer."""
    folder = tmp_path_factory.mktemp("text") / "model"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(random_weights.PUBLISHED, "tiny-text", replace(PUBLISHED["tiny"], vocab_size=ROWS))
        write_checkpoint(RandomWeights("random:tiny-text"), folder, "fp32")
    return folder


def reference(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def read(folder: Path) -> ModelText:
    return check_text(HfFolder(folder), ["ort-mobile"])


def flag(**flags: bool) -> Edit:
    """Set flags of all added tokens in tokenizer_config.json only."""
    return lambda data, config, folder: [token.update(flags) for token in config["added_tokens_decoder"].values()]


def truncation(data: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    data["truncation"] = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}


def padding(data: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    fixed = {"strategy": {"Fixed": 256}, "direction": "Left", "pad_to_multiple_of": None}
    data["padding"] = {**fixed, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}


def start_token(data: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    """In tokenizer.json alone; the configuration says there is none."""
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    one = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    data["post_processor"].update(single=single, special_tokens=one)


def without_flags(data: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    """Special tokens as objects in special_tokens_map.json, nothing in the configuration."""
    del config["added_tokens_decoder"]
    data["added_tokens"] = data["added_tokens"][:3]
    names = [*SPECIAL, "<|new|>"]
    (folder / "added_tokens.json").write_text(json.dumps({token: 307 + i for i, token in enumerate(names)}))


def templates_by_name(data: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    config["chat_template"] = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": PHI3 + "!"}]


def template_in_a_file(data: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(PHI3 + "{# file #}?", newline="\r\n")


def templates_in_a_folder(data: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "default.jinja").write_text(PHI3 + "folder")
    (folder / "additional_chat_templates" / "rag.jinja").write_text("rag")


def test_a_checkpoint_is_written_with_its_folder_of_templates(model: Path, tmp_path: Path) -> None:
    folder = model_folder(model, tmp_path / "model")
    add_tokenizer(folder, edit=templates_in_a_folder)
    (tmp_path / "again").mkdir()
    write_checkpoint(HfFolder(folder), tmp_path / "again")
    assert (tmp_path / "again/additional_chat_templates/rag.jinja").read_text() == "rag"


def named_token(data: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    config.update(image_token="<|user|>", extra_special_tokens={"boi": "<|end|>"})
    config["chat_template"] = "{{ image_token ~ boi ~ bos_token ~ pad_token }}" + PHI3


FOLDERS: dict[str, Edit] = {
    "as published": lambda data, config, folder: None,
    "truncation": truncation,
    "padding": padding,
    "both": lambda data, config, folder: (truncation(data, config, folder), padding(data, config, folder)),
    "rstrip in the configuration only": flag(rstrip=False),
    "lstrip in the configuration only": flag(lstrip=True),
    "normalized in the configuration only": flag(normalized=True),
    "single_word in the configuration only": flag(single_word=True),
    "special in the configuration only": flag(special=False),
    "start token": start_token,
    "add_bos_token that nothing follows": lambda data, config, folder: config.update(add_bos_token=True),
    "added_tokens.json": without_flags,
    "merges as lines": lambda data, config, folder: data["model"].update(
        merges=[" ".join(m) for m in data["model"]["merges"]]
    ),
    "templates by name": templates_by_name,
    "template in a file": template_in_a_file,
    "templates in a folder": templates_in_a_folder,
    "named tokens": named_token,
    "split_special_tokens": lambda data, config, folder: config.update(split_special_tokens=True),
    "no class": lambda data, config, folder: config.pop("tokenizer_class"),
    "no template": lambda data, config, folder: config.pop("chat_template"),
}


def without_genai(text: text_check.ModelText) -> TextRecord:
    """What is recorded of a folder that onnxruntime-genai cannot open: a bundle's, without its genai_config.json."""
    assert text.recorded
    return replace(text.recorded, genai_differs=None)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_bundle_says_what_transformers_reads_in_the_folder(name: str, model: Path, tmp_path: Path) -> None:
    folder = add_tokenizer(model_folder(model, tmp_path / "m"), edit=FOLDERS[name])
    want, text = reference(folder), read(folder)
    bundle = tmp_path / "b"
    bundle.mkdir()
    write_files(bundle, text.files)
    shutil.copy(folder / "config.json", bundle)
    ours, again = Tokenizer.load(bundle), reference(bundle)
    for sample in (LONG, "a<|user|>\n the cat<|end|> \n in", "x</s> y <s>", "日本 😀", "", " in "):
        assert ours.encode(sample) == want(sample).input_ids == again(sample).input_ids
        assert ours.decode(want(sample).input_ids) == want.decode(want(sample).input_ids, skip_special_tokens=True)
    if want.chat_template is not None:
        rendered = want.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
        assert ours.render_chat(TALK) == rendered
        assert again.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True) == rendered
        assert ours.encode_chat(TALK) == want.apply_chat_template(TALK, add_generation_prompt=True).input_ids
    # a reader that knows tokenizer.json alone finds everything in it
    alone = tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))
    assert alone.truncation is None
    assert alone.padding is None
    if name != "split_special_tokens":
        assert alone.encode("x <|end|> \n in").ids == want("x <|end|> \n in").input_ids
    assert [c for c in text_checks(bundle, HfFolder(folder).config, without_genai(text)) if not c.ok] == []


def test_files_that_say_it_already_keep_their_bytes(model: Path, tmp_path: Path) -> None:
    folder = add_tokenizer(model_folder(model, tmp_path / "m"))
    text = check_text(HfFolder(folder))
    assert text.files == {name: (folder / name).read_bytes() for name in text.files}
    assert len(text.files) == 3
    assert text.notices == []


@pytest.mark.parametrize(
    ("name", "notices"),
    [
        ("truncation", ["tokenizer.json: truncation, left behind by a training call, is switched off"]),
        ("padding", ["tokenizer.json: padding, left behind by a training call, is switched off"]),
        (
            "rstrip in the configuration only",
            ["tokenizer.json: 4 tokens, first '<|assistant|>', are as the files beside it say"],
        ),
        ("added_tokens.json", ["tokenizer.json: 6 tokens, first '<|endoftext|>', are as the files beside it say"]),
        ("merges as lines", []),
        (
            "split_special_tokens",
            ["tokenizer_config.json: split_special_tokens is true: transformers and pocketphi read"],
        ),
    ],
)
def test_what_was_changed_is_said(name: str, notices: list[str], model: Path, tmp_path: Path) -> None:
    folder = add_tokenizer(model_folder(model, tmp_path / "m"), edit=FOLDERS[name])
    came = check_text(HfFolder(folder)).notices
    assert [said[: len(notice)] for said, notice in zip(came, notices, strict=True)] == notices


def unigram(data: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    pieces = ["<unk>", "<s>", "</s>", *"▁abcdefghijklmnopqrstuvwxyz.,"]
    model = {"type": "Unigram", "unk_id": 0, "vocab": [[piece, -1.0] for piece in pieces], "byte_fallback": False}
    spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    data.update(model=model, normalizer=None, pre_tokenizer=spaces, decoder=spaces, added_tokens=[])
    config.update(clean_up_tokenization_spaces=True, tokenizer_class="PreTrainedTokenizerFast", chat_template=None)
    config.pop("added_tokens_decoder")


@pytest.mark.parametrize("edit", [unigram, lambda data, config, folder: config.pop("clean_up_tokenization_spaces")])
def test_spaces_before_punctuation_stay(edit: Edit, model: Path, tmp_path: Path) -> None:
    """transformers takes them out of what it decodes where the configuration says so; swift-transformers, where it does not
    say otherwise."""
    folder = add_tokenizer(model_folder(model, tmp_path / "m"), edit=edit)
    text, said = read(folder), edit is unigram
    assert json.loads(text.files["tokenizer_config.json"])["clean_up_tokenization_spaces"] is False
    assert [notice for notice in text.notices if "takes spaces before punctuation" in notice] == (
        [text_check._SPACES] if said else []
    )
    bundle = tmp_path / "b"
    bundle.mkdir()
    write_files(bundle, text.files)
    shutil.copy(folder / "config.json", bundle)
    want, ours, again = reference(folder), Tokenizer.load(bundle), reference(bundle)
    ids = want("hello .").input_ids
    assert want.decode(ids) == ("hello." if said else "hello .")
    assert ours.decode(ids) == again.decode(ids) == "hello ."
    assert [c for c in text_checks(bundle, HfFolder(folder).config, without_genai(text)) if not c.ok] == []


def test_a_panic_of_the_library_is_one_line(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def edit(data: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
        flags = {"lstrip": True, "rstrip": False, "normalized": False, "single_word": True, "special": False}
        data["added_tokens"].append({"id": 314, "content": "\n\n", **flags})
        config.pop("added_tokens_decoder")

    folder = add_tokenizer(model_folder(model, tmp_path / "m"), edit=edit)
    with pytest.raises(InputError, match=r"the tokenizer cannot be read \(AddedVocabulary bad split"):
        read(folder)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (314, r"m: the tokenizer makes token 314 \('<\|a\|>'\), but the embedding has 314 rows; resize it"),
        (200, r"makes token 200 \('<0xC5>'\), but the embedding has 200 rows"),
    ],
)
def test_a_token_beyond_the_embedding(rows: int, message: str, model: Path, tmp_path: Path) -> None:
    folder = add_tokenizer(model_folder(model, tmp_path / "m"), ("<|a|>",))
    assert token_id(folder, "<|a|>") == 314
    source = HfFolder(folder)
    source.config = replace(source.config, vocab_size=rows)
    with pytest.raises(InputError, match=message):
        check_text(source)
    source.config = replace(source.config, vocab_size=315)
    check_text(source)


def test_a_token_of_the_post_processor_beyond_the_embedding(model: Path, tmp_path: Path) -> None:
    def edit(data: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
        start_token(data, config, folder)
        data["post_processor"]["special_tokens"]["<s>"]["ids"] = [384]

    folder = add_tokenizer(model_folder(model, tmp_path / "m"), edit=edit)
    with pytest.raises(
        InputError, match=r"makes token 384 \('of the post-processor'\), but the embedding has 384 rows"
    ):
        read(folder)


@pytest.mark.parametrize("special", [False, True])
def test_tokens_over_which_the_tokenizers_library_panics(special: bool, model: Path, tmp_path: Path) -> None:
    """`<|user|>` takes the line feed behind it, which is a token of its own: it panics on a prompt, not on plain texts."""

    def edit(data: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
        flags = {"lstrip": True, "rstrip": False, "single_word": False, "normalized": False, "special": special}
        config["added_tokens_decoder"]["314"] = {"content": "\n", **flags}
        data["added_tokens"].append({"id": 314, "content": "\n", **flags})

    folder = add_tokenizer(model_folder(model, tmp_path / "m"), edit=edit)
    with pytest.raises(InputError, match="AddedVocabulary bad split"):
        read(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"vocab.json": b"{}", "merges.txt": b""},
            "no tokenizer.json, got merges.txt, vocab.json, which",
        ),
        (
            {"tokenizer_config.json": b"{}"},
            "no tokenizer.json, got tokenizer_config.json, which transformers does not read",
        ),
        ({"tokenizer.json": b"["}, "tokenizer.json cannot be read"),
        ({"tokenizer.json": b"[" * 100_000}, "tokenizer.json cannot be read"),
        ({"tokenizer.json": b"{}", "tokenizer_config.json": b"[" * 100_000}, "tokenizer_config.json: not valid JSON"),
        ({"tokenizer.json": b"{}"}, "tokenizer.json cannot be read"),
    ],
)
def test_files_that_are_no_tokenizer_are_refused_before_any_work(
    files: dict[str, bytes], message: str, model: Path, tmp_path: Path
) -> None:
    folder = model_folder(model, tmp_path / "m")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    options = compile_options(str(folder), tmp_path / "b", recipe="rtn")
    with pytest.raises(InputError, match=message):
        compile_model(options)
    with pytest.raises(InputError, match=message):
        plan(options)
    assert not (tmp_path / "b").exists()


def test_sentencepiece_is_converted_or_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(model, tmp_path / "m")
    (folder / "tokenizer.model").write_bytes(b"no protocol buffer")
    monkeypatch.setattr(text_files, "_has_sentencepiece", lambda: False)
    with pytest.raises(
        InputError, match=r"only tokenizer.model, which is converted with the package sentencepiece: install"
    ):
        read(folder)
    monkeypatch.setattr(text_files, "_has_sentencepiece", lambda: True)
    with pytest.raises(InputError, match=r"m: transformers cannot load the tokenizer \(.*"):
        read(folder)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 1/0 }}", "chat: the chat template failed (ZeroDivisionError: division by zero)"),
        ("{{ '\\ud800' }}", "the text holds half of a character at 0: '\\ud800'"),
    ],
)
def test_what_a_chat_will_lack_is_said(template: str, said: str, model: Path, tmp_path: Path) -> None:
    def edit(data: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
        config["chat_template"] = template

    folder = add_tokenizer(model_folder(model, tmp_path / "m", eos_token_id=None), edit=edit)
    notices = read(folder).notices
    assert notices[0].startswith("no end token in config.json or generation_config.json: an answer ends where")
    assert notices[1] == said
    options = compile_options(str(folder), tmp_path / "b", recipe="rtn")
    assert notices[0] in plan(options).notes


def test_what_onnxruntime_genai_reads_otherwise_is_said(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    folder = add_tokenizer(model_folder(model, tmp_path / "m"), edit=flag(lstrip=True))
    text = read(folder)
    assert text.recorded is not None
    assert text.recorded.genai_differs != []
    assert "onnxruntime-genai" in text.notices[-1]
    assert "it ignores lstrip" in text.notices[-1]


def spoiled_template(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    config["chat_template"] = config["chat_template"].replace("'<|end|>\n'", "'<|end|> \n'", 1)
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")


def spoiled(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        data = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        change(data)
        (folder / "tokenizer.json").write_text(json.dumps(data), "utf-8")

    return spoil


def test_verify_asks_onnxruntime_genai(bundle: Path, tmp_path: Path) -> None:
    """What it read otherwise when the bundle was made is known; anything else is not."""
    pytest.importorskip("onnxruntime_genai")
    manifest, config = Bundle.open(bundle).manifest, HfFolder(bundle.parent / "m").config
    name = "texts that onnxruntime-genai reads otherwise"
    assert [check.ok for check in text_checks(bundle, config, manifest.text) if check.name == name] == [True]
    copy = shutil.copytree(bundle, tmp_path / "b")
    (copy / "genai_config.json").unlink()  # it opens nothing without
    assert [check.ok for check in text_checks(copy, config, manifest.text) if check.name == name] == [False]
    unknown = [check.name for check in text_checks(copy, config, None) if not check.ok]
    assert unknown == [
        "answers that the manifest does not tell"
    ]  # each compile of a model with a tokenizer writes them


@pytest.mark.parametrize("text", [[], "x", {}, {"vocabulary": 5}, {"genai_differs": "a"}])
def test_a_record_of_another_type_is_refused(text: Any, bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    with pytest.raises(InputError, match=r"manifest.json: damaged: text"):
        parse_manifest(json.dumps({**manifest, "text": text}).encode(), bundle / "manifest.json")


def swapped(data: dict[str, Any]) -> None:
    """Two entries that none of the texts holds."""
    vocabulary = data["model"]["vocab"]
    vocabulary["<0xFE>"], vocabulary["<0xFD>"] = vocabulary["<0xFD>"], vocabulary["<0xFE>"]


SPOILED: dict[str, Callable[[Path], None]] = {
    "truncation": spoiled(lambda data: truncation(data, {}, Path())),
    "padding": spoiled(lambda data: padding(data, {}, Path())),
    "a flag": spoiled(lambda data: data["added_tokens"][-1].update(rstrip=False)),
    "no longer special": spoiled(lambda data: data["added_tokens"][-1].update(special=False)),
    "vocabulary": spoiled(swapped),
    "merges": spoiled(lambda data: data["model"]["merges"].reverse()),
    "bytes": spoiled(lambda data: data["model"].update(byte_fallback=False)),
    "start token": spoiled(lambda data: start_token(data, {}, Path())),
    "normalizer": spoiled(lambda data: data.update(normalizer=data["normalizer"]["normalizers"][1])),
    "decoder": spoiled(lambda data: data["decoder"]["decoders"].pop()),
    "template": spoiled_template,
    "no files": lambda folder: [path.unlink() for path in folder.glob("*token*")] and None,  # type: ignore[func-returns-value]
}


@pytest.fixture(scope="module")
def bundle(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a folder whose tokenizer cuts, pads, and is contradicted by its configuration; verified while it was made."""
    parent = tmp_path_factory.mktemp("bundle")

    def edit(data: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
        truncation(data, config, folder)
        padding(data, config, folder)
        config["added_tokens_decoder"][str(len(data["model"]["vocab"]) + 1)]["rstrip"] = False

    folder = add_tokenizer(model_folder(model, parent / "m"), edit=edit)
    compile_model(compile_options(str(folder), parent / "b", recipe="rtn", verify="always"))
    return parent / "b"


def test_every_command_sees_the_same_tokenizer(bundle: Path) -> None:
    source = HfFolder(bundle.parent / "m")
    want = reference(bundle.parent / "m")(LONG).input_ids
    assert len(want) > 200
    assert tokens_of(LONG, "", check_text(source).files, source.config, 999) == want  # the calibration, eval of a model
    _, files, config = open_runner(str(bundle), 64)
    assert tokens_of(LONG, "", files, config, 999) == want
    _, files, config = open_runner(str(bundle.parent / "m"), 64)
    assert tokens_of(LONG, "", files, config, 999) == want
    assert len(tokens_of(None, default_text(), files, config, 4096)) == 4096
    chat = Chat(bundle, max_tokens=120)
    assert chat.tokenizer.encode(LONG) == want
    assert chat.say("the cat in the hello " * 3).tokens > 0


def test_verify_checks_the_text_of_a_bundle(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    result = verify_folder(bundle, manifest, Ui())
    assert result.ok
    names = [check.name for check in result.checks]
    for name in (
        "tokens beyond the embedding",
        "texts whose ids differ from transformers'",
        "chats whose prompts differ from transformers'",
        "tokens whose texts differ from transformers'",
        "answers that differ from those of the model's own files",
    ):
        assert names.count(name) == 1


@pytest.mark.parametrize("what", SPOILED)
def test_verify_sees_a_file_that_was_changed(what: str, bundle: Path, tmp_path: Path) -> None:
    """Whoever changes a file may seal the bundle again: the digests of files are not asked."""
    manifest, config = Bundle.open(bundle).manifest, HfFolder(bundle.parent / "m").config
    copy = shutil.copytree(bundle, tmp_path / "b")
    assert all(check.ok for check in text_checks(copy, config, manifest.text))
    SPOILED[what](copy)
    assert not all(check.ok for check in text_checks(copy, config, manifest.text))


def broken(owner: Any, name: str, make: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(owner, name, make(getattr(owner, name)))


def with_line_breaks(old: Any) -> Any:
    def init(self: Any) -> None:
        old(self)
        self.trim_blocks = False

    return init


STEPS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "encode without the start": broken(
        Tokenizer, "encode", lambda old: lambda self, text, *more: old(self, text, *more)[1:]
    ),
    "one id": broken(
        Tokenizer,
        "tokens",
        lambda old: lambda self, text, *more: [7 if i == 300 else i for i in old(self, text, *more)],
    ),
    "decode": broken(Tokenizer, "decode", lambda old: lambda self, ids: old(self, ids).lstrip()),
    "stream": broken(TextStream, "step", lambda old: lambda self, token: old(self, token).replace(" ", "")),
    "messages": broken(Tokenizer, "render_chat", lambda old: lambda self, talk, **how: old(self, talk[:2], **how)),
    "named tokens": broken(tokenizer, "named_tokens", lambda old: lambda config: {}),
    "white space": broken(_Environment, "__init__", with_line_breaks),
    "texts": broken(Tokenizer, "tokens", lambda old: lambda self, text, *more: old(self, text.strip(), *more)),
}


@pytest.mark.parametrize("step", STEPS)
def test_verify_sees_a_reader_that_is_broken(
    step: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(data: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
        start_token(data, config, folder)
        config["chat_template"] = "{{ bos_token }}\n{% for m in messages %}\n{{ m.content }}\n{% endfor %}\n"

    folder = add_tokenizer(model_folder(model, tmp_path / "m"), edit=edit)
    text, config = read(folder), HfFolder(folder).config
    bundle = tmp_path / "b"
    bundle.mkdir()
    write_files(bundle, text.files)
    shutil.copy(folder / "config.json", bundle)
    assert all(check.ok for check in text_checks(bundle, config, without_genai(text)))
    STEPS[step](monkeypatch)
    assert not all(check.ok for check in text_checks(bundle, config, without_genai(text)))


WRITERS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "tokenizer.json as it came": broken(
        text_check,
        "normal_files",
        lambda old: lambda files, *read: {**old(files, *read), "tokenizer.json": files["tokenizer.json"]},
    ),
    "configuration as it came": broken(text_files, "_normal_config", lambda old: lambda config, loaded: dict(config)),
    "another template": broken(text_files, "chat_template", lambda old: lambda loaded: "x" + old(loaded)),
    "a file left out": broken(
        text_check,
        "normal_files",
        lambda old: lambda *a: {k: v for k, v in old(*a).items() if k != "tokenizer_config.json"},
    ),
    "tokens that are no longer special": broken(text_files, "_written", lambda old: lambda backend: backend.to_str()),
}


@pytest.mark.parametrize("step", WRITERS)
def test_a_step_of_writing_that_is_broken_is_seen(
    step: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While compiling, or by verify at the latest."""

    def edit(data: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
        truncation(data, config, folder)
        if step == "tokens that are no longer special":
            flag(special=False)(data, config, folder)
        else:
            del config["added_tokens_decoder"], config["bos_token"]
        (folder / "chat_template.jinja").write_text("{{ bos_token }}" + PHI3)

    folder = add_tokenizer(model_folder(model, tmp_path / "m"), edit=edit)
    read(folder)
    with monkeypatch.context() as patch:
        WRITERS[step](patch)
        try:
            text = read(folder)
        except InputError:
            return
    bundle = tmp_path / "b"
    bundle.mkdir()
    write_files(bundle, text.files)
    shutil.copy(folder / "config.json", bundle)
    checks = text_checks(bundle, HfFolder(folder).config, text.recorded)
    assert not all(check.ok for check in checks)
