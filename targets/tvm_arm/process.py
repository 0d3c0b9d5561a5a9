"""A bundle in a process of its own: natively, or an aarch64 one under qemu. runtime/runner.cc describes the protocol."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketphi.graph.errors import CheckFailed, CompilerBug, InputError

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Call:
    """What the runner measured. milliseconds: of the call in the runtime; peak_bytes: the process's largest resident memory."""

    milliseconds: float
    peak_bytes: int


class RuntimeProcess:
    """The C runtime on one bundle, with its cache.

    vocab: logits a token; context: tokens that the cache holds; length: tokens in it; calls: of the library, each of which
    reads all weights once; opened, last: the measured calls.
    """

    def __init__(self, command: Sequence[str], folder: Path, **options: Any) -> None:
        """command: the runner, behind qemu and its arguments where it is built for another CPU. options: those of
        `pocketphi_open`: threads, mode, max_tokens, check, draft, prefix. Raises InputError with the runtime's own line if it
        refuses."""
        self._adapter: str | None = None
        self._draft: Path | None = None
        self._note = ""
        self._arguments = [*command, str(folder), json.dumps(options)]
        self._start()

    def _start(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 – a pipe that nobody reads would block the process
        try:
            self._process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                process_group=0,  # Ctrl-C is for those who hear it: a conversation goes on after it
            )
        except OSError as error:
            raise InputError(f"{self._arguments[0]}: cannot be run: {error.strerror}") from None
        self.length = self.calls = 0
        self._asked = False
        ready = self._line(opening=True)
        self.vocab, self.context = int(ready[1]), int(ready[2])
        self.opened = self.last = _measured(ready[3:])

    def prefill(self, tokens: Sequence[int]) -> Logits:
        """Append tokens; float32 [vocab], logits of the last."""
        return self._ask("prefill", [int(t) for t in tokens])

    def every_position(self, tokens: Sequence[int]) -> Logits:
        """Append tokens; float32 [tokens, vocab]."""
        return self._ask("prefill_all", [int(t) for t in tokens]).reshape(-1, self.vocab)

    def decode(self, token: int) -> Logits:
        """Append one token; float32 [vocab]."""
        return self._ask("decode", [int(token)])

    def reset(self) -> None:
        """Forget all tokens. Where an answer was not read to its end, as after Ctrl-C, the process is started anew: that answer
        would be taken for the next one."""
        if self._asked:
            self._process.kill()
            self.close()
            self._start()
            if self._draft is not None:
                self.draft(self._draft)
            if self._adapter is not None:
                self._ask("adapter", [self._adapter])
        self._ask("reset", [])

    def adapter(self, name: str | None) -> None:
        """Switch one of the bundle's adapters on, None for none, and forget all tokens."""
        if self._asked:
            self.reset()
        self._ask("adapter", [] if name is None else [name])
        self._adapter = name

    def draft(self, folder: Path | None) -> None:
        """Let the bundle in a folder guess what comes next, None for none. Raises InputError for one that cannot; then
        nothing changed."""
        self._ask("draft", [] if folder is None else [str(folder.absolute())])
        self._draft = folder

    def save(self, path: Path, note: str) -> None:
        """Write the tokens, what the cache has of them, and a text to a file. Raises InputError where that is not possible."""
        self._ask("save", [note.encode().hex() or "-", str(path.absolute())])

    def load(self, path: Path) -> str:
        """Go on where `save` was called; the text. Raises InputError for a file that is none of this bundle, or not whole."""
        self._ask("load", [str(path.absolute())])
        return self._note

    def close(self) -> None:
        """End the process. Safe to call twice."""
        if self._process.poll() is None:
            assert self._process.stdin
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream:
                with contextlib.suppress(OSError):  # a request that a process left unread when it ended
                    stream.close()

    def __enter__(self) -> RuntimeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _ask(self, verb: str, words: Sequence[int | str]) -> Logits:
        assert self._process.stdin
        assert self._process.stdout
        if self._asked:
            raise CompilerBug("the TVM runtime still owes an answer; it has to be reset")
        self._asked = True
        with contextlib.suppress(OSError):  # it ended: what it said, or why, is read below
            self._process.stdin.write(f"{verb} {' '.join(map(str, words))}\n".encode())
            self._process.stdin.flush()
        answer = self._line()
        size = 4 * int(answer[1])
        data = self._process.stdout.read(size)
        if len(data) != size:
            raise self._ended(opening=False)
        self._asked = False
        self.last, self.length, self.calls = _measured(answer[2:]), int(answer[4]), int(answer[5])
        return np.frombuffer(data, np.float32)

    def _line(self, opening: bool = False) -> list[str]:
        """The words of the next answer. Raises InputError for a refusal, CheckFailed if the process is gone."""
        assert self._process.stdout
        line = self._process.stdout.readline().decode()
        if line.startswith("note "):
            self._note = bytes.fromhex(line.removeprefix("note ")).decode()
            line = self._process.stdout.readline().decode()
        kind, _, rest = line.strip().partition(" ")
        if kind == "error":
            self._asked = False
            raise InputError(rest)
        if kind != ("ready" if opening else "ok"):
            raise self._ended(opening)
        return [kind, *rest.split()]

    def _ended(self, opening: bool) -> InputError | CheckFailed:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
        self.close()
        if opening and code == 2 and said:
            return InputError(said)
        reason = f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"
        return CheckFailed(f"the TVM runtime ended ({reason}){': ' + said if said else ''}")


def _measured(words: Sequence[str]) -> Call:
    return Call(float(words[0]), 1024 * int(words[1]))
