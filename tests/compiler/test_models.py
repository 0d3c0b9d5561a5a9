"""Models other than Phi-3 through the command line: a Llama, and one that a line adds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_folders import save_model
from hf_folders import our_logits, transformers_logits
from moe_folders import LONG_CHANGES
from moe_folders import save as save_moe
from small_folders import SU
from small_folders import save as save_small
from text_folders import add_tokenizer
from tiktoken_files import SPECIAL, add_tiktoken, tiktokens, trained
from tiny_phi3 import inputs, rounding

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.bench import bench
from pocketphi.compiler.chat import Chat
from pocketphi.compiler.cli import main
from pocketphi.compiler.guided import AnswerCut, schema_grammar
from pocketphi.compiler.serve.answers import Answers
from pocketphi.compiler.serve.protocol import Wanted
from pocketphi.compiler.talker import Talker
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import InputError
from pocketphi.graph.models import MODELS
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("whole_decode")  # a token through another expert weighs much in a few

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def verified(folder: Path, bundle: Path, *arguments: str) -> dict[str, Any]:
    """Compile by the command line with every check. Returns the bundle's config.json."""
    assert main(["compile", str(folder), "-o", str(bundle), "--verify", "always", "--recipe", "rtn", *arguments]) == 0
    verification = Bundle.open(bundle).manifest.verification
    assert verification is not None
    assert verification.ok
    names = " ".join(check.name for check in verification.checks)
    assert "rows that safetensors reads otherwise" in names
    assert "settings read otherwise than the files say" in names
    config: dict[str, Any] = json.loads((bundle / "config.json").read_text())
    return config


def test_a_llama_with_a_tokenizer(tmp_path: Path) -> None:
    """Its scaled frequencies never change: neither does a runtime have to compute anything again."""
    settings = {"rope_parameters": LLAMA3, "tie_word_embeddings": True, "num_hidden_layers": 2}
    folder = add_tokenizer(save_model(tmp_path / "model", "LlamaForCausalLM", torch.bfloat16, **settings))
    config = verified(folder, tmp_path / "bundle", "--target", "tvm-arm", "--os", "host", "--context", "128")
    assert config["architectures"] == ["Phi3ForCausalLM"]
    assert config["rope_scaling"]["short_factor"] == config["rope_scaling"]["long_factor"]
    model = json.loads((tmp_path / "bundle" / "model.json").read_text())
    assert model["long_rope_after"] is None
    text = Bundle.open(tmp_path / "bundle").manifest.text
    assert text is not None
    assert model["vocabulary"] == text.vocabulary
    goes_on_from_its_file(tmp_path / "bundle", tmp_path / "talk")
    guesses_change_no_json(tmp_path / "bundle", tmp_path / "schema.json")
    what_cannot_guess_is_refused(tmp_path / "bundle", tmp_path)
    assert len(bench(tmp_path / "bundle", [1], 8, 4, 1, Ui(), draft=tmp_path / "bundle")) == 1


def guesses_change_no_json(bundle: Path, path: Path) -> None:
    """By a schema whose texts repeat themselves, in a tokenizer where most characters are bytes."""
    pytest.importorskip("llguidance")
    part = {
        "type": "object",
        "properties": {"name": {"enum": ["hello"]}, "age": {"type": "integer", "maximum": 99, "minimum": 0}},
    }
    part |= {"required": ["name", "age"], "additionalProperties": False}
    path.write_text(json.dumps({"type": "array", "items": part, "minItems": 2, "maxItems": 2}))
    said = []
    for draft in ("none", "auto", bundle):
        chat = Chat(bundle, 120, draft=draft)
        said.append(chat.say("Hi", form=chat.form(schema_grammar(path), "schema")).text)
    assert [one["name"] for one in json.loads(said[0])] == ["hello", "hello"]
    assert said[0] == said[1] == said[2]


def what_cannot_guess_is_refused(bundle: Path, tmp_path: Path) -> None:
    """By `chat` and by `bench`, in one line each."""
    for name, target in (("foreign", ["--target", "tvm-arm", "--os", "host"]), ("ort", ["--target", "ort-mobile"])):
        out = str(tmp_path / name)
        assert main(["compile", "random:tiny", "-o", out, "--recipe", "rtn", "--verify", "never", *target]) == 0
    refused = [
        (bundle, tmp_path / "none", "none: not a bundle: it has no manifest.json"),
        (bundle, tmp_path / "foreign", "has another tokenizer than"),
        (bundle, tmp_path / "ort", "holds ort-mobile; compile it with --target tvm-arm"),
        (tmp_path / "ort", bundle, "ort was compiled without --drafts; leave it out"),
    ]
    for one, draft, message in refused:
        with pytest.raises(InputError, match=message):
            Chat(one, 60, draft=draft)
        with pytest.raises(InputError, match=message):
            bench(one, [1], 8, 4, 1, Ui(), draft=draft)


def goes_on_from_its_file(bundle: Path, session: Path) -> None:
    """A conversation whose second message is said by another process's chat; and with guessed tokens, and without."""
    whole = Chat(bundle, 120, draft="none")
    expected = [whole.say(text, limit=8).text for text in ("Hello", "And?")]
    said = [Chat(bundle, 120, session=session).say(text, limit=8).text for text in ("Hello", "And?")]
    assert said == expected
    served = Answers(Talker(bundle, 120))
    pieces = served.pieces(
        served.talker.encode_chat([("user", "Hello")]), Wanted(8, 0.0, 1.0, None, (), None, False, False)
    )
    assert "".join(piece.text for piece in pieces).startswith(expected[0])
    again = Chat(bundle, 120, session=session)
    assert again.messages == whole.messages
    with pytest.raises(InputError, match=r"--system: .* began with another system message"):
        Chat(bundle, 120, system="Be brief.", session=session)
    with pytest.raises(InputError, match=r"--session .*: no such folder: "):
        Chat(bundle, 120, session=session.parent / "none" / "talk")
    link, loop = session.with_name("link"), session.with_name("loop")
    link.symlink_to(session.name)
    before = session.read_bytes()
    assert Chat(bundle, 120, session=link).say("Go", limit=2).text == whole.say("Go", limit=2).text
    assert link.is_symlink()
    assert session.read_bytes() != before
    loop.symlink_to("loop")
    with pytest.raises(InputError, match="loop: a link that leads to itself"):
        Chat(bundle, 120, session=loop)
    with pytest.raises(InputError, match=r"tokens, for which the cache has no room: raise --max-tokens$"):
        Chat(bundle, 30, session=session)
    a_cut_answer_is_not_kept(bundle, session)
    session.write_bytes(session.read_bytes()[:-3])
    with pytest.raises(InputError, match="talk: is cut"):
        Chat(bundle, 120, session=session)


def a_cut_answer_is_not_kept(bundle: Path, session: Path) -> None:
    """The next call would go on after half of it."""
    before = session.read_bytes()
    chat = Chat(bundle, 120, session=session)
    with pytest.raises(AnswerCut):
        chat.say("Go", limit=2, form=chat.form('start: "yes yes yes yes"', "grammar"))
    assert session.read_bytes() == before
    assert chat.say("Go", limit=8, form=chat.form('start: "y"', "grammar")).text == "y"
    assert session.read_bytes() != before


def test_a_model_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path / "model", "HeliumForCausalLM", head_dim=16)
    with pytest.raises(
        InputError, match="unknown architecture 'helium', expected Phi3ForCausalLM, LlamaForCausalLM, Mistral"
    ):
        open_checkpoint(folder)
    monkeypatch.setitem(MODELS, "HeliumForCausalLM", "toy_helium")
    tokens = inputs(open_checkpoint(folder).config, 200)["input_ids"]
    want = transformers_logits(folder, tokens)
    got, source = our_logits(folder, tokens)
    assert source.notices == ()
    assert float((want - got).abs().max()) <= rounding(source.config, float(want.abs().max()), tokens.shape[1])
    verified(folder, tmp_path / "bundle", "--target", "ort-mobile")


@pytest.mark.parametrize("target", ["ort-mobile", "coreml", "tvm-arm"])
def test_a_phi3_small_by_every_target(target: str, tmp_path: Path) -> None:
    """From a folder as it is published: block-sparse and dense layers, biases, layer norms, LongRoPE beyond its switch."""
    pytest.importorskip({"ort-mobile": "onnxruntime", "coreml": "coremltools", "tvm-arm": "tvm"}[target])
    save_small(tmp_path, rope_scaling=SU)
    more = {"tvm-arm": ("--os", "host"), "coreml": ("--context", "128")}.get(target, ())
    config = verified(tmp_path, tmp_path / "bundle", "--target", target, "--block", "32", *more)
    assert config["architectures"] == ["Phi3SmallForCausalLM"]
    operators = Bundle.open(tmp_path / "bundle").manifest.operators
    assert (operators["edge.sparse_attention"], operators["edge.attention"]) == (2, 1)


@pytest.mark.parametrize("target", ["ort-mobile", "tvm-arm"])
def test_experts_by_every_target_that_routes(target: str, tmp_path: Path) -> None:
    """From a folder as transformers saves it: biases, LongRoPE beyond its switch, and experts."""
    pytest.importorskip({"ort-mobile": "onnxruntime", "tvm-arm": "tvm"}[target])
    save_moe(tmp_path, **LONG_CHANGES, num_hidden_layers=2)
    more = ("--os", "host") if target == "tvm-arm" else ()
    config = verified(tmp_path, tmp_path / "bundle", "--target", target, "--block", "32", *more)
    assert config["architectures"] == ["PhimoeForCausalLM"]
    operators = Bundle.open(tmp_path / "bundle").manifest.operators
    assert (operators["edge.route"], operators["edge.experts_nbits"]) == (2, 4)


def test_experts_are_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compile", "random:tiny-moe", "-o", str(tmp_path / "bundle"), "--block", "32"]
    assert main([*arguments, "--target", "coreml"]) == 2
    said = capsys.readouterr().err
    assert "coreml: a Phi-MoE has 6 experts a layer, of which a token reads 2; its files would read all of them" in said
    assert "compile for ort-mobile or tvm-arm" in said
    assert main([*arguments[:-2], "--target", "tvm-arm", "--bits", "4"]) == 2
    assert (
        "what rounding each would cost is not measured; name a --recipe, --block or --policy" in capsys.readouterr().err
    )


def test_a_phi3_small_speaks(tmp_path: Path) -> None:
    """From a folder as it is published, to a bundle whose text is tiktoken's; transformers reads the same in its files."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tiktoken")
    ranks = trained(["The cat sat on the mat. What is 1234? 日本語\n\n" * 3], 300)
    (tmp_path / "model").mkdir()
    end = len(ranks) + 1
    save_small(tmp_path / "model", vocab_size=len(ranks) + SPECIAL, bos_token_id=end, eos_token_id=end)
    verified(add_tiktoken(tmp_path / "model", ranks), tmp_path / "bundle", "--target", "ort-mobile", "--block", "32")
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert manifest.text is not None
    assert manifest.text.genai_differs in (None, ())
    tokenizer, reference = Tokenizer.load(tmp_path / "bundle"), tiktokens(ranks)
    prompt = tokenizer.render_chat([{"role": "user", "content": "Where is the cat? \n "}])
    assert prompt == "<|endoftext|><|user|>\nWhere is the cat? \n <|end|>\n<|assistant|>\n"
    assert tokenizer.tokens(prompt) == reference.encode(prompt, allowed_special="all")
