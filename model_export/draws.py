"""Random tokens and session inputs for a network that is being looked at.

One seed, so that an export passes or fails for good.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model_export.step import Part

SEED = 11


class Draws:
    """Draws like the example: ids of the vocabulary, floats of the example's mean and size.

    Args:
        examples: A tensor for each kind of draw.
        sizes: Of ids, how many there are; None for floats.
    """

    def __init__(self, examples: Sequence[Tensor], sizes: Sequence[int | None]) -> None:
        self._generator = torch.Generator().manual_seed(SEED)
        self._examples = examples
        self._sizes = sizes

    def draw(self, number: int, shape: Sequence[int]) -> Tensor:
        """Returns a tensor like example `number`."""
        example, size = self._examples[number], self._sizes[number]
        if size is not None:
            drawn = torch.randint(0, size, tuple(shape), generator=self._generator)
            return drawn.to(example.dtype)
        values = torch.randn(tuple(shape), generator=self._generator)
        if example.dtype == torch.bool:
            return values > 0
        whole = example.detach().double()
        spread = float(whole.std()) if whole.numel() > 1 else 0.0
        return (values * (spread or 1.0) + float(whole.mean())).to(example.dtype)


def shape_of(part: Part, batch: int, time: int) -> tuple[int, ...]:
    """Returns the shape of a canonical array of a part."""
    lead = [("time", time), ("batch", batch)]
    return (*(extent for name, extent in lead if name in part.axes), *part.numbers)
