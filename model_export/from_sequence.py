"""Turns a whole-sequence ONNX graph into a step graph with its contract, or says why it cannot.

A whole-sequence graph takes all tokens at once and starts from zeros; a step graph takes some tokens and
the state, and gives the state behind them. numpy and onnx, and onnxruntime for the gate; never torch.
"""

from collections.abc import Mapping
from typing import Any

import onnx
from numpy.typing import NDArray

from model_export.surgery.convert import Attempt, StepGraph, convert
from model_export.surgery.gate import check
from model_export.surgery.graph_inputs import GraphInputs, Reading, readings, sort_inputs
from model_export.surgery.preparing import prepared
from model_export.surgery.value import Refused

_FAR = 0.6
"""Of the nodes that the best reading got through."""

__all__ = ["Refused", "to_step_graph"]


def to_step_graph(
    model: onnx.ModelProto, constants: Mapping[str, NDArray[Any]] | None = None
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Converts a whole-sequence graph.

    Args:
        model: With its weights inside.
        constants: Graph input -> value, for weights (and first states) that the file takes as inputs.

    Returns:
        The step graph, and its contract as `contract.toml` has it, with the parity gate's outcome in
        `facts`.

    Raises:
        Refused: It cannot be one; the message has the reason and the way out in one line.
    """
    whole = prepared(model, constants or {})
    inputs = sort_inputs(whole.graph)
    step, reading = _likeliest(whole, inputs)
    parity = check(whole, inputs, reading, step)
    document = {**step.document, "facts": {"parity": _in_words(parity._asdict())}}
    return step.model, document


def _likeliest(model: onnx.ModelProto, inputs: GraphInputs) -> tuple[StepGraph, Reading]:
    """Returns what the first reading that holds makes of the graph.

    Raises:
        Refused: None holds; the reason is that of the likeliest one that went far.
    """
    failed: list[Attempt] = []
    for reading in readings(inputs):
        tried = _tried(model, inputs, reading)
        if isinstance(tried, StepGraph):
            return tried, reading
        failed.append(tried)
    if not failed:
        raise Refused("no axis of its inputs can be time")
    if failed[0].is_stateless:
        raise Refused(str(failed[0]))
    speaking = [attempt for attempt in failed if not attempt.is_stateless and not attempt.is_misread]
    speaking = speaking or failed
    most = max(attempt.done_count for attempt in speaking)
    raise Refused(str(next(attempt for attempt in speaking if attempt.done_count >= _FAR * most)))


def _tried(model: onnx.ModelProto, inputs: GraphInputs, reading: Reading) -> StepGraph | Attempt:
    """Tries a reading, and again with the number of tokens that a shape in the graph seems to stand for."""
    try:
        return convert(model, inputs, reading)
    except Attempt as attempt:
        first = attempt
    for extent in first.extents:
        try:
            return convert(model, inputs, reading, extent)
        except Attempt:
            continue
    return first


def _in_words(figures: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.1e}"
        if isinstance(value, float)
        else f"{name.replace('_', ' ')} {value}"
        for name, value in figures.items()
    )
