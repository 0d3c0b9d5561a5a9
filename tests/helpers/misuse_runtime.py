"""The C interface of the TVM runtime used as it should not be. Arguments: libpocketphi.so and a small bundle. Prints `ok`."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import traceback
from ctypes import POINTER, c_char_p, c_float, c_int32, c_size_t, c_void_p
from typing import Any

library = ctypes.CDLL(sys.argv[1])
FOLDER = sys.argv[2].encode()
TOKENS, LOGITS = POINTER(c_int32), POINTER(c_float)
VOCAB, CONTEXT = 96, 48
UNKNOWN = b"no such model: it was closed, or not opened by this process"

library.pocketphi_open.argtypes, library.pocketphi_open.restype = [c_char_p, c_char_p, c_char_p, c_size_t], c_void_p
library.pocketphi_error.argtypes, library.pocketphi_error.restype = [c_void_p], c_char_p
library.pocketphi_decode.argtypes = [c_void_p, c_int32, LOGITS]
for name in ("prefill", "prefill_all"):
    getattr(library, f"pocketphi_{name}").argtypes = [c_void_p, TOKENS, c_int32, LOGITS]
for name in ("vocab", "context", "length", "reset", "close"):
    getattr(library, f"pocketphi_{name}").argtypes = [c_void_p]
prefill, decode, error = library.pocketphi_prefill, library.pocketphi_decode, library.pocketphi_error


def opened(folder: bytes | None = FOLDER, options: bytes | None = None, size: int = 300) -> tuple[Any, bytes]:
    buffer = ctypes.create_string_buffer(b"untouched", 300)
    return library.pocketphi_open(folder, options, buffer, size), buffer.value


def row() -> Any:
    return (c_float * VOCAB)()


def refused_calls(model: Any) -> None:
    one = (c_int32 * 1)(1)
    for count in (0, -1, -(2**31)):
        assert prefill(model, one, count, row()) == -1
        assert error(model) == b"a prefill of no tokens"
    assert prefill(model, None, 1, row()) == -1
    assert error(model) == b"no tokens: the pointer is NULL"
    assert prefill(model, one, 1, None) == -1
    assert error(model) == b"no room for logits: the pointer is NULL"
    assert decode(model, 1, None) == -1
    for count in (CONTEXT + 1, 2**31 - 1):  # which is seen before any of them is read
        assert library.pocketphi_prefill_all(model, one, count, row()) == -1
        assert error(model).startswith(b"the cache holds 48 tokens: 0 are in it,")
    for token in (-1, VOCAB, 2**31 - 1, -(2**31)):
        assert decode(model, token, row()) == -1
        assert error(model) == b"token %d is not within 0 to 95" % token
    assert library.pocketphi_length(model) == 0


def unknown(model: Any) -> None:
    """Every call on a handle that is none."""
    one = (c_int32 * 1)(1)
    assert prefill(model, one, 1, row()) == decode(model, 1, row()) == -1
    assert library.pocketphi_prefill_all(model, one, 1, row()) == -1
    assert error(model) == UNKNOWN
    assert [getattr(library, f"pocketphi_{name}")(model) for name in ("vocab", "context", "length")] == [0, 0, 0]
    library.pocketphi_reset(model)
    library.pocketphi_close(model)


def at_once(model: Any) -> None:
    """Four threads on one handle, and another that closes it under them: each call works whole, or fails."""
    alone = row()
    assert decode(model, 5, alone) == 0
    library.pocketphi_reset(model)
    wrong: list[str] = []

    def use() -> None:
        for _ in range(100):
            logits = row()
            if decode(model, 5, logits) == 0:
                if not any(logits):
                    wrong.append("not written")
            elif not (error(model).startswith((b"the cache holds", b"the model is closed")) or error(model) == UNKNOWN):
                wrong.append(error(model).decode())
            library.pocketphi_reset(model)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    while library.pocketphi_length(model) == 0 and any(thread.is_alive() for thread in threads):
        pass
    library.pocketphi_close(model)
    for thread in threads:
        thread.join()
    assert wrong == [], wrong
    unknown(model)


def after_a_fork(model: Any) -> None:
    """A child has no threads of its parent's: it is told so, opens its own model, and the parent goes on."""
    child = os.fork()
    if not child:
        signal.alarm(60)  # a call that waits for a thread of its parent would never end
        try:
            unknown(model)
            again, _ = opened()
            assert decode(again, 3, row()) == 0
            library.pocketphi_close(again)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert decode(model, 5, row()) == 0
    library.pocketphi_reset(model)


def main() -> None:
    for folder in (None, b""):
        assert opened(folder) == (None, b"no bundle folder: expected its path")
    assert opened(FOLDER, b"[" * 100_000)[1].startswith(b"options: not valid JSON: nested deeper than 32")
    assert opened(FOLDER, b'{"threads": true}') == (None, b"options.threads: expected a whole number")
    assert opened(FOLDER, b'{"threads": 1025}')[0] is None
    assert opened(FOLDER, b'{"max_tokens": 9223372036854775807}')[0] is None
    assert opened(b"/nowhere", size=0) == (None, b"untouched")
    assert opened(b"/nowhere", size=1) == (None, b"")
    assert opened("/ä".encode(), size=4) == (None, "/ä".encode())
    assert opened("/ä".encode(), size=3) == (None, b"/")
    assert library.pocketphi_open(b"/nowhere", None, None, 300) is None
    model, _ = opened(options=b'{"threads": 1024}')
    assert error(model) == b""
    refused_calls(model)
    other, _ = opened()
    first, second = row(), row()
    assert decode(model, 3, first) == decode(other, 3, second) == 0
    assert list(first) == list(second)
    library.pocketphi_close(model)
    unknown(model)
    assert decode(other, 4, second) == 0
    assert library.pocketphi_length(other) == 2
    for handle in (None, 12345, other + 1):
        unknown(handle)
    after_a_fork(other)
    at_once(other)
    opened()  # left open when the program ends
    sys.stdout.write("ok\n")


main()
