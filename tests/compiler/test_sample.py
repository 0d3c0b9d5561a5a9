"""The real sample model, for truth. All tests of it are here: a file's tests share what they compile."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from the_sample import SAMPLE_TOKENS

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.chat import Chat
from pocketphi.compiler.cli import main
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.evaluate import evaluate_model
from pocketphi.compiler.footprint import bundle_footprint
from pocketphi.compiler.hosts import open_host
from pocketphi.compiler.measure import distance
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.ui import Ui
from pocketphi.graph.formats import weight_of
from pocketphi.graph.gguf_file import sample_path
from pocketphi.graph.lazy_weights import materialize
from pocketphi.graph.tokenizer import Tokenizer
from pocketphi.targets.ort_mobile.host import OrtHost

pytestmark = pytest.mark.sample


def test_it_is_verified(sample_bundle: Path) -> None:
    recorded = Bundle.open(sample_bundle).manifest.verification
    assert recorded
    assert recorded.ok
    checks = {check.name: check for check in recorded.checks}
    assert checks["KL decode, exact"].measured <= 1e-6
    assert checks["KL decode, as saved"].measured <= 1e-2
    assert checks["KL onnxruntime-genai, prefill and decode"].measured <= 1e-6
    assert checks["weights equal, bit for bit"].detail == "184 weights"


def test_it_knows_the_capital_of_france(sample_bundle: Path) -> None:
    chat = Chat(sample_bundle)
    reply = chat.say("What is the capital of France?")
    assert "Paris" in reply.text
    assert reply.tokens > 3
    again = chat.say("And what is the capital of Germany?")  # the second turn reuses the cache of the first
    assert "Berlin" in again.text


def test_onnxruntime_genai_says_the_same(sample_bundle: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    prompt = Tokenizer.load(sample_bundle).encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    model = genai.Model(str(sample_bundle))
    tokenizer = genai.Tokenizer(model)
    template = tokenizer.apply_chat_template(
        json.dumps([{"role": "user", "content": "What is the capital of France?"}]), add_generation_prompt=True
    )
    assert list(tokenizer.encode(template)) == prompt
    for room in (40, 3):  # the reply ends by itself; it is cut short
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=len(prompt) + room)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
        text = tokenizer.decode(generator.get_sequence(0)[len(prompt) :])
        ours = Chat(sample_bundle, max_tokens=len(prompt) + room).say("What is the capital of France?").text
        assert text.removesuffix("<|im_end|>").strip() == ours.strip()


def test_quality_and_size(sample_bundle: Path) -> None:
    result = evaluate_model(str(sample_bundle), None, 512, 512, "sample", Ui())
    assert result.kl is not None
    assert result.kl < 0.5  # round to nearest is above 0.5 on prose; a broken quantizer is far beyond
    assert result.perplexity < 1.6 * (result.reference_perplexity or 0)
    size = Bundle.open(sample_bundle).manifest.bytes
    assert size < 90e6


def test_predicted_memory_is_what_is_measured(sample_bundle: Path) -> None:
    """The sample in onnxruntime, in a process of its own: a prompt of 512 tokens, a cache of 520."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import footprint as measure

    for prompt in (64, 512):
        measured = measure.onnxruntime(sample_bundle, prompt)
        predicted = bundle_footprint(Bundle.open(sample_bundle), "ort-mobile", prompt).total(prompt + 8)
        assert predicted == pytest.approx(measured, rel=0.15)


def test_a_second_compile_finds_its_weights_in_the_cache(
    sample_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--calibration-tokens", str(SAMPLE_TOKENS), "--verify", "never"]
    assert main(["compile", "sample", "-o", str(tmp_path / "again"), *asked]) == 0
    assert "0 computed, 121 found in the cache" in capsys.readouterr().err
    assert (tmp_path / "again/model.onnx.data").read_bytes() == (sample_bundle / "model.onnx.data").read_bytes()


def test_the_files_own_blocks_are_kept(tmp_path: Path) -> None:
    """Q4_1 blocks with their float minimum, and the embedding's Q8_0: nothing is rounded. The values are what the gguf package
    makes of the file; that bundles of kept blocks are right in all else is tested on small models."""
    options = compile_options("sample", tmp_path / "keep", recipe="keep", verify="never")
    manifest = compile_model(options).manifest
    assert [entry for report in manifest.passes for entry in report.refused] == []
    kept = {name: materialize(weight) for name, weight in OrtHost(tmp_path / "keep").weights().items()}
    tensors = {tensor.name: tensor for tensor in GGUFReader(sample_path()).tensors}
    for name, there in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.3.self_attn.o_proj.weight", "blk.3.attn_output.weight"),
        ("model.layers.29.mlp.down_proj.weight", "blk.29.ffn_down.weight"),
    ):
        expected = dequantize(tensors[there].data, tensors[there].tensor_type)
        assert np.array_equal(weight_of(kept[name]).dequantize().numpy(), expected), name


def test_core_ml_says_the_same(sample_bundle: Path, tmp_path: Path) -> None:
    """With the same int4 weights, from the cache, in the interpreter: a chat, and logits that differ by float16's rounding, as
    verification of small models allows for them. It is not verified whole: that takes minutes, all in the interpreter."""
    pytest.importorskip("coremltools")
    out = tmp_path / "coreml"
    options: dict[str, Any] = {"context": 512, "calibration_tokens": SAMPLE_TOKENS, "verify": "never"}
    compile_model(compile_options("sample", out, ("coreml",), **options))
    ort, coreml = (Bundle.open(folder).manifest.targets for folder in (sample_bundle, out))
    assert (
        coreml["coreml"].weights["model.layers.0.mlp.down_proj.weight"]
        == (ort["ort-mobile"].weights["model.layers.0.mlp.down_proj.weight"])
    )
    asked = "What is the capital of France?"
    prompt = torch.tensor([Tokenizer.load(out).encode_chat([{"role": "user", "content": asked}])])

    def logits(folder: Path, exact: bool) -> torch.Tensor:
        """Of the last token of the prompt, read with all others, and of one more."""
        runner = open_host(folder, Bundle.open(folder).manifest).runner(prompt.shape[1] + 1, exact=exact)
        return torch.cat([runner.step(prompt)[0, -1:], runner.step(prompt[:, -1:])[0, -1:]])

    expected = logits(sample_bundle, exact=True)
    for exact, bound in ((True, 5e-6), (False, 1e-4)):  # as in verification
        assert distance(expected, logits(out, exact)).kl <= bound
    assert "Paris" in Chat(out, max_tokens=128).say(asked).text
