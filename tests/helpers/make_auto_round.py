"""Makes the folders of tests/data/packed that auto-round exports: tiny checkpoints, and digests of what it rounded weights to.

    pip install auto-round==0.16.1 (with a torch for CPUs)
    python tests/helpers/make_auto_round.py tests/data/packed

The digests are of the weights as auto-round holds them before it packs them, in float32.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from auto_round import AutoRound  # type: ignore[import-not-found]
from make_packed import SIZES
from tokenizers import Tokenizer, models

FILES = ("config.json", "model.safetensors")
MIXED = {
    "model.layers.0.mlp.down_proj": {"bits": 8, "group_size": 64},
    "model.layers.1.self_attn.o_proj": {"bits": 16},
}


def begin(seed: int, kind: str, scheme: dict[str, Any]) -> Any:
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**SIZES)).eval()
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w0")
    return AutoRound(
        model, tokenizer, iters=0, disable_opt_rtn=True, amp=False, device_map="cpu", **{"bits": 4, **scheme}
    )


def make(out: Path, kind: str, form: str, **scheme: Any) -> None:
    """The same is done twice, as what is packed is no weight any more."""
    rounded, _ = begin(len(out.name), kind, scheme).quantize()
    in_float = {name for name, said in scheme.get("layer_config", {}).items() if said["bits"] == 16}
    digests = {
        f"{name}.weight": hashlib.sha256(
            (module.weight.detach().float().contiguous() + 0.0).numpy().tobytes()
        ).hexdigest()
        for name, module in rounded.named_modules()
        if name.endswith("_proj") and name not in in_float
    }
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        begin(len(out.name), kind, scheme).quantize_and_save(name, format=form)
        saved = next(Path(name).rglob("config.json")).parent
        for file in FILES:
            shutil.copyfile(saved / file, out / file)
    (out / "digests.json").write_text(json.dumps(dict(sorted(digests.items())), indent=1) + "\n")


def main(out: Path) -> None:
    make(out / "auto-round-gptq-phi3", "Phi3", "auto_gptq", group_size=32, sym=True)
    make(out / "auto-round-mixed-llama", "Llama", "auto_round", group_size=32, sym=True, layer_config=MIXED)
    make(out / "auto-round-2-asym-llama", "Llama", "auto_round:gptqmodel", bits=2, group_size=32, sym=False)
    make(out / "auto-round-asym-phi3", "Phi3", "auto_round", group_size=32, sym=False)
    make(out / "auto-round-awq-llama", "Llama", "auto_awq", group_size=32, sym=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
