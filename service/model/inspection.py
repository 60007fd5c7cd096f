"""Has a model file looked at for people, by a process of its own; no onnxruntime here.

The process is as confined as that of a check, and no more believed: what it says is looked through, and the
contract is made here, from what the graph declares.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from service.model.apart import PARTS
from service.model.bundle import Bundle, pack, unpack
from service.model.check import LIMITS, CheckLimits, all_said, one_line, start_confined
from service.model.contract import ContractError, GraphTensor
from service.model.contract_reader import Graph
from service.model.contract_text import notes_of, to_toml
from service.model.document import from_metadata, from_toml
from service.model.pairing import complete

PROCESS = "service.model.inspect_process"
BATCH_SIZES = (1, 8, 64)
"""Of which a step is timed."""
MAX_REPORT_BYTES = 4 << 20


class Inspection(NamedTuple):
    """What was found of a model file.

    Attributes:
        refusal: Why it is not served; "" if it is.
        operators: How many nodes have each operator.
        declared: Inputs and outputs; None if it could not be loaded.
        contract: contract.toml, complete or as a proposal; "" if what there is cannot be read.
        is_measured: It is complete, for what was measured; the server does not know that by itself.
        step_s: Median time of a step of one token by batch size, seconds.
        differences: Largest relative difference that the trial found, by kind: `rows`, `tokens`, `mixed`.
        state_bytes: Of one session.
    """

    refusal: str
    operators: Mapping[str, int]
    declared: Graph | None
    contract: str
    is_measured: bool
    step_s: Mapping[int, float]
    differences: Mapping[str, float]
    state_bytes: int


def inspect_model(path: Path, data: bytes, limits: CheckLimits = LIMITS) -> Inspection:
    """Has a model looked at.

    Args:
        path: For messages only; it is not opened.
        data: The model, see `bundle`.
        limits: What this may take.

    Raises:
        ModelFileError: The process cannot be started.
    """
    process = start_confined(PROCESS, path, data, limits)
    said, ending = all_said(process, limits.wall_s, MAX_REPORT_BYTES)
    try:
        report = _Report(json.loads(said))
    except (RecursionError, TypeError, ValueError):
        reason = f"its check {ending}; the file is damaged or not what it seems"
        return Inspection(reason, {}, None, "", False, {}, {}, 0)
    graph = report.graph()
    contract, is_measured = "", False
    if graph is not None:
        contract, is_measured = _contract(unpack(data), report, graph)
    times = report.numbers("step_s")
    return Inspection(
        one_line(report.text("refusal").encode(errors="replace")),
        {name: int(count) for name, count in report.numbers("operators").items()},
        graph,
        contract,
        is_measured,
        {size: times[str(size)] for size in BATCH_SIZES if str(size) in times},
        report.numbers("differences"),
        report.number("state_bytes"),
    )


def inspect_completed(path: Path, data: bytes) -> tuple[bytes, Inspection]:
    """Has a model looked at, with the contract that measuring completes where the file alone does not do.

    Returns:
        The model, with that contract if it helps, and what was found of it.

    Raises:
        ModelFileError: The process cannot be started.
    """
    found = inspect_model(path, data)
    if found.is_measured:
        completed = pack(unpack(data)._replace(contract=found.contract.encode()))
        again = inspect_model(path, completed)
        if not again.refusal:
            return completed, again
    return data, found


def _contract(bundle: Bundle, report: "_Report", graph: Graph) -> tuple[str, bool]:
    """Returns the contract as text, and whether it is complete for what was measured."""
    known = _known(graph, report)
    try:
        said = from_toml(bundle.contract) if bundle.contract else from_metadata(report.texts("metadata"))
        document = complete(said or {}, graph.inputs, known, graph.switches)
    except ContractError as error:
        return error.proposal, False
    notes = notes_of(document, graph.inputs, graph.outputs)
    for part in (part for part in PARTS if part in report.words("apart")):
        document[f"{part}_per_run"] = 1
        notes[f"{part}_per_run", "", ""] = f"? the graph mixes {part}: it would get one a run"
    for name in known:
        if known[name] != graph.outputs[name]:
            notes["output", name, "axes"] = "as measured"
    return to_toml(document, notes), known != graph.outputs


def _known(graph: Graph, report: "_Report") -> dict[str, GraphTensor]:
    """Returns the outputs with the extents that were measured."""
    measured = report.lists("measured")
    return {name: _with_extents(tensor, measured.get(name)) for name, tensor in graph.outputs.items()}


def _with_extents(tensor: GraphTensor, extents: list[Any] | None) -> GraphTensor:
    if extents is None or len(extents) != len(tensor.shape):
        return tensor
    return replace(
        tensor,
        shape=tuple(
            found if isinstance(found, int) and not isinstance(declared, int) else declared
            for declared, found in zip(tensor.shape, extents, strict=True)
        ),
    )


class _Report:
    """What the process said; of each part, what is of the expected kind.

    Raises:
        TypeError: It is no object.
    """

    def __init__(self, said: Any) -> None:
        if not isinstance(said, dict):
            raise TypeError("no object")
        self._said = said

    def text(self, key: str) -> str:
        """Returns a text; "" if it is none."""
        value = self._said.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int:
        """Returns a number; 0 if it is none."""
        value = self._said.get(key)
        return value if isinstance(value, int) else 0

    def texts(self, key: str) -> dict[str, str]:
        """Returns texts by name."""
        return {name: value for name, value in self._table(key).items() if isinstance(value, str)}

    def numbers(self, key: str) -> dict[str, float]:
        """Returns numbers by name."""
        return {name: value for name, value in self._table(key).items() if isinstance(value, int | float)}

    def lists(self, key: str) -> dict[str, list[Any]]:
        """Returns lists by name."""
        return {name: value for name, value in self._table(key).items() if isinstance(value, list)}

    def words(self, key: str) -> list[str]:
        """Returns texts."""
        value = self._said.get(key)
        return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []

    def graph(self) -> Graph | None:
        """Returns what the graph declares; None if it was not said."""
        if "switches" not in self._said:
            return None
        return Graph(self._tensors("inputs"), self._tensors("outputs"), self._tensors("switches"))

    def _tensors(self, key: str) -> dict[str, GraphTensor]:
        tensors = {}
        for name, parts in self.lists(key).items():
            dtype, shape = (*parts, None, None)[:2]
            extents = shape if isinstance(shape, list) else []
            tensors[name] = GraphTensor(
                str(dtype),
                tuple(extent if isinstance(extent, int | str) else None for extent in extents),
            )
        return tensors

    def _table(self, key: str) -> dict[str, Any]:
        value = self._said.get(key)
        return value if isinstance(value, dict) else {}
