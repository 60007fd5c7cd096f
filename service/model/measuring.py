"""Measures a graph: how long its steps take, and which extents its outputs have. Starts no thread."""

import io
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.model.bundle import Bundle
from service.model.contract import DTYPES, ContractError, GraphTensor, opening_rows
from service.model.contract_reader import Graph
from service.model.document import from_metadata, from_toml
from service.model.inspection import BATCH_SIZES
from service.model.pairing import complete
from service.model.protocol import Model
from service.model.step_graph import BareGraph
from service.model.trial_inputs import fits

_MOST_RUNS, _MOST_S = 30, 1.0
"""Of one batch size."""

_SIZES = ((2, 3), (3, 5))
"""Rows and tokens of two runs: an extent that is the same in both is the graph's own."""


def step_times(graph: Model) -> dict[int, float]:
    """Returns the median time of a step of one token in seconds, by batch size; first runs do not count."""
    contract = graph.contract
    features = () if contract.input.kind == "token_id" else (contract.input.width,)
    times = {}
    for row_count in BATCH_SIZES:
        if not fits(contract, row_count, 1):
            continue
        tokens = np.zeros((1, row_count, *features), contract.input.dtype)
        states = opening_rows(contract, row_count)
        graph.run(tokens, states)
        taken: list[float] = []
        while len(taken) < _MOST_RUNS and sum(taken) < _MOST_S:
            start_s = time.perf_counter()
            graph.run(tokens, states)
            taken.append(time.perf_counter() - start_s)
        times[row_count] = sorted(taken)[len(taken) // 2]
    return times


def measured_outputs(graph: BareGraph, bundle: Bundle) -> dict[str, list[int | None]]:
    """Returns the extents of outputs that the graph does not declare, by running it on zeros.

    Only where the contract says, or it follows, what all inputs are; else {}.

    Returns:
        Output -> its extents; None where they follow the rows or tokens.
    """
    try:
        document = _document(graph, bundle)
        found = [graph.shapes(_feed(document, graph.declared, bundle, *sizes)) for sizes in _SIZES]
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 -- onnxruntime raises a dozen classes; nothing is measured then
        return {}
    return {
        name: [one if one == two else None for one, two in zip(shape, found[1][name], strict=True)]
        for name, shape in found[0].items()
        if len(shape) == len(found[1][name])
    }


def _document(graph: BareGraph, bundle: Bundle) -> Mapping[str, Any]:
    """Returns the contract, if it lacks no more than extents; else with guesses."""
    text = bundle.contract
    said = (from_toml(text) if text else from_metadata(graph.metadata)) or {}
    try:
        return complete(said, *graph.declared)
    except ContractError as error:
        return from_toml(error.proposal.encode())


def _feed(
    document: Mapping[str, Any], declared: Graph, bundle: Bundle, row_count: int, token_count: int
) -> dict[str, NDArray[Any]]:
    """Returns zeros for all inputs; raises if an axis of one is not known."""
    fed = [*document["input"], *document.get("session_input", [])]
    axes = {entry["name"]: entry["axes"] for entry in fed}
    axes |= {state["input"]: state["axes"] for state in document.get("state", [])}
    feed = {
        name: _zeros(declared.inputs[name], own, {"batch": row_count, "time": token_count})
        for name, own in axes.items()
    }
    for name, value in document.get("constants", {}).items():
        tensor = {**declared.switches, **declared.inputs}[name]
        array = np.load(io.BytesIO(bundle.files[value])) if isinstance(value, str) else np.array(value)
        shape = [1] * len(tensor.shape) if array.size == 1 else array.shape
        feed[name] = array.astype(DTYPES[tensor.dtype]).reshape(shape)
    return feed


def _zeros(tensor: GraphTensor, axes: list[Any], counts: Mapping[str, int]) -> NDArray[Any]:
    shape = [
        extent if isinstance(extent, int) else axis if isinstance(axis, int) else counts[axis]
        for extent, axis in zip(tensor.shape, axes, strict=True)
    ]
    return np.zeros(shape, DTYPES[tensor.dtype])
