"""What the stand-ins of Core ML and swift-transformers ask: a saved package and its tokenizer, over two named pipes."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from pocketphi.targets.coreml.interpreter import Interpreter, States
from pocketphi.targets.coreml.mlpackage import MLPackage


class Peer:
    """Answers one process. calls: how often each function ran, and `state` was made; failure: what nobody asked for."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self._package = MLPackage.open(bundle / "model.mlpackage")
        self._interpreter = Interpreter(self._package, "fp16")
        self._tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
        self._states: list[States] = []
        self.calls: Counter[str] = Counter()
        self.failure: Exception | None = None
        folder.mkdir()
        self._pipes = [folder / "questions", folder / "answers"]
        for pipe in self._pipes:
            os.mkfifo(pipe)
        threading.Thread(target=self._serve, daemon=True).start()  # it waits for ever where nobody asks

    def _serve(self) -> None:
        with self._pipes[0].open() as questions, self._pipes[1].open("w") as answers:
            for line in questions:
                try:
                    answer = self._answer(json.loads(line))
                except Exception as error:
                    self.failure = error
                    answer = {"error": str(error)}
                answers.write(json.dumps(answer) + "\n")
                answers.flush()

    def _answer(self, question: dict[str, Any]) -> dict[str, Any]:
        if "encode" in question:
            return {"tokens": self._tokenizer.encode(question["encode"], add_special_tokens=False).ids}
        if "decode" in question:
            return {"text": self._tokenizer.decode(question["decode"], skip_special_tokens=True)}
        if "inputs" in question:
            return {"logits": base64.b64encode(self._run(question).numpy().tobytes()).decode()}
        if "function" in question:
            return {"names": list(self._package.function(question["function"]).inputs)}
        self.calls["state"] += 1
        self._states.append(self._interpreter.make_states())
        return {"state": len(self._states) - 1}

    def _run(self, question: dict[str, Any]) -> torch.Tensor:
        """Logits of the last token: float32 [V]."""
        self.calls[question["function"]] += 1
        inputs = {
            name: torch.tensor(given["values"], dtype=torch.int32).reshape(given["shape"])
            for name, given in question["inputs"].items()
        }
        state = self._states[question["state"]]
        logits: torch.Tensor = self._interpreter.run(question["function"], inputs, state)["logits"]
        return logits.float().flatten()
