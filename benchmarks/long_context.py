"""The last tokens of a text as long as a model's context, on each target, against transformers with the same weights.

The model has one layer with the rotary embedding of Phi-3-mini-128k, so that all positions can be read here. Of one layer, keys
and values need no attention: transformers projects those of all tokens, and computes the last tokens alone. See README.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import preflight

preflight.require(__file__)

import torch  # noqa: E402 - packages may be missing
from common import Bar, judge, print_table  # noqa: E402
from transformers import AutoModelForCausalLM, DynamicCache  # noqa: E402
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb  # noqa: E402

from pocketphi.artifacts.bundle import Bundle  # noqa: E402
from pocketphi.compiler.compile import compile_model  # noqa: E402
from pocketphi.compiler.hosts import open_host  # noqa: E402
from pocketphi.compiler.options import compile_options  # noqa: E402
from pocketphi.graph.formats import format_of  # noqa: E402
from pocketphi.graph.lazy_weights import Dequantized, materialize  # noqa: E402
from pocketphi.graph.opening import open_checkpoint  # noqa: E402
from pocketphi.graph.published import PUBLISHED  # noqa: E402
from pocketphi.graph.write_checkpoint import write_checkpoint  # noqa: E402
from pocketphi.targets.base import Host  # noqa: E402

TARGETS = {"ort-mobile": {}, "tvm-arm": {"os": "host"}, "coreml": {}}
LAST, STEP = 3, 1024
"""Tokens that are compared, and that are read at once before them."""


def expected(checkpoint: Path, host: Host, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [LAST, V] of the last tokens, by transformers with a bundle's weights."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="sdpa")
    state = model.state_dict()
    with torch.no_grad():
        for name, weight in host.weights().items():
            if name in state:
                state[name].copy_(materialize(Dequantized(weight) if format_of(weight.parts) else weight)[""])
        count, (layer,), sizes = tokens.shape[1], model.model.layers, model.config
        places = torch.arange(count)[None]
        hidden = layer.input_layernorm(model.model.embed_tokens(tokens))
        dim = sizes.hidden_size // sizes.num_attention_heads
        both = layer.self_attn.qkv_proj(hidden)[..., sizes.hidden_size :].view(1, count, 2, -1, dim).transpose(1, 3)
        keys, values = both[:, :, 0], both[:, :, 1]
        keys = apply_rotary_pos_emb(keys, keys, *model.model.rotary_emb(hidden, places))[1]
        cache, first = DynamicCache(), count - LAST
        cache.update(keys[:, :, :first], values[:, :, :first], 0)
        found: torch.Tensor = model(tokens[:, first:], past_key_values=cache, position_ids=places[:, first:]).logits
    return found[0]


def measured(host: Host, tokens: torch.Tensor) -> tuple[torch.Tensor, str]:
    """Logits [LAST, V] of the last tokens, and what is said of one token more."""
    count = tokens.shape[1]
    runner, first = host.runner(count, exact=True), count - LAST
    for at in range(0, first, STEP):
        runner.step(tokens[:, at : min(at + STEP, first)])
        print(f"\r{at:,} of {count:,} tokens", end="", file=sys.stderr)
    last = [runner.step(tokens[:, at : at + 1])[0, -1] for at in range(first, count)]
    try:
        runner.step(tokens[:, :1])
    except Exception as error:  # each runner has its own
        return torch.stack(last), f"{type(error).__name__}: {error}"
    return torch.stack(last), ""


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--tokens", type=int, default=131072, help="of the text and of the context (default %(default)s)")
    p.add_argument("--targets", nargs="*", choices=TARGETS, default=list(TARGETS))
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    shape = {
        "layers": 1,
        "hidden_size": 192,
        "heads": 2,
        "kv_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 64,
        "pad": None,
        "bos": 1,
        "eos": (2,),
    }
    PUBLISHED["one-layer"] = replace(PUBLISHED["phi-3-mini-128k"], max_position=a.tokens, **shape)
    tokens = torch.randint(64, (1, a.tokens), generator=torch.Generator().manual_seed(0))
    rows, bars = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        write_checkpoint(open_checkpoint("random:one-layer"), folder / "model", "fp32")
        for target in a.targets:
            options = {"recipe": "rtn", "verify": "never", "context": a.tokens, **TARGETS[target]}
            compile_model(compile_options("random:one-layer", folder / target, (target,), **options))
            host = open_host(folder / target, Bundle.open(folder / target).manifest, target)
            came, refusal = measured(host, tokens)
            wanted = expected(folder / "model", host, tokens)
            off = float((came - wanted).abs().max() / wanted.abs().max())
            p_, q = wanted.double().log_softmax(-1), came.double().log_softmax(-1)
            kl = float((p_.exp() * (p_ - q)).sum(-1).max())
            rows.append([target, f"{a.tokens:,}", f"{off:.1e}", f"{kl:.1e}", refusal or "was taken"])
            bars.append(Bar(f"{target}: KL at the end", kl, Host.exact_bound, "nats"))
            bars.append(Bar(f"{target}: tokens that are taken beyond", int(not refusal), 0, ""))
            print(f"\r{' '.join(rows[-1])}", file=sys.stderr)
    print_table("The last tokens", ["target", "tokens", "of the largest logit", "KL", "one more"], rows)
    return judge(bars, a.json, {"rows": rows})


if __name__ == "__main__":
    sys.exit(main())
