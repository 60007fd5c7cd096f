"""Completes a contract from what a graph declares, where that leaves no doubt. Pure.

A graph has names, types and shapes; which output is the next state of which input, which input takes the
tokens, and which axes are batch and time, often follows from them. What does not follow is not guessed: a
wrong guess can be served without any error (an LSTM's h and c, swapped). It is refused with a list of what
is open, and with a contract that has answers to look over.

- A state is an input and an output whose names say so (`service.model.name_stems`), of one type and shape.
- What is left of the inputs is the token if it is one tensor, or if all that is left has an axis of time.
- What is left of the outputs are outputs.
- Constants and what is given when a session is opened are never guessed.
"""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from service.model.axis_roles import BATCH, TIME, AxisFinder, Draft
from service.model.contract import ContractError, GraphTensor
from service.model.contract_text import Place, describe, notes_of, to_toml
from service.model.document import name_of
from service.model.guesses import guess_rest
from service.model.name_stems import namesakes, pair_names

__all__ = ["complete", "to_toml"]

Tensors = Mapping[str, GraphTensor]
Entry = dict[str, Any]

MAX_TENSORS = 2000
"""On each side of a graph; every state is one."""

_MAX_TOLD = 3
_ID_DTYPES = ("int32", "int64")
_GROWING = "if the state grows: keep the last values in a ring buffer, and their count in a counter"


def complete(
    document: Mapping[str, Any], inputs: Tensors, outputs: Tensors, switches: Tensors
) -> dict[str, Any]:
    """Returns a contract with all that it does not say and the graph does; tables of tensors are lists.

    Args:
        document: What contract.toml says; {} if there is none.
        inputs: Inputs of the graph.
        outputs: Its outputs.
        switches: Its inputs with a default.

    Raises:
        ContractError: It is not clear what a tensor is; `proposal` has a contract to look over.
    """
    completion = _Completion(document, inputs, outputs, switches)
    completion.run()
    if completion.doubts:
        raise ContractError(completion.message(), completion.proposal())
    return completion.result()


class _Completion:
    """One contract on its way.

    Attributes:
        doubts: What is not clear, in words, the most telling first.
    """

    def __init__(
        self, document: Mapping[str, Any], inputs: Tensors, outputs: Tensors, switches: Tensors
    ) -> None:
        for side, tensors in (("inputs", inputs), ("outputs", outputs)):
            if len(tensors) > MAX_TENSORS:
                raise ContractError(f"it has {len(tensors)} {side}, expected at most {MAX_TENSORS}")
        self.doubts: list[str] = []
        self._document = dict(document)
        self._inputs, self._outputs = inputs, outputs
        self._notes: dict[Place, str] = {}
        self._tokens = _entries(document, "input")
        self._states = _entries(document, "state")
        self._results = _entries(document, "output")
        self._session_inputs = _entries(document, "session_input")
        self._constants = dict(_table(document, "constants"))
        self._check_names(switches)

    def run(self) -> None:
        """Finds what every tensor is, and its axes."""
        self._complete_states()
        self._pair()
        self._name_token()
        self._take_rest()
        self._complete_outputs()
        self._find_axes()
        self._check_vocabulary()

    def result(self) -> dict[str, Any]:
        """Returns the contract."""
        found = {
            "input": self._tokens,
            "state": self._states,
            "output": self._results,
            "session_input": self._session_inputs,
            "constants": self._constants,
        }
        return {**self._document, **{topic: value for topic, value in found.items() if value}}

    def message(self) -> str:
        """Returns the doubts as one line."""
        told = "; ".join(self.doubts[:_MAX_TOLD])
        more = f"; and {len(self.doubts) - _MAX_TOLD} more" if len(self.doubts) > _MAX_TOLD else ""
        return f"the contract has to say more (holdfast model inspect proposes it): {told}{more}"

    def proposal(self) -> str:
        """Returns a contract to look over, with a question wherever one is open."""
        document = self.result()
        notes = {**notes_of(document, self._inputs, self._outputs), **self._notes}
        head = "# A proposal: answer each question (# ?), then delete its mark.\n"
        return head + to_toml(document, notes)

    # -- what tensors are -------------------------------------------------------------------------

    def _check_names(self, switches: Tensors) -> None:
        """Refuses names that the graph does not have: else what follows would be beside the point."""
        named = [("input", entry.get("name"), self._inputs) for entry in self._tokens]
        named += [("state's input", entry.get("input"), self._inputs) for entry in self._states]
        named += [("state's output", entry.get("output"), self._outputs) for entry in self._states]
        named += [("output", entry.get("name"), self._outputs) for entry in self._results]
        named += [("session_input", entry.get("name"), self._inputs) for entry in self._session_inputs]
        named += [("constant", name, {**self._inputs, **switches}) for name in self._constants]
        uses = Counter(name for what, name, _ in named if what not in ("state's output", "output"))
        for what, name, tensors in named:
            if tensors is not self._outputs and name is not None and uses[name] > 1:
                raise ContractError(f"input {name!r} is named twice")
            if isinstance(name, str) and name not in tensors:
                near = difflib.get_close_matches(name, tensors, n=1)
                known = f"; did you mean {near[0]!r}?" if near else f"; it has {_listed(tensors)}"
                raise ContractError(
                    f"the contract names the {what} {name!r}, which the graph has not{known}"
                )

    def _complete_states(self) -> None:
        """Finds the other half of states that are named by one."""
        for state in self._states:
            if "input" not in state and state.get("name") in self._inputs:
                state["input"] = state["name"]
            if "input" in state and "output" not in state:
                self._find_half(
                    state, "output", pair_names([state["input"]], self._left_outputs(), self._fits)
                )
            elif "output" in state and "input" not in state:
                pairs = pair_names(self._left_inputs(), [state["output"]], self._fits)
                self._find_half(state, "input", {output: name for name, output in pairs.items()})
            elif "input" not in state:
                raise ContractError(f"a state lacks its input and output; it has {_listed(state)}")

    def _find_half(self, state: Entry, half: str, pairs: Mapping[str, str]) -> None:
        known = state["input" if half == "output" else "output"]
        if known in pairs:
            state[half] = pairs[known]
        else:
            self.doubts.append(f"which {half} belongs to the state {known!r}")
            state[half] = "?"
            self._notes["state", str(state["input"]), half] = f"? {self.doubts[-1]}"

    def _pair(self) -> None:
        left = self._left_inputs()
        pairs = pair_names(left, self._left_outputs(), self._fits)
        self._states += [{"input": name, "output": pairs[name]} for name in left if name in pairs]

    def _name_token(self) -> None:
        """Gives an [input] without a name the one input that is left."""
        unnamed = [token for token in self._tokens if "name" not in token]
        left = [name for name in self._left_inputs() if self._inputs[name].shape] or self._left_inputs()
        if len(unnamed) == 1 and len(left) == 1:
            unnamed[0]["name"] = left[0]
        elif unnamed:
            raise ContractError(f"an [input] lacks its name; the graph has {_listed(self._inputs)}")

    def _take_rest(self) -> None:
        left = self._left_inputs()
        has_tokens = bool(self._tokens)
        tensors = [name for name in left if self._inputs[name].shape]
        if not has_tokens:
            is_kept = bool(self._states) and not self._could_be_states(tensors)
            if is_kept and (len(tensors or left) == 1 or self._all_have_time(tensors)):
                tokens = tensors or left
                self._tokens = [{"name": name} for name in tokens]
                left = [name for name in left if name not in tokens]
        if not left and not self._tokens:
            self.doubts.append(f"which input takes the tokens; the states are {_listed(self._inputs)}")
        if left or not (self._states or any("context" in token for token in self._tokens)):
            self._guess(left)

    def _could_be_states(self, left: list[str]) -> bool:
        """Says whether an input that is left has an output of its own shape, by which it might be a state.

        Where other states have names that pair, one whose name does not is none; so only mere shapes that
        no token has count: not the first axes of audio that goes in and comes out.
        """
        return len(left) > 1 and any(
            self._inputs[name].shape and self._fits(name, other)
            for name in left
            for other in self._left_outputs()
        )

    def _all_have_time(self, names: list[str]) -> bool:
        drafts = [self._draft("token", name, {"name": name}) for name in names]
        others = [
            self._draft("state", state["input"], state) for state in self._states if self._is_known(state)
        ]
        AxisFinder([*drafts, *others]).find()
        return len(drafts) > 1 and all(draft.has(TIME) and draft.is_dynamic for draft in drafts)

    def _guess(self, left: list[str]) -> None:
        """Notes what is open, and puts guesses into the proposal."""
        guesses = guess_rest(
            {name: self._inputs[name] for name in left},
            {name: self._outputs[name] for name in self._left_outputs()},
            self._fits,
            has_tokens=bool(self._tokens),
            has_states=bool(self._states),
        )
        left_outputs = self._left_outputs()
        for name in left[:_MAX_TOLD]:
            near = [other for other in namesakes(name, left_outputs) if other != name]
            if near and not self._fits(name, near[0]):
                shown = describe(self._outputs[near[0]])
                mine = describe(self._inputs[name])
                self.doubts.append(
                    f"{name!r} is {mine}, but {near[0]!r}, which should follow it, is {shown}"
                )
        if not self._states and not guesses.states:
            self.doubts.append(
                "which output is the next state of which input; without a state an input has a context"
            )
        if left:
            shown = ", ".join(f"{name!r} ({describe(self._inputs[name])})" for name in left[:4])
            more = f" and {len(left) - 4} more" if len(left) > 4 else ""
            verb = "is" if len(left) == 1 else "are"
            self.doubts.append(f"what {shown}{more} {verb}: token, state, constant or session_input")
        self._tokens += guesses.tokens
        if len(self._tokens) == 1 and not (self._states or guesses.states):
            self._ask_context(self._tokens[0])
        self._states += guesses.states
        self._session_inputs += guesses.session_inputs
        self._constants |= guesses.constants
        self._notes |= guesses.notes

    def _ask_context(self, token: Entry) -> None:
        for key, question in (("token", "new values per token"), ("context", "kept from before it")):
            token[key] = "?"
            self._notes["input", token["name"], key] = f"? how many {question}"

    def _complete_outputs(self) -> None:
        named = {entry.get("name") for entry in self._results}
        if not self._results or "?" in named:
            self._results += [{"name": name} for name in self._left_outputs()]
        for entry in self._results:
            entry.setdefault("role", "raw")

    def _left_inputs(self) -> list[str]:
        taken = {entry.get("name") for entry in (*self._tokens, *self._session_inputs)}
        taken |= {state.get("input") for state in self._states} | self._constants.keys()
        return [name for name in self._inputs if name not in taken]

    def _left_outputs(self) -> list[str]:
        taken = {entry.get("name") for entry in self._results}
        taken |= {state.get("output") for state in self._states}
        return [name for name in self._outputs if name not in taken]

    def _fits(self, name: str, follower: str) -> bool:
        """Says whether an output has the type and the shape of an input, as far as both are declared."""
        before, after = self._inputs[name], self._outputs[follower]
        if before.dtype != after.dtype or len(before.shape) != len(after.shape):
            return before.dtype == after.dtype and not after.shape  # it may have no shape at all
        return all(
            mine == theirs or not (isinstance(mine, int) and isinstance(theirs, int))
            for mine, theirs in zip(before.shape, after.shape, strict=True)
        )

    # -- axes -------------------------------------------------------------------------------------

    def _find_axes(self) -> None:
        kinds = (
            ("input", "token", self._tokens, "name"),
            ("state", "state", [state for state in self._states if self._is_known(state)], "input"),
            ("session_input", "session_input", self._session_inputs, "name"),
            ("output", "output", self._results, "name"),
        )
        found = [
            (topic, entry, self._draft(kind, entry[key], entry))
            for topic, kind, entries, key in kinds
            for entry in entries
        ]
        AxisFinder(draft for *_, draft in found).find()
        for topic, entry, draft in found:
            if "axes" not in entry:
                self._write_axes(topic, entry, draft)

    def _is_known(self, state: Entry) -> bool:
        return state.get("input") in self._inputs and state.get("output") in self._outputs

    def _draft(self, kind: Any, name: str, entry: Entry) -> Draft:
        tensor = (self._outputs if kind == "output" else self._inputs)[name]
        sides = [tensor.shape]
        if kind == "state":
            sides.append(self._outputs[entry["output"]].shape)
        given = entry.get("axes")
        is_id = kind == "token" and self._is_id(entry)
        return Draft(kind, name, is_id, sides, given if isinstance(given, list) else None)

    def _write_axes(self, topic: str, entry: Entry, draft: Draft) -> None:
        entry["axes"] = ["?" if axis is None else axis for axis in draft.axes]
        if not draft.open:
            return
        tensors = self._outputs if topic == "output" else self._inputs
        shown = f"{draft.name!r} ({describe(tensors[draft.name])})"
        numbers = ", ".join(map(str, draft.open))
        plural = "s" if len(draft.open) > 1 else ""
        doubt = (
            f"what axis {numbers} of {shown} is" if not plural else f"what axes {numbers} of {shown} are"
        )
        question = "its extent"
        if topic == "state":
            doubt += f" ({_GROWING})"
        elif topic == "input" and draft.has(BATCH):
            question = "how many values a token has, what is kept before it included; or time"
        elif topic == "input":
            question = "batch, time, or how many values a token has, what is kept before it included"
            if plural and not draft.has(TIME):
                entry["axes"][draft.open[0]] = BATCH  # nearly always
        self.doubts.append(doubt)
        self._notes[topic, draft.name, "axes"] = f"? {question}"

    def _is_id(self, token: Entry) -> bool:
        usual = "token_id" if self._inputs[token["name"]].dtype in _ID_DTYPES else "features"
        return bool(token.get("kind", usual) == "token_id")

    def _check_vocabulary(self) -> None:
        ids = [token for token in self._tokens if self._is_id(token)]
        if len(self._tokens) == 1 and ids and "vocabulary" not in self._document:
            lasts = [
                entry["axes"][-1]
                for entry in self._results
                if isinstance(entry["axes"], list) and entry["axes"]
            ]
            numbers = [extent for extent in lasts if isinstance(extent, int) and extent > 1]
            self._document["vocabulary"] = {"kind": "ids", "size": numbers[0] if numbers else "?"}
            self.doubts.append(f"how many ids {ids[0]['name']!r} takes: [vocabulary] size")
            self._notes["vocabulary", "size", ""] = "? how many ids there are"
        for token in ids if len(self._tokens) > 1 else ():
            if "size" not in token:
                token["size"] = "?"
                self.doubts.append(f"how many ids {token['name']!r} takes: its size")
                self._notes["input", token["name"], "size"] = "? how many ids there are"


def _entries(document: Mapping[str, Any], topic: str) -> list[Entry]:
    """Returns copies of the tables of a topic.

    Raises:
        ContractError: It is no table, nor several.
    """
    value = document.get(topic, [])
    entries = [value] if isinstance(value, Mapping) else value
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ContractError(f"{topic} is no table; write [[{topic}]]")
    for entry in entries:
        for key in ("name", "input", "output"):
            if key in entry:
                name_of(entry[key], f"{topic}: {key}")
    return [dict(entry) for entry in entries]


def _table(document: Mapping[str, Any], topic: str) -> Mapping[str, Any]:
    value = document.get(topic, {})
    if not isinstance(value, Mapping):
        raise ContractError(f"{topic} is no table; write [{topic}]")
    return value


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - 6} more" if len(shown) > 6 else ""
    return (", ".join(repr(name) for name in shown[:6]) or "none") + more
