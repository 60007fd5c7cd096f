"""A network over subwords that is fed with text: the server tokenises as the text streams.

On the wire a token is a byte, so that chunks may end anywhere, in the middle of a word or of a character.
Beside the network's own states a session has one more, `piece`, kept exactly once like them:

    bytes 0..3    the last finished subword, plus one; 0 while there is none
    byte  4       length of the unfinished piece
    bytes 8..71   the unfinished piece (`service.model.pieces`), zeros behind it

The other states are those before the last finished subword, and the outputs of a byte are those after it.
So they can be given again for each byte that follows, by one step from the record, where the record would
otherwise have to hold thousands of logits. Which chunks a text came in can be seen in none of it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.model.contract import RANKED, Contract, InputSpec, OutputSpec, StateSpec, Vocabulary
from service.model.pieces import MAX_PIECE_BYTES, cut
from service.model.protocol import Arrays, Halt, Model
from service.model.subwords import Subwords, TokenizerError

PIECE = "piece"
_LAST, _LENGTH, _TEXT = slice(0, 4), 4, 8
PIECE_BYTES = _TEXT + MAX_PIECE_BYTES

MAX_LABELS_BYTES = 64 << 10
"""The list of models has them. A larger vocabulary has its texts in tokenizer.json alone."""

_LABEL_BYTES = 4
"""Of a message, beside the text of a label."""


class _Row(NamedTuple):
    """What one session's bytes make the network do.

    Attributes:
        ids: Subwords to run: the last one of before, if there is one, then those that have finished.
        places: Of the byte that finished each of the latter, ascending.
        piece: The next value of its state.
    """

    ids: list[int]
    places: list[int]
    piece: NDArray[np.uint8]

    @property
    def known_count(self) -> int:
        """How many subwords had finished before, 0 or 1."""
        return len(self.ids) - len(self.places)


class TokenisedModel:
    """Implements `Model` for text on a model that takes the ids of subwords.

    Args:
        network: The network.
        subwords: Its tokenizer.
        start: Id that stands before every text; None without one. Then outputs are zeros until the first
            subword has finished.

    Raises:
        TokenizerError: The network does not take ids, and nothing else, of this vocabulary.
    """

    def __init__(self, network: Model, subwords: Subwords, *, start: int | None = None) -> None:
        self._network = network
        self._subwords = subwords
        self._start = start
        self.contract = _text_contract(network.contract, subwords)
        if start is not None and not 0 <= start < len(subwords.texts):
            raise TokenizerError(
                f"vocabulary: start {start} is not an id, expected 0..{len(subwords.texts) - 1}"
            )
        self._outputs = {output.name: output for output in network.contract.outputs}

    @property
    def name(self) -> str:
        """Name in the repository."""
        return self._network.name

    @property
    def version(self) -> int:
        """Version, >= 1."""
        return self._network.version

    @property
    def fingerprint(self) -> bytes:
        """Of the network with its contract and its tokenizer, 32 bytes."""
        return self._network.fingerprint

    @property
    def network(self) -> Model:
        """The network over subwords."""
        return self._network

    def sample_text(self) -> bytes:
        """Returns a text to try it on."""
        return self._subwords.sample_text()

    def new_halt(self) -> Halt:
        """Returns what can end one run."""
        return self._network.new_halt()

    def run(
        self,
        tokens: NDArray[Any],
        states: Arrays,
        needed: tuple[str, ...] | None = None,
        halt: Halt | None = None,
    ) -> tuple[Arrays, Arrays]:
        """Advances B sessions by T bytes each; see `Model.run`."""
        names = tuple(self._outputs) if needed is None else needed
        columns = np.ascontiguousarray(tokens.T, np.uint8)
        rows = [
            self._read(piece, column.tobytes())
            for piece, column in zip(states[PIECE], columns, strict=True)
        ]
        given, after = self._run_ids(rows, states, names, halt)
        outputs = {
            name: _sums(rows, values, len(tokens))
            if self._outputs[name].role == "token_log_prob"
            else values[_latest(rows, len(tokens))]
            for name, values in given.items()
        }
        return outputs, {**after, PIECE: np.stack([row.piece for row in rows])}

    def settled(self, states: Arrays, halt: Halt | None = None) -> NDArray[Any]:
        """Weighs the subwords that follow states; see `SubwordModel.settled`."""
        ranked = self.contract.ranked
        assert ranked is not None, "bug: a model without a ranking weighs subwords"
        rows = []
        for piece in states[PIECE]:
            row = self._read(piece, b"")
            more = self._subwords.encode(_unfinished(row.piece.tobytes()))
            rows.append(row._replace(ids=[*row.ids, *more], places=[0] * len(more)))
        given, _ = self._run_ids(rows, states, (ranked.name,), halt)
        weights: NDArray[Any] = given[ranked.name][_latest(rows, 1)[0]]
        return weights

    def _read(self, piece: NDArray[np.uint8], new: bytes) -> _Row:
        """Tokenises what has come; a state that a client made up counts as far as it makes sense."""
        raw = piece.tobytes()
        last = int.from_bytes(raw[_LAST], "little") - 1
        if not 0 <= last < len(self._subwords.texts):
            last = -1 if self._start is None else self._start
        finished, rest = cut(_unfinished(raw), new)
        ids, places = [] if last < 0 else [last], []
        for found, place in finished:
            more = self._subwords.encode(found)
            ids += more
            places += [max(place, 0)] * len(more)
        known = ids[-1] + 1 if ids else 0
        state = known.to_bytes(4, "little") + len(rest).to_bytes(_TEXT - _LENGTH, "little") + rest
        return _Row(ids, places, np.frombuffer(state.ljust(PIECE_BYTES, b"\0"), np.uint8))

    def _run_ids(
        self, rows: Sequence[_Row], states: Arrays, names: tuple[str, ...], halt: Halt | None
    ) -> tuple[dict[str, NDArray[Any]], Arrays]:
        """Runs all subwords but the last of each row for good, and these for their outputs.

        Returns:
            Outputs by name, (N + 1, ...): after each of a row's subwords, row after row, and zeros; and the
            states (B, ...).
        """
        starts = np.cumsum([0, *(len(row.ids) for row in rows)])
        collected = {
            name: np.zeros((starts[-1] + 1, *self._outputs[name].shape), self._outputs[name].dtype)
            for name in names
        }
        states = {name: array.copy() for name, array in states.items() if name != PIECE}
        order = np.array(sorted(range(len(rows)), key=lambda row: -len(rows[row].ids)))
        counts = [len(rows[row].ids) - 1 for row in order]
        is_last = any(self._outputs[name].is_last for name in names)
        for begin, end, active in _spans(counts, 1 if is_last else max(1, max(counts, default=1))):
            chosen = order[:active]
            ids = np.array([rows[row].ids[begin:end] for row in chosen], np.int64).T
            outputs, after = self._call(ids, states, chosen, names, halt)
            for name in names:
                collected[name][starts[chosen] + np.arange(begin, end)[:, np.newaxis]] = outputs[name]
            for name, array in states.items():
                array[chosen] = after[name]
        ready = np.array([row for row, found in enumerate(rows) if found.ids], np.int64)
        if names and len(ready):
            last = np.array([[rows[row].ids[-1] for row in ready]], np.int64)
            outputs, _ = self._call(last, states, ready, names, halt)
            for name in names:
                collected[name][starts[ready + 1] - 1] = outputs[name][0]
        return collected, states

    def _call(
        self,
        ids: NDArray[np.int64],
        states: Arrays,
        chosen: NDArray[np.int64],
        names: tuple[str, ...],
        halt: Halt | None,
    ) -> tuple[Arrays, Arrays]:
        part = {name: array[chosen] for name, array in states.items()}
        return self._network.run(np.ascontiguousarray(ids), part, names, halt)


def _unfinished(raw: bytes) -> bytes:
    """Returns the piece that a state has."""
    return raw[_TEXT : _TEXT + min(raw[_LENGTH], MAX_PIECE_BYTES)]


def _spans(counts: Sequence[int], most: int) -> list[tuple[int, int, int]]:
    """Returns (begin, end, active): steps begin..end of the first `active` rows run in one call.

    Args:
        counts: Steps per row, descending.
        most: Steps in one call.
    """
    spans = []
    begin, active = 0, sum(count > 0 for count in counts)
    while active:
        end = min(counts[active - 1], begin + most)
        spans.append((begin, end, active))
        begin = end
        while active and counts[active - 1] <= begin:
            active -= 1
    return spans


def _latest(rows: Sequence[_Row], byte_count: int) -> NDArray[np.int64]:
    """Returns which of the collected outputs each byte gets, (T, B); the last one, zeros, before any."""
    latest = np.empty((byte_count, len(rows)), np.int64)
    start = 0
    for number, row in enumerate(rows):
        finished = np.searchsorted(row.places, np.arange(byte_count), side="right") + row.known_count
        latest[:, number] = np.where(finished > 0, start + finished - 1, -1)
        start += len(row.ids)
    return latest


def _sums(rows: Sequence[_Row], values: NDArray[Any], byte_count: int) -> NDArray[Any]:
    """Returns per byte, (T, B), the sum over the subwords that it finished."""
    sums = np.zeros((byte_count, len(rows)), values.dtype)
    start = 0
    for number, row in enumerate(rows):
        end = start + len(row.ids)
        np.add.at(sums[:, number], row.places, values[start + row.known_count : end])
        start = end
    return sums


def _text_contract(contract: Contract, subwords: Subwords) -> Contract:
    """Returns the contract of a network as clients see it, who send text."""
    size = len(subwords.texts)
    if contract.input.kind != "token_id" or contract.vocabulary is None or contract.vocabulary.size != size:
        raise TokenizerError(
            f"a tokenizer of {size} entries needs a graph with one input, a token_id of this vocabulary"
        )
    if any(state.name == PIECE for state in contract.states):
        raise TokenizerError(
            f"a state is named {PIECE!r}, as is what the server adds; give it another name"
        )
    piece = StateSpec(PIECE, "", "", np.dtype("u1"), (PIECE_BYTES,), 0)
    token = InputSpec(contract.input.name, "token_id", np.dtype("<i8"), 1, has_time_axis=True)
    labels_bytes = sum(len(text.encode()) + _LABEL_BYTES for text in subwords.texts)
    ranked = contract.ranked
    weighs_subwords = ranked is not None and not ranked.labels and math.prod(ranked.shape) == size
    labels = subwords.texts if labels_bytes <= MAX_LABELS_BYTES else ()
    return replace(
        contract,
        input=token,
        states=(*contract.states, piece),
        outputs=tuple(_text_output(output, labels) for output in contract.outputs),
        graph_inputs=(),
        tokens_per_run=None,
        vocabulary=Vocabulary("bytes", 256),
        texts=subwords.written if weighs_subwords else (),
        text_bytes=contract.text_bytes + (labels_bytes if labels else 0),
    )


def _text_output(output: OutputSpec, labels: tuple[str, ...]) -> OutputSpec:
    """Returns an output as it is given for every byte, with names of the classes it ranks."""
    if output.role not in RANKED:
        return replace(output, is_last=False)
    return replace(output, is_last=False, labels=output.labels or labels)
