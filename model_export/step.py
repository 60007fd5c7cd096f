"""A network as one step over a flat list of tensors, with a name and axes for each.

Arrays that pass between the parts of the exporter are canonical: (time, batch, numbered axes...) for tokens
and outputs, (batch, numbered axes...) for states and session inputs; `arranged` and `canonical` go to and
from the order of a tensor's own axes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model_export import nested
from model_export.export_error import ExportError

BATCH, TIME = "batch", "time"

Axis = int | str


class Part(NamedTuple):
    """One tensor of a step.

    Attributes:
        name: What clients call it.
        dtype: Of torch.
        axes: In the tensor's order: `batch`, `time` or a number.
    """

    name: str
    dtype: torch.dtype
    axes: tuple[Axis, ...]

    @property
    def numbers(self) -> tuple[int, ...]:
        """Extents of the numbered axes."""
        return tuple(axis for axis in self.axes if isinstance(axis, int))

    def without(self, axis: str) -> "Part":
        """Returns the part without an axis."""
        return self._replace(axes=tuple(other for other in self.axes if other != axis))


class Layout(NamedTuple):
    """All tensors of a step, in the order of the flat lists."""

    tokens: tuple[Part, ...]
    states: tuple[Part, ...]
    session: tuple[Part, ...]
    outputs: tuple[Part, ...]

    @property
    def has_time(self) -> bool:
        """Whether the module takes several tokens of a session at once."""
        return any(TIME in part.axes for part in self.tokens)

    @property
    def has_batch(self) -> bool:
        """Whether the module takes several sessions at once."""
        return any(BATCH in part.axes for part in self.tokens)


@dataclass(frozen=True)
class Example:
    """What a network was called with.

    Attributes:
        x: The token or tokens, nested.
        state: Nested; the state that a session starts at.
        session: Given once a session, by keyword.
    """

    x: Any
    state: Any
    session: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> list[Tensor]:
        """Returns the tensors of x."""
        return nested.tensors(self.x, "x")

    @property
    def states(self) -> list[Tensor]:
        """Returns the tensors of the state."""
        return nested.tensors(self.state, "state")

    @property
    def given(self) -> list[Tensor]:
        """Returns the session inputs."""
        return list(self.session.values())


class Step(nn.Module):
    """Calls a network with flat lists of tensors.

    A cell of torch, which returns the next state alone, gives its h as the output too.
    """

    def __init__(self, module: nn.Module, example: Example) -> None:
        super().__init__()
        self.module = module
        self.example = example
        self._is_cell = isinstance(module, nn.RNNCellBase)

    def forward(
        self, tokens: Sequence[Tensor], states: Sequence[Tensor], session: Sequence[Tensor] = ()
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Returns outputs and next states.

        Raises:
            ExportError: The network returns something else than `(y, state)`.
        """
        y, after = self.call(tokens, states, session)
        return nested.tensors(y, "y"), nested.tensors(after, "the next state")

    def call(
        self, tokens: Sequence[Tensor], states: Sequence[Tensor], session: Sequence[Tensor] = ()
    ) -> tuple[Any, Any]:
        """Returns `(y, state)` as the network gives it; see `forward`."""
        example = self.example
        # a copy: a network may write into the state that it is given
        state = nested.rebuilt(example.state, [tensor.clone() for tensor in states])
        x = nested.rebuilt(example.x, tokens)
        keywords = dict(zip(example.session, session, strict=True))
        result = self.module(x, state, **keywords) if example.states else self._stateless(x, keywords)
        if self._is_cell:
            return (result[0] if isinstance(result, tuple) else result), result
        if not example.states and not (isinstance(result, tuple) and len(result) == 2):
            return result, None
        if not isinstance(result, tuple) or len(result) != 2:
            raise ExportError(
                f"{type(self.module).__name__} returns {_described(result)}, expected (y, state): what "
                "it gives for the tokens, and the state after them in the structure that it takes"
            )
        if example.states and not nested.same_structure(example.state, result[1]):
            raise ExportError(
                f"the next state is {_described(result[1])}, the state {_described(example.state)}; "
                "expected the same structure, so that it can be given back"
            )
        return result[0], result[1]

    def _stateless(self, x: Any, keywords: dict[str, Tensor]) -> Any:
        """A network without a state may take the token alone."""
        try:
            return self.module(x, self.example.state, **keywords)
        except TypeError:
            return self.module(x, **keywords)


class FlatStep(nn.Module):
    """A step of positional tensors, as torch's exporters want it.

    Attributes:
        layout: Of what it takes and gives: that of the network, or without time axes.
    """

    def __init__(self, step: Step, layout: Layout, *, one_token: bool) -> None:
        super().__init__()
        self.step = step
        self._whole = layout
        self._one_token = one_token and layout.has_time
        self.layout = layout if not self._one_token else _without_time(layout)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Takes tokens, states and session inputs; returns outputs and next states."""
        counts = len(self._whole.tokens), len(self._whole.states)
        tokens, states = list(tensors[: counts[0]]), tensors[counts[0] : sum(counts)]
        if self._one_token:
            tokens = [
                token.unsqueeze(part.axes.index(TIME))
                for token, part in zip(tokens, self._whole.tokens, strict=True)
            ]
        outputs, after = self.step(tokens, states, tensors[sum(counts) :])
        if self._one_token:
            outputs = [
                output.select(part.axes.index(TIME), 0) if TIME in part.axes else output
                for output, part in zip(outputs, self._whole.outputs, strict=True)
            ]
        return (*outputs, *after)


def arranged(canonical: Tensor, part: Part) -> Tensor:
    """Returns a tensor in the order of its axes.

    Args:
        canonical: With a time axis first if the part has one, then a batch axis if it has one.
        part: Says the order.
    """
    lead = [name for name in (TIME, BATCH) if name in part.axes]
    numbers = iter(range(len(lead), canonical.dim()))
    order = [lead.index(axis) if isinstance(axis, str) else next(numbers) for axis in part.axes]
    return canonical.permute(order)


def canonical(tensor: Tensor, part: Part) -> Tensor:
    """Undoes `arranged`."""
    lead = [part.axes.index(name) for name in (TIME, BATCH) if name in part.axes]
    rest = [number for number, axis in enumerate(part.axes) if isinstance(axis, int)]
    return tensor.permute([*lead, *rest])


def _without_time(layout: Layout) -> Layout:
    parts = [tuple(part.without(TIME) for part in group) for group in layout]
    return Layout(*parts)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(str, value))}"
    return type(value).__name__
