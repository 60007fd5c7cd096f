"""Finds the axes of batch and time in the tensors of a step graph, from what the graph calls them. Pure.

A name speaks for itself (`batch`, `N`, `time`, `seq_len`), or has been given a meaning by the contract, or
is that of the one axis of a state that has no extent, which can only be the batch's. Many graphs have
names that a tool has drawn (`s77`, `Slice_12_dim_2`) or none: those get a meaning from where they stand,
but only if nothing else is possible. Axes that are fixed at 1 in front stand for one row, or one token.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

BATCH, TIME = "batch", "time"

Role = str | int
"""`batch`, `time`, or an extent."""
Extent = int | str | None

_BATCH_NAME = re.compile(
    r"(?:num|n|dyn|dynamic)?(?:batch|batches|batchsize|batchdim|bs|bsz|b|n|nb)(?:size|dim)?"
)
_TIME_NAME = re.compile(
    r"(?:num|n|max|dyn|dynamic|chunk|input|seq|sequence|time|total|frame|token|feats?|features?|speech)*"
    r"(?:time|times|timestep|timesteps|t|seq|seqs|sequence|sequences|seqlen|frame|frames|step|steps|length|"
    r"len|chunk|tokens)(?:len|length|size|dim|steps)?"
)
_MAX_NAME_CHARS = 64


def named_role(name: str) -> str | None:
    """Returns what a name says of its axis: `batch`, `time`, or nothing."""
    if len(name) > _MAX_NAME_CHARS or any(char.isdigit() for char in name):  # a tool has drawn it
        return None
    bare = re.sub(r"[^a-z]", "", name.lower())
    if _BATCH_NAME.fullmatch(bare):
        return BATCH
    return TIME if _TIME_NAME.fullmatch(bare) else None


@dataclass
class Draft:
    """A tensor, or a state and its successor, whose axes are being found.

    Attributes:
        kind: What it is to the service.
        name: Graph input; of an output, graph output.
        is_id: It has ids: integers, that is.
        sides: What the graph declares, once per tensor.
        given: Axes as the contract has them; None to find them.
        axes: What was found so far; None is open.
    """

    kind: Literal["token", "state", "session_input", "output"]
    name: str
    is_id: bool
    sides: list[tuple[Extent, ...]]
    given: list[Any] | None = None
    axes: list[Role | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        first = self.sides[0]
        self.sides = [side for side in self.sides if len(side) == len(first)]
        if self.given is not None:
            self.axes = [
                axis if isinstance(axis, int) or axis in (BATCH, TIME) else None for axis in self.given
            ]
        else:
            self.axes = [self._extent(at) for at in range(len(first))]

    @property
    def is_dynamic(self) -> bool:
        """Some axis has no extent in the graph."""
        return any(not isinstance(extent, int) for side in self.sides for extent in side)

    @property
    def open(self) -> list[int]:
        """Axes that are not found."""
        return [at for at, axis in enumerate(self.axes) if axis is None]

    @property
    def ones(self) -> list[int]:
        """Axes of extent 1 that may stand for a row or a token: not the last, which is a width."""
        last = len(self.axes) - 1
        may_be_last = self.is_id or (last == 0 and self.kind != "token")
        return [at for at, axis in enumerate(self.axes) if axis == 1 and (at < last or may_be_last)]

    def names_at(self, at: int) -> list[str]:
        """Returns the graph's names of an axis."""
        return [
            str(side[at])
            for side in self.sides
            if at < len(side) and isinstance(side[at], str) and side[at]
        ]

    def has(self, role: str) -> bool:
        """Says whether an axis of this role was found."""
        return role in self.axes

    def _extent(self, at: int) -> int | None:
        """Returns the extent of an axis: 1 only if no side leaves it open."""
        extents = [side[at] for side in self.sides]
        fixed = [extent for extent in extents if isinstance(extent, int)]
        if len(fixed) < len(extents) and set(fixed) <= {1}:
            return None
        return fixed[0]


class AxisFinder:
    """Finds the axes of all tensors of a graph together.

    Args:
        drafts: The tensors; their axes are found in place.
    """

    def __init__(self, drafts: Iterable[Draft]) -> None:
        self._drafts = list(drafts)
        self._roles: dict[str, Role] = {}
        self._tokens = self._of("token")
        self._states = self._of("state")
        self._outputs = self._of("output")

    def find(self) -> None:
        """Finds what can be found; the rest stays open."""
        for draft in self._drafts:
            self._learn(draft)
        self._name()
        for draft in (*self._states, *self._of("session_input")):
            self._place_batch(draft, is_sure=True)
        self._apply()
        for token in self._tokens:
            self._place_in_token(token)
        self._apply()
        self._take_ones()
        for output in self._outputs:
            self._place_in_output(output)
        self._take_ones_of_outputs()

    def _of(self, kind: str) -> list[Draft]:
        return [draft for draft in self._drafts if draft.kind == kind]

    def _learn(self, draft: Draft) -> None:
        """Remembers what the contract's axes say of the graph's names."""
        if draft.given is not None:
            for at, axis in enumerate(draft.axes):
                self._bind(draft, at, axis)

    def _bind(self, draft: Draft, at: int, role: Role | None) -> None:
        if role is not None:
            for name in draft.names_at(at):
                self._roles.setdefault(name, role)

    def _name(self) -> None:
        """Takes names at their word, unless two axes of one tensor would be the same."""
        for draft in self._drafts:
            spoken = {
                name: role
                for at in draft.open
                for name in draft.names_at(at)
                if name not in self._roles and (role := named_role(name)) is not None
            }
            counts = Counter(spoken.values())
            self._roles |= {name: role for name, role in spoken.items() if counts[role] == 1}
        self._apply()

    def _apply(self) -> None:
        """Gives open axes the meaning of their names."""
        for draft in self._drafts:
            for at in draft.open:
                found = {self._roles[name] for name in draft.names_at(at) if name in self._roles}
                if len(found) == 1:
                    self._set(draft, at, found.pop())

    def _set(self, draft: Draft, at: int, role: Role) -> None:
        if isinstance(role, str) and draft.has(role):
            return  # twice in one tensor: it stays open
        if role == TIME and draft.kind in ("state", "session_input"):
            return  # it would grow
        draft.axes[at] = role
        self._bind(draft, at, role)

    def _place_batch(self, draft: Draft, *, is_sure: bool) -> None:
        """Takes the one open axis of a tensor for the batch's."""
        if not is_sure or draft.given is not None or draft.has(BATCH) or len(draft.open) != 1:
            return
        at = draft.open[0]
        if TIME not in [self._roles.get(name) for name in draft.names_at(at)]:
            self._set(draft, at, BATCH)

    def _place_in_token(self, token: Draft) -> None:
        if token.given is not None:
            return
        states = [state for state in self._states if state.has(BATCH)]
        has_rows = any(state.is_dynamic for state in states) or not self._states
        if not token.has(BATCH):
            self._place_batch(token, is_sure=has_rows)
        elif len(token.open) == 1 and (token.is_id or _has_extents(token)):
            self._set(token, token.open[0], TIME)
        if token.has(TIME) and not token.is_id and not _has_extents(token):
            self._doubt_time(token)

    def _doubt_time(self, token: Draft) -> None:
        """Takes back that an axis of single values is time, unless an output has it too.

        A window of samples is called a sequence as well.
        """
        at = token.axes.index(TIME)
        names = set(token.names_at(at))
        others = [*self._outputs, *(other for other in self._tokens if _has_extents(other))]
        if not any(
            names & set(other.names_at(place)) for other in others for place in range(len(other.axes))
        ):
            token.axes[at] = None
            for name in names:
                self._roles.pop(name, None)

    def _take_ones(self) -> None:
        """Takes axes that are fixed at 1 for the batch's, in tensors that have no other one."""
        for draft in (*self._tokens, *self._of("session_input")):
            self._take_one(draft, BATCH)
        fixed = [state for state in self._states if state.given is None and not state.has(BATCH)]
        shared = set.intersection(*(set(state.ones) for state in fixed)) if fixed else set()
        for state in fixed:
            if state.ones and not state.open:
                state.axes[min(shared, default=state.ones[0])] = BATCH
        for token in self._tokens:
            if token.given is None and not token.has(TIME) and not token.open:
                for at in token.ones:
                    if token.is_id or any(_is_one_at(output, at, token) for output in self._outputs):
                        token.axes[at] = TIME
                        break

    def _take_one(self, draft: Draft, role: str) -> None:
        if draft.given is None and not draft.has(role) and not draft.open and draft.ones:
            draft.axes[draft.ones[0]] = role

    def _place_in_output(self, output: Draft) -> None:
        """Gives the open axes of an output the roles that the token has; a wrong one fails the trial."""
        if output.given is not None:
            return
        has_time = any(token.has(TIME) and token.is_dynamic for token in self._tokens)
        if output.has(TIME) and not any(token.has(TIME) for token in self._tokens):
            output.axes[output.axes.index(TIME)] = None
        if output.has(BATCH) and len(output.open) == 1 and has_time and not output.has(TIME):
            output.axes[output.open[0]] = TIME
        if output.has(BATCH) or not output.open:
            return
        if len(output.open) == 1:
            has_batch = any(
                token.has(BATCH) and not isinstance(token.sides[0][token.axes.index(BATCH)], int)
                for token in self._tokens
            )
            output.axes[output.open[0]] = BATCH if has_batch or output.has(TIME) or not has_time else TIME
        elif len(output.open) == 2 and has_time and not output.has(TIME):
            order = [axis for axis in self._tokens[0].axes if axis in (BATCH, TIME)]
            if len(order) == 2:
                for at, role in zip(output.open, order, strict=True):
                    output.axes[at] = role

    def _take_ones_of_outputs(self) -> None:
        for output in self._outputs:
            if output.given is not None:
                continue
            for role in (BATCH, TIME):
                for token in self._tokens:
                    at = token.axes.index(role) if token.has(role) else None
                    if (
                        at is not None
                        and token.sides[0][at] == 1
                        and _is_one_at(output, at, token)
                        and not output.has(role)
                    ):
                        output.axes[at] = role
            is_fixed = not any(token.is_dynamic and token.has(BATCH) for token in self._tokens)
            if is_fixed and any(token.has(BATCH) for token in self._tokens):
                self._take_one(output, BATCH)


def _has_extents(draft: Draft) -> bool:
    return any(isinstance(axis, int) for axis in draft.axes)


def _is_one_at(output: Draft, at: int, token: Draft) -> bool:
    """Says whether an output has 1 where a token has an axis; one of ids may have further axes."""
    has_place = len(output.axes) > at if token.is_id else len(output.axes) == len(token.axes)
    return has_place and output.axes[at] == 1
