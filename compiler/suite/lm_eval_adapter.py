"""lm-eval over a saved bundle: the class that EleutherAI's evaluation harness calls, and its command line around it.

This module imports lm_eval, which is an extra; nothing else of pocketphi does.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval._cli import HarnessCLI
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import setup_logging
from tqdm import tqdm

from pocketphi.artifacts.manifest import MANIFEST
from pocketphi.compiler.evaluate import open_model
from pocketphi.compiler.suite.side import Asked, Side, likelihood
from pocketphi.compiler.talker import DEFAULT_TOKENS
from pocketphi.graph.errors import InputError, PocketphiError
from pocketphi.graph.ranges import check_number
from pocketphi.graph.tokenizer import Tokenizer

NAME = "pocketphi"


@register_model(NAME)
class BundleLM(LM):
    """A bundle of any target, or a model in float, as lm-eval asks for it: one text after the other, greedy answers."""

    def __init__(
        self,
        bundle: str,
        target: str | None = None,
        adapter: str | None = None,
        max_tokens: int | None = None,
        **_: Any,
    ) -> None:
        """max_tokens: size of the cache, DEFAULT_TOKENS or what is held if None; `_`: what lm-eval passes to all models, such
        as a batch size. Raises InputError as `open_model` does."""
        super().__init__()
        opened = open_model(bundle, target, (), adapter)
        if not opened.files:
            raise InputError(f"{bundle}: has no tokenizer, so that a text means nothing to it")
        limit = min(DEFAULT_TOKENS, opened.context) if max_tokens is None else int(max_tokens)
        check_number("--max-tokens", limit, 2, opened.context, f"{bundle} holds no more")
        self._path = Path(bundle)
        self.side = Side(opened.runner, opened.config, Tokenizer.from_files(opened.files, bundle), limit)

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval keeps requests under."""
        manifest = self._path / MANIFEST
        return f"{NAME}:{manifest.resolve() if manifest.is_file() else self._path}"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation, by the bundle's own template."""
        return self.side.tokenizer.render_chat(chat_history, answer=add_generation_prompt)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each (context, text): the natural log-likelihood of the text, and whether it is the greedy answer."""
        found: list[tuple[float, bool]] = []
        bar = tqdm(total=len(requests), desc="likelihoods", disable=disable_tqdm)
        # choices of a question come one after the other, and share a run where each is one token
        for context, group in itertools.groupby((request.args for request in requests), lambda pair: str(pair[0])):
            pairs = list(group)
            for pair, one in zip(pairs, self.side.likelihoods(context, [str(text) for _, text in pairs])):
                found.append((one.logprob, one.greedy))
                self.cache_hook.add_partial("loglikelihood", pair, found[-1])
                bar.update()
        bar.close()
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, in windows of the cache's size."""
        found = []
        for (text,) in tqdm([request.args for request in requests], desc="texts", disable=disable_tqdm):
            parts = self.side.rolling(text, self.side.context)
            found.append(sum(likelihood(logits, tokens).logprob for tokens, logits in parts))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The greedy answer to each (context, settings), up to the first of its `until` texts. Raises InputError where it is to
        be sampled."""
        found = []
        for context, settings in tqdm([request.args for request in requests], desc="answers", disable=disable_tqdm):
            asked = normalize_gen_kwargs(settings, 256)
            if asked.get("do_sample") or asked.get("temperature"):
                raise InputError(
                    "lm-eval: a task that samples; only greedy answers are the same each time: leave it out"
                )
            found.append(self._answer(context, asked["until"], asked["max_gen_toks"]))
            self.cache_hook.add_partial("generate_until", (context, settings), found[-1])
        return found

    def _answer(self, context: str, until: Sequence[str], limit: int) -> str:
        decode = self.side.tokenizer.decode
        stops = [stop for stop in until if stop]

        def done(made: Sequence[int]) -> bool:
            text = decode(made)
            return any(stop in text for stop in stops)

        prompt = self.side.encode(context)
        room = max(1, self.side.context - len(prompt))  # an answer ends where the cache is full
        (made,) = self.side.answers([Asked(prompt, min(limit, room), done)])
        text = decode(made.tokens)
        return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def run_tasks(
    bundle: str, arguments: Sequence[str], target: str | None, adapter: str | None, max_tokens: int | None
) -> None:
    """lm-eval's own command line on a bundle. arguments: what it is told; the others are as for `BundleLM`.

    Raises InputError with what lm-eval says where it fails, and SystemExit where it does not know an argument.
    """
    about = {"bundle": bundle, "target": target, "adapter": adapter, "max_tokens": max_tokens}
    told = json.dumps({name: value for name, value in about.items() if value is not None})
    kept, sys.argv = sys.argv, ["lm-eval", "run", "--model", NAME, "--model_args", told, *arguments]
    try:
        setup_logging()
        harness = HarnessCLI()
        harness.execute(harness.parse_args())
    except PocketphiError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise InputError(f"lm-eval ended with {type(error).__name__}: {said}") from None
    finally:
        sys.argv = kept
