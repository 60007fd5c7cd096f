"""Turns tensors between the service's axes (time, batch, ...) and those of a graph. Pure."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.model.contract import Layout


def arrangement(layout: Layout, rank: int) -> "Arrangement | None":
    """Returns the arrangement of a tensor; None if the graph has time and batch first, as the service."""
    return None if layout == Layout(0, 1) else Arrangement(layout, rank)


class Arrangement:
    """The axes of one tensor of a graph.

    Args:
        layout: Where the graph has time and batch.
        rank: Axes of the tensor beside these two.
    """

    def __init__(self, layout: Layout, rank: int) -> None:
        self._lacks_time = layout.time is None
        self._lacks_batch = layout.batch is None
        places = [place for place in layout if place is not None]
        total = rank + len(places)
        others = iter(range(len(places), total))
        source = {place: number for number, place in enumerate(places)}
        order = tuple(source[axis] if axis in source else next(others) for axis in range(total))
        is_straight = order == tuple(range(total))
        self._to = None if is_straight else order
        self._from = None if is_straight else tuple(order.index(axis) for axis in range(total))

    def to_graph(self, array: NDArray[Any]) -> NDArray[Any]:
        """Returns (T, B, ...) with the graph's axes; where it lacks one, T or B is 1."""
        if self._lacks_time:
            array = array[0]
        if self._lacks_batch:
            array = array[0] if self._lacks_time else array[:, 0]
        if self._to is not None:
            return np.ascontiguousarray(array.transpose(self._to))
        return np.asarray(array)  # one of no axes has become a number

    def from_graph(self, array: NDArray[Any]) -> NDArray[Any]:
        """Returns what has the graph's axes as (T, B, ...); an axis that it lacks has the extent 1.

        Raises:
            ValueError: It has another number of axes.
        """
        if self._from is not None:
            array = array.transpose(self._from)
        if self._lacks_batch:
            array = array[np.newaxis] if self._lacks_time else array[:, np.newaxis]
        return array[np.newaxis] if self._lacks_time else array
