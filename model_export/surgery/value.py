"""What is known of a tensor while a graph is translated, and how a graph is refused. Pure."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model_export.surgery.axes import Axis, Extent, Size

Reach = Literal["constant", "size", "each", "last", "here"]
"""Which tokens a tensor depends on: none; only how many there are; each entry of its time axis on those up
to it; on all of them, having no time axis; or, within a loop, on those up to the present one."""


class Refused(Exception):
    """A graph cannot become a step graph; the message is one line with the reason and the way out.

    Args:
        reason: The line.
        extents: Numbers in the graph that the time axis may have been exported with, undeclared.
    """

    def __init__(self, reason: str, extents: tuple[int, ...] = ()) -> None:
        super().__init__(reason)
        self.extents = extents


class Misread(Refused):
    """Time and batch are not where they were taken to be."""


@dataclass(frozen=True)
class Value:
    """A tensor.

    Attributes:
        axes: What each axis stands for.
        reach: Which tokens it depends on.
        data: Its content, of a constant.
        sizes: Its content, of whole numbers that are computed from extents; None entries are unknown.
        token: The graph input whose values these are, in whatever shape.
        before: Entries of zeros that were put before the first token.
        after: Entries behind the last token, which have to be cut off again.
        padded: Name of the tensor without them.
    """

    axes: tuple[Axis, ...]
    reach: Reach = "constant"
    data: NDArray[Any] | None = None
    sizes: NDArray[Any] | None = None
    token: str | None = None
    before: int = 0
    after: int = 0
    padded: str | None = None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.axes)

    @property
    def extents(self) -> NDArray[Any] | None:
        """Content as whole numbers or `Size`; None if it is unknown."""
        if self.sizes is not None:
            return self.sizes
        if self.data is not None and self.data.dtype.kind in "iu" and self.data.size <= MAX_SIZES:
            return (
                np.frompyfunc(int, 1, 1)(self.data.astype(object)) if self.data.ndim else _scalar(self.data)
            )
        return None

    def shaped(self, axes: tuple[Axis, ...]) -> "Value":
        """Returns the same values in another shape."""
        return Value(axes, self.reach, token=self.token)

    def holding(self, sizes: NDArray[Any]) -> "Value":
        """Returns the same with a content of sizes."""
        return replace(self, sizes=sizes)


STATE_COPY = "\0state"
"""Stands as `Value.token` of what is a state once more."""

MAX_SIZES = 64
"""No shape has more entries."""


def _scalar(data: NDArray[Any]) -> NDArray[Any]:
    holder = np.empty((), object)
    holder[()] = int(data)
    return holder


def numbers(value: Value | None, what: str) -> list[int]:
    """Returns a content of whole numbers, flat.

    Raises:
        Refused: It is not known before the graph runs.
    """
    extents = flat(value)
    if extents is None or not all(isinstance(extent, int) for extent in extents):
        raise Refused(f"{what} is computed while the graph runs; export it as a constant")
    return [extent for extent in extents if isinstance(extent, int)]


def flat(value: Value | None) -> list[Extent | None] | None:
    """Returns a content of extents, flat; None if nothing is known of it."""
    if value is None or value.extents is None:
        return None
    return list(value.extents.reshape(-1))


def depends_on_size(value: Value) -> bool:
    """Says whether a content changes with the number of tokens or rows."""
    extents = value.sizes
    return extents is not None and any(not isinstance(extent, int) for extent in extents.reshape(-1))


def in_words(axes: tuple[Axis, ...]) -> str:
    """Returns axes as people read them."""
    return "[" + ", ".join(" x ".join(map(str, axis)) if axis else "1" for axis in axes) + "]"


def as_size(symbol: str) -> Size:
    """Returns the extent of a symbol."""
    return Size((symbol,))
