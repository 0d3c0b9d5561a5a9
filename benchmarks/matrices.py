"""One random int4 matrix, block 32, in the formats of all who multiply with it: the same numbers everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.isa import Isa

BLOCK = 32
Array = npt.NDArray[Any]


class Matrix:
    """A matrix [rows, columns]: q uint8 [rows, columns/2] with the first value in the low nibble, scale float16
    [rows, columns/32]; a weight is (q - 8) · scale. name: as papers write it, columns → rows."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.name = f"{columns}→{rows}"
        random = np.random.default_rng(rows * columns)
        self.q = random.integers(0, 256, (rows, columns // 2), np.uint8)
        self.scale = random.uniform(0.001, 0.01, (rows, columns // BLOCK)).astype(np.float16)

    @property
    def weights(self) -> int:
        return self.rows * self.columns

    @property
    def bytes(self) -> int:
        """Of int4 values and float16 scales: what a product has to read."""
        return self.q.nbytes + self.scale.nbytes

    def input(self, rows: int) -> Array:
        """Activations float32 [rows, columns]."""
        return np.random.default_rng(rows).standard_normal((rows, self.columns), np.float32)

    def error(self, x: Array, y: Array) -> float:
        """How far y float32 [M, rows] is from x · Wᵀ, relative, over the first 64 rows of the matrix."""
        q = np.stack([self.q[:64] & 15, self.q[:64] >> 4], axis=-1).reshape(64, self.columns)
        w = (q.astype(np.float32) - 8) * np.repeat(self.scale[:64].astype(np.float32), BLOCK, axis=1)
        want = x @ w.T
        return float(np.linalg.norm(y[:, :64] - want) / np.linalg.norm(want))

    def interleaved(self, isa: Isa) -> tuple[Interleaved, dict[str, Array]]:
        """As our kernels read it: parts by name, flat."""
        matrix = Interleaved(self.rows, self.columns, BLOCK, isa.lanes, isa.pairs, isa.signed)
        stored = matrix.store({"q": torch.from_numpy(self.q), "scale": torch.from_numpy(self.scale)})
        return matrix, {part: tensor.numpy().reshape(-1) for part, tensor in stored.items()}

    def write_q4_0(self, path: Path) -> None:
        """llama.cpp's blocks: a float16 scale, then 16 bytes with values 0 … 15 in their low and 16 … 31 in their high
        nibbles (ggml-common.h, block_q4_0)."""
        q = np.stack([self.q & 15, self.q >> 4], axis=-1).reshape(self.rows, -1, 2, BLOCK // 2)
        blocks = np.empty((self.rows, self.columns // BLOCK, 18), np.uint8)
        blocks[..., :2] = self.scale.view(np.uint8).reshape(*self.scale.shape, 2)
        blocks[..., 2:] = q[:, :, 0] | q[:, :, 1] << 4
        blocks.tofile(path)

    def onnx_model(self, copies: int) -> bytes:
        """A model x → y0, y1, …: `copies` times the matrix by ONNX Runtime's MatMulNBits, accuracy level 4. The copies are
        turned by a row each, so that nothing takes them for one."""
        from onnx import TensorProto, helper, numpy_helper

        def tensor(name: str, width: int) -> Any:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", width])

        nodes, held = [], []
        for i in range(copies):
            q = np.roll(self.q, i, axis=0).reshape(self.rows, -1, BLOCK // 2)
            scale = np.roll(self.scale, i, axis=0).astype(np.float32).reshape(-1)
            held += [numpy_helper.from_array(q, f"q{i}"), numpy_helper.from_array(scale, f"s{i}")]
            node = helper.make_node("MatMulNBits", ["x", f"q{i}", f"s{i}"], [f"y{i}"], domain="com.microsoft")
            sizes = {"K": self.columns, "N": self.rows, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
            node.attribute.extend(helper.make_attribute(key, value) for key, value in sizes.items())
            nodes.append(node)
        outputs = [tensor(f"y{i}", self.rows) for i in range(copies)]
        graph = helper.make_graph(nodes, "products", [tensor("x", self.columns)], outputs, held)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        return made
