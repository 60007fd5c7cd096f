"""Finds what the axes of a network's tensors are, by running it, and whether it can be served at all.

A session's rows are run alone and beside others, its tokens one by one and together. The batch axis is the
one along which a row beside others gives what it gives alone; the time axis the one along which a chunk
gives what its tokens give one by one. What has no such axis is refused with what was seen.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from model_export import nested
from model_export.draws import Draws
from model_export.export_error import ExportError
from model_export.soundness import difference, same, short
from model_export.step import BATCH, TIME, Axis, Layout, Part, Step

ROWS = 3
CHUNKS = (5, 3)
STEPS = 3
MOST_TRIED = 256


class _Tried(NamedTuple):
    """How one choice of axes went: the outputs' axes if it holds, else why it does not.

    Attributes:
        axes: Axis of every output, None where it has none.
        error: What the network raised.
        seen: Where values differ.
    """

    axes: tuple[int | None, ...] = ()
    error: str = ""
    seen: str = ""

    @property
    def holds(self) -> bool:
        return not self.error and not self.seen


class _Choice(NamedTuple):
    """An axis for every tensor; None where it has none."""

    tokens: tuple[int | None, ...]
    states: tuple[int | None, ...]
    session: tuple[int | None, ...]


def examine(step: Step, draws: Draws, *, batched: bool = True, one_token: bool = False) -> Layout:
    """Returns the layout of a network.

    Args:
        step: In evaluation mode.
        draws: Tokens and session inputs to run it on, in this order.
        batched: Whether it takes several sessions at once.
        one_token: Whether x is one token, so that none of its axes is time.

    Raises:
        ExportError: It mixes rows or tokens, or takes only one size of batch.
    """
    look = _Look(step, draws)
    batch, output_batch = look.batch() if batched else look.no_batch()
    time, output_time = look.no_time() if one_token else look.time(batch)
    example = step.example

    def part(name: str, tensor: Tensor, batch_axis: int | None, time_axis: int | None) -> Part:
        axes: list[Axis] = list(tensor.shape)
        if batch_axis is not None:
            axes[batch_axis] = BATCH
        if time_axis is not None:
            axes[time_axis] = TIME
        return Part(name, tensor.dtype, tuple(axes))

    outputs, _ = look.run(example.tokens, example.states, example.given)
    y, _ = step.call(example.tokens, example.states, example.given)
    nothing = [None] * max(len(example.states), len(example.session))
    return Layout(
        tuple(map(part, nested.names(example.x, "x", "x"), example.tokens, batch.tokens, time)),
        tuple(map(part, state_names(step), example.states, batch.states, nothing)),
        tuple(map(part, example.session, example.given, batch.session, nothing)),
        tuple(map(part, nested.names(y, "y", "y"), outputs, output_batch, output_time)),
    )


def state_names(step: Step) -> list[str]:
    """Returns what the states are called: h and c where they are those of one of torch's LSTMs."""
    state = step.example.state
    if isinstance(state, Tensor):
        return ["h"]
    is_plain = isinstance(state, tuple) and not hasattr(state, "_fields")
    is_plain = is_plain and all(isinstance(part, Tensor) for part in state)
    alike = is_plain and len({(part.dtype, part.shape[:-1]) for part in state}) == 1
    has_lstm = alike and any(isinstance(part, torch.nn.LSTM | torch.nn.LSTMCell) for part in step.modules())
    if is_plain and len(state) == 2 and has_lstm and all(isinstance(part, Tensor) for part in state):
        return ["h", "c"]
    return nested.names(state, "state", "state")


class _Look:
    """Runs of one network."""

    def __init__(self, step: Step, draws: Draws) -> None:
        self._step = step
        self._draws = draws
        self._example = step.example
        self._names = nested.names(step.example.x, "x", "x")

    @torch.inference_mode()
    def run(
        self, tokens: Sequence[Tensor], states: Sequence[Tensor], session: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        return self._step(tokens, states, session)

    def no_batch(self) -> tuple[_Choice, list[None]]:
        outputs, _ = self.run(self._example.tokens, self._example.states, self._example.given)
        groups = (self._example.tokens, self._example.states, self._example.given)
        return _Choice(*(tuple(None for _ in group) for group in groups)), [None for _ in outputs]

    def batch(self) -> tuple[_Choice, tuple[int | None, ...]]:
        """Returns the batch axis of every tensor."""
        failed: list[_Tried] = []
        for choice in self._batch_choices():
            tried = self._try_batch(choice)
            if tried.holds:
                return choice, tried.axes
            failed.append(tried)
        mixed = next((tried.seen for tried in failed if tried.seen), "")
        if mixed:
            raise ExportError(
                f"the network mixes the rows of a batch: {mixed}; each row is another session, so use "
                "nothing that is taken across the batch axis (a mean, a norm over the batch, a sort)"
            )
        if failed:
            raise ExportError(
                f"the network takes the example's batch only: with {ROWS} rows it raises {failed[0].error}"
                "; take the batch from x.shape, not from a number"
            )
        shapes = ", ".join(str(list(tensor.shape)) for tensor in self._example.states)
        raise ExportError(
            f"no axis of x {list(self._example.tokens[0].shape)} is the batch: each state ({shapes}) needs "
            "one of the same extent; for a network that takes one session a call say batched=False"
        )

    def time(self, batch: _Choice) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
        """Returns the time axis of every token tensor and output."""
        for choice in self._time_choices(batch):
            tried = self._try_time(batch, choice)
            if tried.holds:
                return choice, tried.axes
            first = choice[0]
            assert first is not None, "bug: a choice without a first axis"
            extent = self._example.tokens[0].shape[first]
            if tried.seen and extent > 1:
                raise ExportError(
                    f"what the network gives depends on how tokens are divided (axis {first} of "
                    f"{self._names[0]}): {tried.seen}; a stream has no future tokens, so it may not look "
                    "ahead or take means over time; keep what it needs of the past in the state; if x is "
                    "one token, and this axis not time, say one_token=True (--one-token)"
                )
            if tried.error and self._example.tokens[0].dtype in (torch.int32, torch.int64) and extent > 1:
                raise ExportError(
                    f"the network takes {extent} tokens a call only: with {CHUNKS[0]} or 1 of them it "
                    f"raises {tried.error}; take the number of tokens from x.shape, or give one "
                    "token"
                )
        return self.no_time()

    def no_time(self) -> tuple[tuple[None, ...], tuple[None, ...]]:
        """Returns no axis for every token tensor and output."""
        outputs, _ = self.run(self._example.tokens, self._example.states, self._example.given)
        return tuple(None for _ in self._example.tokens), tuple(None for _ in outputs)

    def _batch_choices(self) -> Iterator[_Choice]:
        """Yields axes of one extent, the first ones first; tensors of one shape get the same."""
        example = self._example
        first = example.tokens[0]
        for axis, extent in enumerate(first.shape):
            groups = [tuple(t.shape) for t in (*example.tokens[1:], *example.states, *example.given)]
            shapes = list(dict.fromkeys(groups))
            options = [[at for at, size in enumerate(shape) if size == extent] for shape in shapes]
            for number, chosen in enumerate(product(*options)):
                if number == MOST_TRIED:
                    break
                of_shape = dict(zip(shapes, chosen, strict=True))
                axes = [axis, *(of_shape[shape] for shape in groups)]
                token_count, state_count = len(example.tokens), len(example.states)
                yield _Choice(
                    tuple(axes[:token_count]),
                    tuple(axes[token_count : token_count + state_count]),
                    tuple(axes[token_count + state_count :]),
                )

    def _time_choices(self, batch: _Choice) -> Iterator[tuple[int | None, ...]]:
        first, *others = self._example.tokens
        for axis, extent in enumerate(first.shape):
            if axis == batch.tokens[0]:
                continue
            options = [
                [at for at, size in enumerate(other.shape) if size == extent and at != taken]
                for other, taken in zip(others, batch.tokens[1:], strict=True)
            ]
            for chosen in product(*options):
                yield (axis, *chosen)

    def _try_batch(self, choice: _Choice) -> _Tried:
        tokens = [
            [self._drawn(n, axis, ROWS) for n, axis in enumerate(choice.tokens)] for _ in range(STEPS)
        ]
        offset = len(choice.tokens)
        session = [self._drawn(offset + n, axis, ROWS) for n, axis in enumerate(choice.session)]
        states = [_row(t, axis) for t, axis in zip(self._example.states, choice.states, strict=True)]
        together = [_repeated(t, axis, ROWS) for t, axis in zip(states, choice.states, strict=True)]
        try:
            given = self._rolled(tokens, together, session)
            alone = [
                self._rolled(
                    [_rows(step, choice.tokens, row) for step in tokens],
                    states,
                    _rows(session, choice.session, row),
                )
                for row in range(ROWS)
            ]
        except ExportError:
            raise
        except Exception as error:  # noqa: BLE001 -- whatever it raises, these axes are not the ones
            return _Tried(error=short(error))
        counts = len(given[0]) - len(choice.states)
        axes: list[int | None] = []
        for number in range(len(given[0])):
            wanted = choice.states[number - counts] if number >= counts else None
            found = _along(given, alone, number, ROWS, wanted)
            if isinstance(found, str):
                name = f"output {number}" if number < counts else f"state {number - counts}"
                return _Tried(seen=f"{name} {found} beside {ROWS - 1} others")
            axes.append(found)
        return _Tried(tuple(axes[:counts]))

    def _try_time(self, batch: _Choice, choice: tuple[int | None, ...]) -> _Tried:
        states = [_row(t, axis) for t, axis in zip(self._example.states, batch.states, strict=True)]
        session = [_row(t, axis) for t, axis in zip(self._example.given, batch.session, strict=True)]
        axes: list[tuple[int | None, ...]] = []
        for count in CHUNKS:
            tokens = [self._drawn(n, axis, count, one=batch.tokens[n]) for n, axis in enumerate(choice)]
            singles = [_rows(tokens, choice, at) for at in range(count)]
            try:
                together = self._rolled([tokens], states, session)[0]
                alone = self._rolled(singles, states, session)
            except ExportError:
                raise
            except Exception as error:  # noqa: BLE001 -- whatever it raises, this is no time axis
                return _Tried(error=short(error))
            counts = len(together) - len(states)
            found: list[int | None] = []
            for number, whole in enumerate(together):
                parts = [step[number] for step in alone]
                axis = _time_axis(whole, parts, number < counts)
                if isinstance(axis, str):
                    name = f"output {number}" if number < counts else f"state {number - counts}"
                    return _Tried(seen=f"{name} {axis} after {count} tokens at once")
                found.append(axis)
            axes.append(tuple(found[:counts]))
        if axes[0] != axes[1]:
            return _Tried(error="outputs that are not as long as the tokens")
        return _Tried(axes[0])

    def _rolled(
        self, tokens: Sequence[Sequence[Tensor]], states: Sequence[Tensor], session: Sequence[Tensor]
    ) -> list[list[Tensor]]:
        """Returns outputs and next states after each step of a closed loop."""
        results = []
        for step in tokens:
            outputs, states = self.run(step, states, session)
            results.append([*outputs, *states])
        return results

    def _drawn(self, number: int, axis: int | None, extent: int, *, one: int | None = None) -> Tensor:
        """Draws token or session input `number` with another extent of an axis, and 1 of another."""
        examples = (*self._example.tokens, *self._example.given)
        shape = list(examples[number].shape)
        for at, size in ((one, 1), (axis, extent)):
            if at is not None:
                shape[at] = size
        return self._draws.draw(number, shape)


def _row(tensor: Tensor, axis: int | None) -> Tensor:
    return tensor if axis is None else tensor.narrow(axis, 0, 1)


def _rows(tensors: Sequence[Tensor], axes: Sequence[int | None], row: int) -> list[Tensor]:
    return [
        tensor if axis is None else tensor.narrow(axis, row, 1)
        for tensor, axis in zip(tensors, axes, strict=True)
    ]


def _repeated(tensor: Tensor, axis: int | None, count: int) -> Tensor:
    return tensor if axis is None else torch.cat([tensor] * count, axis)


def _along(
    given: list[list[Tensor]], alone: list[list[list[Tensor]]], number: int, rows: int, wanted: int | None
) -> int | str:
    """Returns the axis along which rows beside others are the rows alone, or what differs."""
    shape, single = given[0][number].shape, alone[0][0][number].shape
    fitting = [
        axis
        for axis in range(len(shape))
        if len(shape) == len(single)
        and (shape[axis], single[axis]) == (rows, 1)
        and shape[:axis] + shape[axis + 1 :] == single[:axis] + single[axis + 1 :]
        and wanted in (None, axis)
    ]
    if not fitting:
        return f"is {list(shape)}, and {list(single)} alone:"

    def worst(axis: int) -> float:
        return max(
            difference(given[at][number].narrow(axis, row, 1), alone[row][at][number])
            for at in range(len(given))
            for row in range(rows)
        )

    best = min(fitting, key=worst)
    return best if same(worst(best), given[0][number]) else f"differs by {worst(best):.2g}"


def _time_axis(whole: Tensor, parts: Sequence[Tensor], may_have_time: bool) -> int | str | None:
    """Returns the axis along which a chunk's output is that of its tokens, or what differs.

    Without such an axis it has to be what the last token gives.
    """
    last, count = parts[-1], len(parts)
    if whole.shape == last.shape:
        found = difference(whole, last)
        return None if same(found, last) else f"differs by {found:.2g}"
    axes = [
        axis
        for axis in range(whole.dim())
        if may_have_time
        and whole.dim() == last.dim()
        and (whole.shape[axis], last.shape[axis]) == (count, 1)
    ]
    for axis in axes:
        joined = torch.cat(list(parts), axis)
        if joined.shape == whole.shape:
            found = difference(whole, joined)
            return axis if same(found, last) else f"differs by {found:.2g}"
    return f"is {list(whole.shape)}, and {list(last.shape)} token by token:"
