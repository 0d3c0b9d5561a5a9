"""What a package's description says of its inputs: the shapes that it takes, beyond the types of the program's function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

Range = tuple[int, int | None]
"""Smallest and largest size; None for no limit."""


@dataclass(frozen=True)
class Allowed:
    """The shapes that an input may have.

    default: the described sizes of the last axes; shapes: an enumerated set of such, or (); ranges: of the last axes,
    or (); fill: of an input that need not be given, the value that all of its elements then have.
    """

    default: tuple[int, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[Range, ...] = ()
    fill: float | None = None

    def check(self, shape: Sequence[int]) -> None:
        """Raises ValueError that says which shapes are allowed."""
        if self.shapes and tuple(shape[-len(self.shapes[0]) :]) not in self.shapes:
            listed = " or ".join(str(list(s)) for s in self.shapes[:_MOST])
            more = f" or {len(self.shapes) - _MOST} others" if len(self.shapes) > _MOST else ""
            raise ValueError(f"allowed are {listed}{more}, got {list(shape)}")
        if not self.ranges:
            return
        sizes = shape[-len(self.ranges) :]
        if len(shape) < len(self.ranges) or not all(
            low <= size and (high is None or size <= high) for size, (low, high) in zip(sizes, self.ranges)
        ):
            raise ValueError(f"allowed is [{', '.join(map(_text, self.ranges))}], got {list(shape)}")


_MOST = 8


def _text(limits: Range) -> str:
    low, high = limits
    return f"{low} or more" if high is None else str(low) if low == high else f"{low} … {high}"


def allowed(feature: Any) -> Allowed:
    """From the description of an input, a protobuf message `FeatureType`."""
    which = feature.WhichOneof("Type")
    if which == "multiArrayType":
        value = feature.multiArrayType.WhichOneof("defaultOptionalValue")
        fill = float(getattr(feature.multiArrayType, value)) if feature.isOptional and value else None
        return replace(_of_array(feature.multiArrayType), fill=fill)
    if which == "imageType":
        return _of_image(feature.imageType)
    return Allowed()


def _of_array(array: Any) -> Allowed:
    default = tuple(array.shape)
    which = array.WhichOneof("ShapeFlexibility")
    if which == "enumeratedShapes":
        listed = {tuple(shape.shape) for shape in array.enumeratedShapes.shapes} | {default}
        return Allowed(default, tuple(sorted(shape for shape in listed if len(shape) == len(default) > 0)))
    if which == "shapeRange":
        return Allowed(default, (), tuple(_range(size) for size in array.shapeRange.sizeRanges))
    return Allowed(default)


def _of_image(image: Any) -> Allowed:
    """The last two axes of an image's tensor are its height and width."""
    which = image.WhichOneof("SizeFlexibility")
    default = (int(image.height), int(image.width))
    if which == "enumeratedSizes":
        listed = {(int(size.height), int(size.width)) for size in image.enumeratedSizes.sizes} | {default}
        return Allowed(default, tuple(sorted(listed)))
    if which == "imageSizeRange":
        limits = image.imageSizeRange
        return Allowed(default, (), (_range(limits.heightRange), _range(limits.widthRange)))
    return Allowed(default)


def _range(size: Any) -> Range:
    return int(size.lowerBound), None if size.upperBound < 0 else int(size.upperBound)
