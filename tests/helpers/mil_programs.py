"""Small ML programs built with coremltools, for the tests of the reading side."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

logging.getLogger("coremltools").setLevel(logging.ERROR)
logging.raiseExceptions = False  # coremltools' progress bar logs to streams that pytest has closed

import coremltools as ct  # noqa: E402
from coremltools.converters.mil.mil import Builder as mb  # noqa: E402, N813
from coremltools.converters.mil.mil import types  # noqa: E402


def save(program: Any, path: Path, **options: Any) -> Path:
    """Convert a builder's program, or a traced module, for iOS 18 and save it."""
    options = {"minimum_deployment_target": ct.target.iOS18, "skip_model_load": True} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ct.convert(program, **options).save(str(path))
    return path


def program(build: Callable[..., Any], **inputs: Any) -> Any:
    """A program of one function. inputs: name → (dtype, shape) or ("state", shape), the latter of fp16."""
    specs = [
        mb.StateTensorSpec(shape, types.fp16)
        if kind == "state"
        else mb.TensorSpec(shape, types.string_to_builtin(kind))
        for kind, shape in inputs.values()
    ]
    names = list(inputs)
    namespace: dict[str, Any] = {"build": build}
    exec(
        f"def named({', '.join(names)}): return build({', '.join(names)})", namespace
    )  # the builder reads the signature
    return mb.program(input_specs=specs, opset_version=ct.target.iOS18)(namespace["named"])


def int4(rows: int, columns: int, block: int, seed: int = 0) -> tuple[Any, Any]:
    """Random values int8 [N, K] in -8 … 7 that coremltools stores in four bits, and scales float16 [N, K/block]."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-8, 8, (rows, columns)).astype(types.np_int4_dtype)
    return values, rng.uniform(0.01, 0.1, (rows, columns // block)).astype(np.float16)


def cached_attention(layers: int, heads: int, context: int, dim: int, length: int) -> Any:
    """A decoder's skeleton: int4 embedding, per layer an int4 projection, K/V caches in states, attention; an int4 head.

    Inputs: ids int32 [1, length], position int32 [1], last int32 [1]; states keys, values
    fp16 [layers, 1, heads, context, dim].
    Output: logits fp16 [1, 1, vocabulary of 48] of the row `last`.
    """
    width = heads * dim

    def build(ids: Any, position: Any, last: Any, keys: Any, values: Any) -> Any:
        def weight(rows: int, seed: int) -> Any:
            data, scale = int4(rows, width, 16, seed)
            return mb.constexpr_blockwise_shift_scale(data=data, scale=scale, name=f"weight_{seed}")

        # a second read_state of the same state would be merged with the first by coremltools' default passes (remove
        # redundant ops), though the state was written between them: go on from what the write returned
        current = {keys: mb.read_state(input=keys), values: mb.read_state(input=values)}

        def store(state: Any, layer: int, update: Any) -> Any:
            end = mb.add(x=position, y=np.int32([length]))
            zero, one = np.int32([0]), np.int32([1])
            begins = mb.concat(values=[np.int32([layer]), zero, zero, position, zero], axis=0)
            ends = mb.concat(values=[np.int32([layer + 1]), one, np.int32([heads]), end, np.int32([dim])], axis=0)
            new = mb.slice_update(x=current[state], update=update, begin=begins, end=ends)
            current[state] = mb.coreml_update_state(state=state, value=new)
            return mb.slice_by_index(
                x=current[state],
                begin=[layer, 0, 0, 0, 0],
                end=[layer + 1, 1, heads, context, dim],
                squeeze_mask=[True, False, False, False, False],
            )

        def split_heads(x: Any) -> Any:
            return mb.transpose(x=mb.reshape(x=x, shape=[1, length, heads, dim]), perm=[0, 2, 1, 3])

        columns = mb.reshape(x=np.arange(context, dtype=np.int32), shape=[1, context])
        places = mb.reshape(x=mb.add(x=np.arange(length, dtype=np.int32), y=position), shape=[length, 1])
        mask = mb.expand_dims(x=mb.less_equal(x=columns, y=places), axes=[0, 1])
        x = mb.gather(x=weight(48, 1), indices=ids, axis=0, validate_indices=False)
        for layer in range(layers):
            q, k, v = mb.split(x=mb.linear(x=x, weight=weight(3 * width, 10 + layer)), num_splits=3, axis=-1)
            update_k, update_v = (mb.expand_dims(x=split_heads(y), axes=[0]) for y in (k, v))
            all_k, all_v = store(keys, layer, update_k), store(values, layer, update_v)
            y = mb.scaled_dot_product_attention(query=split_heads(q), key=all_k, value=all_v, attn_mask=mask)
            y = mb.reshape(x=mb.transpose(x=y, perm=[0, 2, 1, 3]), shape=[1, length, width])
            x = mb.add(x=x, y=y)
        row = mb.gather(x=x, indices=last, axis=1, validate_indices=False)
        return mb.linear(x=row, weight=weight(48, 2), name="logits")

    cache = ("state", (layers, 1, heads, context, dim))
    shapes: Mapping[str, Any] = {"ids": ("int32", (1, length)), "position": ("int32", (1,)), "last": ("int32", (1,))}
    return program(build, **shapes, keys=cache, values=cache)


def merge(path: Path, **functions: Path) -> Path:
    """Packages as the functions of one."""
    description = ct.utils.MultiFunctionDescriptor()
    for name, source in functions.items():
        description.add_function(str(source), "main", name)
    description.default_function_name = next(iter(functions))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ct.utils.save_multifunction(description, str(path))
    return path
