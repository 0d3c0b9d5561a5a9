"""What a GGUF file says of itself: its metadata, where its tensors lie, and the shape of its model."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from pocketphi.graph.config import LongRope, ModelConfig
from pocketphi.graph.errors import InputError

ARCHITECTURES = ("llama", "phi3")
ROPE_FACTORS = ("rope_factors_short.weight", "rope_factors_long.weight")
_ENDS = {"<|end|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>"}
# what the library's parser raises on bad bytes
_DAMAGE = (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError, RecursionError)


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies, row after row. shape: rows first, as everywhere but in GGUF itself."""

    name: str
    offset: int
    shape: tuple[int, ...]
    type: GGMLQuantizationType

    @property
    def row_bytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return int(self.shape[-1] // block * size)


@dataclass(frozen=True)
class GgufHeader:
    """A parsed header; nothing of the file stays mapped.

    fields:       metadata as plain Python values
    tensors:      name → where it lies
    rope_factors: values of the two ROPE_FACTORS tensors, as far as the file has them
    """

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    rope_factors: Mapping[str, tuple[float, ...]]

    @staticmethod
    def read(path: Path) -> GgufHeader:
        """Raises InputError for a file that is not GGUF, damaged, cut short, or of a tensor type nobody can read."""
        try:
            with path.open("rb") as file:
                magic = file.read(4)
            if magic != b"GGUF":
                raise InputError(f"{path}: not a GGUF file: it starts with {magic!r}, expected b'GGUF'")
            reader = _Reader(path)
            fields = {key: field.contents() for key, field in reader.fields.items()}
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        except _DAMAGE as error:
            raise InputError(f"{path}: damaged GGUF file ({error}); download it again") from None
        shapes = {t.name: tuple(t.shape.tolist()[::-1]) for t in reader.tensors}
        tensors = {t.name: StoredTensor(t.name, t.data_offset, shapes[t.name], t.tensor_type) for t in reader.tensors}
        factors = {
            t.name: tuple(map(_decimal, t.data.ravel().tolist())) for t in reader.tensors if t.name in ROPE_FACTORS
        }
        return GgufHeader(path, fields, tensors, factors)

    @property
    def architecture(self) -> str:
        """Raises InputError for one that cannot be read as Phi-3."""
        arch = self.fields.get("general.architecture")
        if arch not in ARCHITECTURES:
            raise InputError(f"{self.path}: unknown architecture {arch!r}, expected {' or '.join(ARCHITECTURES)}")
        return str(arch)

    def config(self) -> ModelConfig:
        """The model's shape. Raises InputError for a missing key and for what Phi-3 cannot express."""
        heads, hidden = self._need("attention.head_count"), self._need("embedding_length")
        if heads < 1:
            raise InputError(
                f"{self.path}: {self.architecture}.attention.head_count = {heads}, expected a positive number"
            )
        if "token_embd.weight" not in self.tensors:
            raise InputError(f"{self.path}: tensor 'token_embd.weight' is missing; convert the model again")
        head_dim = self._need("attention.key_length", hidden // heads)
        rotary = self._need("rope.dimension_count", head_dim)
        self._check_llama(head_dim, rotary)
        return ModelConfig(
            vocab_size=self.tensors["token_embd.weight"].shape[0],
            hidden_size=hidden,
            intermediate_size=self._need("feed_forward_length"),
            layers=self._layers(),
            heads=heads,
            kv_heads=self._need("attention.head_count_kv", heads),
            head_dim=head_dim,
            max_position=self._need("context_length"),
            rms_norm_eps=_decimal(self._number("attention.layer_norm_rms_epsilon", 1e-5)),
            rope_theta=_decimal(self._number("rope.freq_base", 10000.0)),
            rotary_dim=rotary,
            long_rope=self._long_rope(rotary),
            sliding_window=self._need("attention.sliding_window", 0) or None,
            tied_embeddings="output.weight" not in self.tensors,
            bos=self.fields.get("tokenizer.ggml.bos_token_id"),
            eos=self._eos(),
            pad=self.fields.get("tokenizer.ggml.padding_token_id"),
        )

    def _own(self, key: str, default: Any = None) -> Any:
        return self.fields.get(f"{self.architecture}.{key}", default)

    def _need(self, key: str, default: int | None = None) -> int:
        value = self._own(key, default)
        if not isinstance(value, int):
            raise InputError(f"{self.path}: {self.architecture}.{key} is {value!r}, expected a whole number")
        return value

    def _layers(self) -> int:
        layers = self._need("block_count")
        if layers > len(self.tensors):
            raise InputError(f"{self.path}: {layers} layers, but only {len(self.tensors)} tensors; download it again")
        return layers

    def _number(self, key: str, default: float) -> float:
        value = self._own(key, default)
        if not isinstance(value, int | float):
            raise InputError(f"{self.path}: {self.architecture}.{key} is {value!r}, expected a number")
        return value

    def _check_llama(self, head_dim: int, rotary: int) -> None:
        """A Llama is a Phi-3 only with plain rotary embedding over whole heads."""
        kind = self._own("rope.scaling.type", "none")
        if kind not in ("none", "longrope"):
            raise InputError(f"{self.path}: unknown rope type {kind!r}, expected none or longrope")
        if self.architecture != "llama":
            return
        if kind == "longrope" or "rope_freqs.weight" in self.tensors or self.rope_factors:
            raise InputError(
                f"{self.path}: unknown rope type: this llama scales its frequencies; expected plain rotary"
            )
        if rotary != head_dim:
            raise InputError(
                f"{self.path}: llama.rope.dimension_count is {rotary}, expected the whole head, {head_dim}"
            )

    def _long_rope(self, rotary_dim: int) -> LongRope | None:
        if not self.rope_factors:
            return None
        for name in ROPE_FACTORS:
            count = len(self.rope_factors.get(name, ()))
            if count != rotary_dim // 2:
                raise InputError(f"{self.path}: {name!r} has {count} values, expected {rotary_dim // 2}")
        original = self._need("rope.scaling.original_context_length")
        if original < 2:
            raise InputError(f"{self.path}: rope.scaling.original_context_length is {original}, expected 2 or more")
        self._check_attention_factor(self._need("context_length") / original, original)
        short, long = (self.rope_factors[name] for name in ROPE_FACTORS)
        return LongRope(short, long, original)

    def _check_attention_factor(self, scale: float, original: int) -> None:
        """LongRoPE (arXiv:2402.13753) scales attention by √(1 + ln scale / ln original); a file may say otherwise."""
        expected = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        stored = self._number("rope.scaling.attn_factor", expected)
        if not math.isclose(stored, expected, rel_tol=1e-4):
            raise InputError(f"{self.path}: rope.scaling.attn_factor is {stored:.4f}, Phi-3 uses {expected:.4f} here")

    def _eos(self) -> tuple[int, ...]:
        """Every token that ends a turn: the declared ones first, then those known by their text."""
        declared = [self.fields.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot")]
        known = [i for i, token in enumerate(self.fields.get("tokenizer.ggml.tokens", ())) if token in _ENDS]
        return tuple(dict.fromkeys(i for i in declared + known if i is not None))


class _Reader(gguf.GGUFReader):
    """The library's parser with its faults named, over a plain array: slicing a memory map is several times slower."""

    data: npt.NDArray[Any]

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(path)

    def _get(self, offset: int, dtype: npt.DTypeLike, count: int = 1, override_order: str | None = None) -> Any:
        if self.byte_order != "I":
            raise InputError(f"{self._path}: a big-endian GGUF file, expected little-endian; convert the model again")
        if isinstance(self.data, np.memmap):
            self.data = self.data.view(np.ndarray)
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > self.data.size:
            raise InputError(
                f"{self._path}: truncated: {self.data.size} bytes, expected {end} or more; download it again"
            )
        return self.data[offset:end].view(dtype)

    def _build_tensor_info(self, offs: int, count: int) -> tuple[int, list[gguf.ReaderField]]:
        offs, fields = super()._build_tensor_info(offs, count)
        for field in fields:
            number = int(field.parts[4][0])
            if not _can_read(number):
                raise InputError(
                    f"{self._path}: {field.name!r} has the unknown quantization type {_type_name(number)}; "
                    "expected one that the gguf library reads, such as F16, Q8_0, Q4_0 or Q4_K"
                )
        return offs, fields


@functools.cache
def _can_read(number: int) -> bool:
    try:
        kind = GGMLQuantizationType(number)
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (ValueError, NotImplementedError):
        return False
    return True


def _type_name(number: int) -> str:
    return next((kind.name for kind in GGMLQuantizationType if kind == number), str(number))


def _decimal(value: float) -> float:
    """The shortest decimal of a float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
