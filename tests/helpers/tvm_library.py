"""The C interface of the TVM runtime in this process."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

EACH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int32, ctypes.c_void_p)


class Library:
    """An open model."""

    def __init__(self, path: Path, folder: Path, **options: Any) -> None:
        """path: of the runtime; folder, options: for `pocketphi_open`."""
        self.folder, self.c = folder, ctypes.CDLL(str(path))
        self.c.pocketphi_open.restype = ctypes.c_void_p
        self.c.pocketphi_error.restype = ctypes.c_char_p
        for name in ("generate", "calls", "load"):
            getattr(self.c, f"pocketphi_{name}").restype = ctypes.c_int64
        error = ctypes.create_string_buffer(300)
        opened = self.c.pocketphi_open(str(folder).encode(), json.dumps(options).encode(), error, ctypes.c_size_t(300))
        assert opened, error.value
        self.model = ctypes.c_void_p(opened)

    def generate(self, tokens: list[int], most: int = 1000, **options: Any) -> tuple[int, list[int]]:
        """What it returned, and the tokens that came; the callback ends an answer after `most`."""
        came: list[int] = []

        def each(token: int, data: Any) -> int:
            came.append(token)
            return int(len(came) == most)

        asked = json.dumps(options).encode() if options else None
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        return self.c.pocketphi_generate(self.model, ids, len(tokens), asked, EACH(each), None), came

    def draft(self, folder: Path | str | None) -> int:
        return int(self.c.pocketphi_draft(self.model, None if folder is None else str(folder).encode()))

    def save(self, path: Path) -> None:
        assert self.c.pocketphi_save(self.model, str(path).encode(), None) == 0, self.error

    def load(self, path: Path) -> None:
        assert self.c.pocketphi_load(self.model, str(path).encode(), None, ctypes.c_size_t(0)) == 0, self.error

    @property
    def error(self) -> str:
        return str(self.c.pocketphi_error(self.model).decode())

    @property
    def length(self) -> int:
        return int(self.c.pocketphi_length(self.model))

    @property
    def calls(self) -> int:
        return int(self.c.pocketphi_calls(self.model))

    def reset(self) -> None:
        self.c.pocketphi_reset(self.model)

    def close(self) -> None:
        self.c.pocketphi_close(self.model)
