"""Answers in a form: they parse and validate by another library, whatever the model would say; what is no form is one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from talking_model import write_model

pytest.importorskip("llguidance")
import jsonschema

from pocketphi.compiler import cli
from pocketphi.compiler.chat import Chat
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.guided import AnswerCut, Forms, lark_grammar, schema_grammar
from pocketphi.compiler.options import compile_options
from pocketphi.graph.errors import CannotRun, CheckFailed, InputError

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog \N{FOX FACE}"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/point"}]},
    },
    "required": ["name", "age", "kind", "tags", "next"],
    "additionalProperties": False,
    "$defs": {
        "point": {
            "type": "object",
            "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 9}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the sample's tokenizer, which never says JSON by itself."""
    folder = tmp_path_factory.mktemp("guided")
    model = write_model(folder / "model", 512)
    asked = compile_options(str(model), folder / "bundle", recipe="rtn", verify="never")
    return compile_model(asked).path


@pytest.fixture(scope="module")
def chat(bundle: Path) -> Chat:
    return Chat(bundle)


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schema") / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    return path


def test_sampled_answers_are_json_by_the_schema(chat: Chat, schema: Path) -> None:
    torch.manual_seed(5)
    said = set()
    form = chat.form(schema_grammar(schema), "schema")
    for temperature in (0.0, 0.5, 1.0, 1.0, 1.0, 3.0):
        reply = chat.say("Hello", temperature, limit=120, form=form)
        jsonschema.validate(json.loads(reply.text), SCHEMA)
        said.add(reply.text)
        chat.restart()
    assert len(said) >= 5
    assert not chat.say("Hello", limit=20).text.startswith("{")


def test_an_answer_that_is_cut_is_not_given_out(
    chat: Chat, bundle: Path, schema: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AnswerCut, match=r"^the answer was cut after 6 tokens, before it had the form") as caught:
        chat.say("Hello", limit=6, form=chat.form(schema_grammar(schema), "schema"))
    assert caught.value.text.startswith("{")
    assert chat.messages[-1] == ("assistant", caught.value.text)
    command = ["chat", str(bundle), "--prompt", "Hi", "--json-schema", str(schema), "--max-tokens"]
    assert cli.main([*command, "45"]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("pocketphi: the answer was cut after ")
    assert len(error.splitlines()) == 1
    assert cli.main([*command, "300"]) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out), SCHEMA)


def test_a_grammar_of_our_own(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "grammar.lark"
    path.write_text('start: "yes" | "no, " /[a-z]{3}/\n')
    assert cli.main(["chat", str(bundle), "--prompt", "Hi", "--grammar", str(path), "--temperature", "2"]) == 0
    assert re.fullmatch(r"(yes|no, [a-z]{3})\n", capsys.readouterr().out)
    assert cli.main(["chat", str(bundle), "--prompt", "Hi", "--grammar", str(path), "--json"]) == 0
    assert re.fullmatch("yes|no, [a-z]{3}", json.loads(capsys.readouterr().out)["text"])


BAD = {
    "[1]": "--json-schema {}: expected a JSON object, got list",
    "{": "--json-schema {}: not valid JSON",
    '{"type": "objct"}': "--json-schema {}: Invalid type: objct",
    '{"type": "string", "pattern": "("}': "--json-schema {}: regex parse error: ( ^ error: unclosed group",
    '{"type": "array", "uniqueItems": true}': '--json-schema {}: Unimplemented keys: ["uniqueItems"]',
    '{"$ref": "#/nope"}': "--json-schema {}: Pointer '/nope' does not exist",
    '{"enum": []}': "--json-schema {}: Unsatisfiable schema",
}


def test_a_schema_that_is_none(chat: Chat, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "schema.json"
    for text, message in BAD.items():
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            chat.form(schema_grammar(path), f"--json-schema {path}")
        assert str(caught.value).startswith(message.format(path))
        assert len(str(caught.value).splitlines()) == 1
    assert cli.main(["chat", str(bundle), "--prompt", "Hi", "--json-schema", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"pocketphi: --json-schema {path}: Unsatisfiable schema")


def test_a_grammar_that_is_none(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "grammar"
    path.write_bytes(b"hello world\n")
    with pytest.raises(InputError, match=r"^g: .*Expected token ':'"):
        chat.form(lark_grammar(path), "g")
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"--grammar .*: not UTF-8 text \(byte 0\)"):
        lark_grammar(path)
    with pytest.raises(InputError, match=r"--grammar .*: cannot be read: No such file"):
        lark_grammar(tmp_path / "none")
    path.write_bytes(b" " * (1 << 20) + b" ")
    with pytest.raises(InputError, match="has more than 1,048,576 bytes"):
        schema_grammar(path)
    with pytest.raises(InputError, match="the model has no token that ends an answer"):
        Forms(chat.tokenizer, 49152, frozenset())


@pytest.mark.parametrize("text", ["", " \n", "\ufeff"])
def test_an_empty_grammar(text: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would allow everything, or nothing."""
    path = tmp_path / "grammar"
    path.write_text(text, "utf-8")
    assert cli.main(["chat", str(bundle), "--prompt", "Hi", "--grammar", str(path)]) == 2
    assert (
        capsys.readouterr().err
        == f'pocketphi: --grammar {path}: is empty; expected rules, such as start: "yes" | "no"\n'
    )


@pytest.mark.parametrize("grammar", ["start: start", 'start: "a" start', 'start: "a" a\na: a', 'start: a\na: a "x"'])
def test_a_grammar_without_an_end(grammar: str, chat: Chat) -> None:
    with pytest.raises(InputError, match=r"^g: allows no answer that ends \([^<>]*\); does a rule need itself"):
        chat.form(grammar, "g")


def test_a_form_that_cannot_be_followed_is_one_line(chat: Chat) -> None:
    guide = chat.form('start: "x" a | "y"\na: a', "g").start()
    guide.took(*chat.tokenizer.tokens("x"))
    with pytest.raises(
        CheckFailed, match=r"^the form of the answer cannot be followed further: nothing can come next$"
    ):
        guide.masked(torch.zeros(49152))


def test_a_file_that_begins_with_a_mark(chat: Chat, tmp_path: Path) -> None:
    """Windows' editors write one before UTF-8."""
    grammar, schema = tmp_path / "grammar", tmp_path / "schema"
    grammar.write_text('start: "yes"', "utf-8-sig")
    schema.write_text('{"enum": ["yes"]}', "utf-8-sig")
    for made, text in ((lark_grammar(grammar), "yes"), (schema_grammar(schema), '"yes"')):
        assert chat.say("Hello", limit=8, form=chat.form(made, "g")).text == text
        chat.restart()


def test_tokens_that_the_form_does_not_allow(chat: Chat) -> None:
    (yes,) = chat.tokenizer.tokens("yes")
    guide = chat.form('start: "yes"', "g").start()
    assert not guide.whole
    masked = guide.masked(torch.zeros(49152))
    assert masked[yes] == 0
    assert masked.isinf().sum() > 49000
    with pytest.raises(CheckFailed, match="the form of the answer was left"):
        guide.took(yes + 1)
    guide = chat.form('start: "yes"', "g").start()
    guide.took(yes)
    assert guide.whole
    assert guide.masked(torch.zeros(49152)).isfinite().nonzero().flatten().tolist() == [0, 2]  # its ends


def test_without_the_library(schema: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CannotRun, match=re.escape("pip install 'pocketphi[json]'")):
        schema_grammar(schema)


def test_onnxruntime_genai_keeps_to_a_schema_by_itself(bundle: Path) -> None:
    """As docs/apps.md says of an app without our mask."""
    genai = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(bundle))
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=300)
    kinds = {"enum": ["cat", "dog"]}  # its own reading of a tokenizer fails on the emoji
    schema = {**SCHEMA, "properties": {**SCHEMA["properties"], "kind": kinds}}
    params.set_guidance("json_schema", json.dumps({"x-guidance": {"whitespace_flexible": False}, **schema}))
    generator, tokenizer = genai.Generator(model, params), genai.Tokenizer(model)
    generator.append_tokens(tokenizer.encode("Hello"))
    tokens = []
    while not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    jsonschema.validate(json.loads(tokenizer.decode(tokens)), schema)
