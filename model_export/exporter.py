"""A PyTorch network becomes a model that the server serves: step graph and contract, through the gate."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import torch
from torch import nn

from model_export import nested
from model_export.closed_loop import Measured, check_closed_loop
from model_export.draws import Draws, shape_of
from model_export.drift import MAX_DRIFT, check_drift
from model_export.examine import examine
from model_export.export_error import ExportError
from model_export.plain_cells import with_plain_cells
from model_export.quantise import quantise
from model_export.routes import ROUTES, StepGraph, trace
from model_export.soundness import (
    check_parts,
    check_runs,
    check_states_matter,
    difference,
    same,
    short,
)
from model_export.step import BATCH, Example, Layout, Step, arranged
from model_export.step_contract import (
    Meaning,
    document,
    draws_for,
    initial_values,
    named_outputs,
    vocabulary_size,
)
from model_export.surgery.value import Refused
from model_export.written import write_model
from service.model.files import MODEL_FILE


class Smaller(NamedTuple):
    """How the graph is to be made smaller; see `quantise`."""

    int8: bool
    float16_state: bool
    max_drift: float


class Exported(NamedTuple):
    """What an export wrote.

    Attributes:
        folder: With `model.onnx` and `contract.toml`.
        contract: What the latter says.
        route: How the graph was made, one of `routes.ROUTES`.
        measured: What the gate measured.
    """

    folder: Path
    contract: dict[str, Any]
    route: str
    measured: Measured


def export_step(
    module: nn.Module,
    example: Any,
    *,
    out: str | Path,
    role: str | Mapping[str, str] = "raw",
    labels: Sequence[str] | Mapping[str, Sequence[str]] = (),
    vocabulary: int | str | None = None,
    context: int = 0,
    initial: Any = None,
    description: str = "",
    feedback: str = "",
    batched: bool = True,
    one_token: bool = False,
    overwrite: bool = False,
    int8: bool = False,
    float16_state: bool = False,
    max_drift: float = MAX_DRIFT,
) -> Exported:
    """Writes a network as a model.

    Args:
        module: Called as `module(x, state)`, returns `(y, state)`; x, y and state are tensors, or tuples,
            dicts, NamedTuples or dataclasses of tensors. One of torch's recurrent modules or cells is
            such a module. It is copied, and the copy is put into evaluation mode.
        example: `(x, state)`, or `(x, None)` if the network then begins with zeros; or a dict with `x`,
            `state` and, by name, the `session` inputs that are given once a session (passed by keyword).
            The state is the one that a session starts at.
        out: Folder of the version, as `models/mine/1`.
        role: Of the output, or by output: `logits`, `probs`, `log_probs`, `score`, `token_log_prob`, `raw`.
        labels: Names of the classes, of the output or by output.
        vocabulary: Of ids: `bytes` or how many there are; by default as the network's only embedding.
        context: How many of the values of x are those of the tokens before; the server keeps them.
        initial: What every state starts at, a number, or by state a number or array.
        description: For people.
        feedback: Name of the output that is the next x where the network runs on by itself, as wide as x.
        batched: Whether the network takes several sessions at once.
        one_token: Says that x is one token; otherwise an axis that behaves like time is time.
        overwrite: Writes over a model that is there.
        int8: Keeps weights as int8 with a scale per output channel.
        float16_state: Keeps states as float16.
        max_drift: How much either may change, see `check_drift`.

    Raises:
        ExportError: The network cannot be served, or no graph of it passes the gate; no file is left.
    """
    folder = Path(out)
    if (folder / MODEL_FILE).exists() and not overwrite:
        raise ExportError(
            f"{folder / MODEL_FILE} exists, and a version that is served never changes: write the next "
            "number, or say overwrite=True (--overwrite)"
        )
    if not isinstance(module, nn.Module):
        raise ExportError(f"the network is {type(module).__name__}, expected a torch.nn.Module")
    module = getattr(module, "_orig_mod", module)  # of torch.compile
    parts = _parts(example)
    meaning = Meaning(
        _by_name(role, "" if role != "raw" else None),
        _by_name(labels, "" if labels else None),
        vocabulary,
        context,
        _by_name(initial, "" if initial is not None else None),
        description,
        feedback,
    )
    check_parts(module)
    with _one_thread():
        graph, contract, measured = _made(module, parts, meaning, batched=batched, one_token=one_token)
    contract = _write(folder, graph.model, contract, Smaller(int8, float16_state, max_drift))
    return Exported(folder, contract, graph.route, measured)


def _made(
    module: nn.Module, parts: Example, meaning: Meaning, *, batched: bool, one_token: bool
) -> tuple[StepGraph, dict[str, Any], Measured]:
    step = Step(_copied(module), parts)
    step.eval()
    if not parts.states:
        parts = step.example = _with_own_state(step)
    check_runs(step)
    size = vocabulary_size(meaning, module)
    draws = draws_for(parts, size)
    layout = named_outputs(examine(step, draws, batched=batched, one_token=one_token), meaning)
    starts, said = initial_values(parts, layout.states, meaning)
    step.example = Example(parts.x, nested.rebuilt(parts.state, starts), parts.session)
    _check_states(step, layout, draws)
    graph, measured = _first_that_passes(step, layout, draws)
    facts = {
        "parity": str(measured),
        "route": graph.route,
        "network": type(module).__name__,
        "torch": torch.__version__,
    }
    contract = document(graph.layout, (graph.inputs, graph.outputs), meaning, size, said, facts)
    return graph, contract, measured


@torch.inference_mode()
def _with_own_state(step: Step) -> Example:
    """Returns an example without a state, with that of zeros that the network itself would take.

    Raises:
        ExportError: It returns a state, and begins with another one than zeros.
    """
    example = step.example
    try:
        y, after = step.module(example.x, example.state, **example.session)
        given = nested.tensors(after, "the next state")
    except (TypeError, ValueError):
        return example  # it has no state
    if not given:
        return example
    zeros = [torch.zeros_like(tensor) for tensor in given]
    other, _ = step.module(example.x, nested.rebuilt(after, zeros), **example.session)
    pairs = zip(nested.tensors(y, "y"), nested.tensors(other, "y"), strict=True)
    if not all(same(difference(ours, theirs), ours) for ours, theirs in pairs):
        raise ExportError(
            "the example has no state, and the network begins with another one than zeros: give the state "
            "that a session starts at"
        )
    return Example(example.x, nested.rebuilt(after, zeros), example.session)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Steps are small: threads that wait for each other cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _parts(example: Any) -> Example:
    if isinstance(example, Mapping):
        unknown = set(example) - {"x", "state", "session"}
        if unknown or "x" not in example:
            raise ExportError(
                f"the example has {', '.join(map(str, example))}, expected x, state and session"
            )
        result = Example(example["x"], example.get("state"), dict(example.get("session") or {}))
    elif isinstance(example, tuple | list) and len(example) == 2:
        result = Example(example[0], example[1])
    else:
        raise ExportError(
            f"the example is {type(example).__name__}, expected (x, state), or a dict with x, state and "
            "session"
        )
    if not result.tokens:
        raise ExportError("x of the example holds no tensor")
    return result


def _by_name(given: Any, alone: str | None) -> Mapping[str, Any]:
    if isinstance(given, Mapping):
        return given
    return {} if alone is None else {alone: given}


def _copied(module: nn.Module) -> nn.Module:
    """Returns a copy, so that nothing of the caller's is changed."""
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise ExportError(f"the network cannot be copied: {short(error)}") from error


def _check_states(step: Step, layout: Layout, draws: Draws) -> None:
    sizes = [
        tensor.shape[part.axes.index(BATCH)]
        for tensor, part in zip(step.example.states, layout.states, strict=True)
        if BATCH in part.axes
    ]
    rows = sizes[0] if sizes else 1
    tokens = [
        [
            arranged(draws.draw(number, shape_of(part, rows, 1)), part)
            for number, part in enumerate(layout.tokens)
        ]
        for _ in range(4)
    ]
    check_states_matter(step, layout.states, tokens, step.example.given)


def _first_that_passes(step: Step, layout: Layout, draws: Draws) -> tuple[StepGraph, Measured]:
    plain = copy.deepcopy(step)
    layers = with_plain_cells(plain)
    refusals: dict[str, str] = {}
    for route in ROUTES:
        remarks: tuple[str, ...] = ()
        try:
            graph = trace(plain, layout, layers, draws, route)
            if graph is None:
                continue
            remarks = graph.remarks
            return graph, check_closed_loop(step, layout, graph, draws)
        except ExportError as error:
            hint = f" (a number is taken for good at {remarks[0]})" if remarks else ""
            refusals[route] = f"{error}{hint}"
        except Exception as error:  # noqa: BLE001 -- whatever the exporter raises, another way may work
            refusals[route] = short(error)
    told = "; ".join(f"{route}: {reason}" for route, reason in refusals.items())
    raise ExportError(f"no graph computes what the network computes; {told}")


def _write(
    folder: Path, model: onnx.ModelProto, contract: dict[str, Any], smaller: Smaller
) -> dict[str, Any]:
    """Writes the folder, a smaller graph in it if asked for; returns the contract as written."""
    try:
        drift = None
        if smaller.int8 or smaller.float16_state:
            whole = model, contract
            model, contract = quantise(*whole, int8=smaller.int8, float16_state=smaller.float16_state)
            drift = check_drift(whole, (model, contract), max_drift=smaller.max_drift)
            contract["facts"] = {**contract.get("facts", {}), "drift": drift.in_words()}
        write_model(model, contract, folder, overwrite=True)
        if drift is not None:
            drift.write(folder)
    except Refused as error:
        raise ExportError(str(error)) from None
    return contract
