"""Whether answers that are to be JSON by a schema are: sampled ones, parsed and validated by another library. See README.md."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import preflight

preflight.require(__file__)

import jsonschema  # noqa: E402 - packages may be missing
import torch  # noqa: E402
from common import Bar, judge  # noqa: E402

from pocketphi.compiler.chat import Chat  # noqa: E402
from pocketphi.compiler.guided import AnswerCut, schema_grammar  # noqa: E402

TEXT, COUNT = {"type": "string", "maxLength": 12}, {"type": "integer", "minimum": 0, "maximum": 120}


def object_of(**properties: Any) -> dict[str, Any]:
    """A schema of an object that has these and nothing else."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


CASES: list[tuple[str, dict[str, Any]]] = [
    ("Invent a person.", object_of(name=TEXT, age=COUNT)),
    ("Which animal is loud?", object_of(animal={"enum": ["cat", "dog", "whale", "parrot"]}, loud={"type": "boolean"})),
    ("Three numbers, please.", {"type": "array", "items": COUNT, "minItems": 3, "maxItems": 3}),
    ("Where is the shop?", object_of(at=object_of(x=COUNT, y=COUNT), note={"anyOf": [TEXT, {"type": "null"}]})),
    ("What is it called?", {"type": "string", "pattern": "^[A-Z][a-z]{2,8}$"}),
]
"""A message and the schema of its answer: texts, numbers, choices, lists, objects in objects, a pattern."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--answers", type=int, default=1000)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--limit", type=int, default=96, help="tokens of an answer (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target")
    a = parser.parse_args()
    torch.manual_seed(a.seed)
    torch.set_num_threads(1)
    chat = Chat(a.bundle, 256, "Answer in JSON.", 1, a.target)
    forms = []
    for number, (_, schema) in enumerate(CASES):
        path = Path("build") / f"schema-{number}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(schema))
        forms.append(chat.form(schema_grammar(path), str(path)))
    found: Counter[str] = Counter()
    tokens, different, begin = 0, set(), time.process_time()
    for number in range(a.answers):
        message, schema = CASES[number % len(CASES)]
        chat.restart()
        try:
            reply = chat.say(message, a.temperature, limit=a.limit, form=forms[number % len(CASES)])
        except AnswerCut as error:
            found["cut"] += 1
            print(f"cut: {error.text!r}", flush=True)
            continue
        tokens += reply.tokens
        different.add(reply.text)
        try:
            jsonschema.validate(json.loads(reply.text), schema)
            found["right"] += 1
        except (ValueError, jsonschema.ValidationError) as error:
            found["wrong"] += 1
            print(f"wrong: {reply.text!r}: {str(error)[:200]}", flush=True)
        if number % 100 == 99:
            print(f"{number + 1}: {dict(found)}", flush=True)
    print(
        f"{tokens} tokens, {len(different)} different answers, {time.process_time() - begin:.0f} s of CPU beside the runtime's"
    )
    bars = [Bar("answers that parse and validate", found["right"], a.answers, "", at_least=True)]
    return judge(bars)


if __name__ == "__main__":
    sys.exit(main())
