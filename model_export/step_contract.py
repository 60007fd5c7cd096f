"""The contract.toml of an exported network: names and axes from its layout, meaning from the caller."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model_export.draws import Draws
from model_export.export_error import ExportError
from model_export.step import BATCH, Example, Layout, Part, canonical

ROLES = ("logits", "probs", "log_probs", "score", "token_log_prob", "raw")


class Meaning(NamedTuple):
    """What only the caller knows of a network.

    Attributes:
        roles: Of outputs, by name; "" is the only output.
        labels: Names of the classes of outputs, by name; "" is the only output.
        vocabulary: `bytes`, how many ids there are, or None to take it from the network's embedding.
        context: How many of a token's values are kept from the tokens before.
        initial: What states start at, by name; "" is every state; otherwise the example's state.
        description: For people.
        feedback: The output that is the next input where the network runs on by itself; "" is none.
    """

    roles: Mapping[str, str]
    labels: Mapping[str, Sequence[str]]
    vocabulary: int | str | None
    context: int
    initial: Mapping[str, Any]
    description: str
    feedback: str = ""


def vocabulary_size(meaning: Meaning, module: torch.nn.Module) -> int | None:
    """Returns how many ids there are, as said, or as the network's only embedding has rows."""
    if meaning.vocabulary == "bytes":
        return 256
    if isinstance(meaning.vocabulary, int):
        return meaning.vocabulary
    if meaning.vocabulary is not None:
        raise ExportError(f"vocabulary is {meaning.vocabulary!r}, expected 'bytes' or a number of ids")
    tables = [part for part in module.modules() if isinstance(part, torch.nn.Embedding)]
    return tables[0].num_embeddings if len(tables) == 1 else None


def draws_for(example: Example, size: int | None) -> Draws:
    """Returns what the network is tried on.

    Raises:
        ExportError: It takes ids, and it is not known how many there are.
    """
    examples = [*example.tokens, *example.given]
    sizes: list[int | None] = []
    for tensor in examples:
        is_id = tensor.dtype in (torch.int32, torch.int64, torch.int16, torch.uint8, torch.int8)
        if is_id and size is None:
            raise ExportError(
                "x holds ids and the network has no embedding, or several: say how many ids there are, "
                "with vocabulary=N or --vocabulary N (--vocabulary bytes for text as bytes)"
            )
        sizes.append(size if is_id else None)
    return Draws(examples, sizes)


def document(
    layout: Layout,
    names: tuple[Sequence[str], Sequence[str]],
    meaning: Meaning,
    size: int | None,
    initial: Mapping[str, Any],
    facts: Mapping[str, str],
) -> dict[str, Any]:
    """Returns the contract.

    Args:
        layout: Of the graph.
        names: Of its inputs, and of its outputs.
        meaning: See there.
        size: Of the vocabulary.
        initial: Of every state, as `initial_values` gives it.
        facts: For people.
    """
    inputs, outputs = names
    state_inputs = inputs[len(layout.tokens) :]
    state_outputs = outputs[len(layout.outputs) :]
    has_ids = any(_is_id(part) for part in layout.tokens)
    result: dict[str, Any] = {"contract_version": 1}
    if meaning.description:
        result["description"] = meaning.description
    result["input"] = [
        _token(part, name, meaning.context, size if len(layout.tokens) > 1 else None)
        for part, name in zip(layout.tokens, inputs, strict=False)
    ]
    result["state"] = [
        {
            "name": part.name,
            "input": given,
            "output": made,
            "axes": list(part.axes),
            "initial": initial[part.name],
        }
        for part, given, made in zip(layout.states, state_inputs, state_outputs, strict=False)
    ]
    result["output"] = [
        _output(part, name, len(layout.outputs) == 1, meaning)
        for part, name in zip(layout.outputs, outputs, strict=False)
    ]
    result["session_input"] = [{"name": part.name, "axes": list(part.axes)} for part in layout.session]
    if meaning.feedback:
        result["feedback"] = _fed_back(layout, outputs, meaning.feedback)
    if has_ids and len(layout.tokens) == 1:
        kind = "bytes" if meaning.vocabulary == "bytes" else "ids"
        result["vocabulary"] = {"kind": kind, "size": size}
    result["facts"] = dict(facts)
    return {key: value for key, value in result.items() if value != []}


def named_outputs(layout: Layout, meaning: Meaning) -> Layout:
    """Returns the layout with the only output called by its role.

    Raises:
        ExportError: A role or a list of labels is for no output, or does not fit it.
    """
    names = [part.name for part in layout.outputs]
    for topic, given in (("role", meaning.roles), ("labels", meaning.labels), ("initial", meaning.initial)):
        known = [part.name for part in layout.states] if topic == "initial" else names
        for name in given:
            if name == "" and (len(known) == 1 or topic == "initial"):
                continue
            if name not in known:
                raise ExportError(
                    f"{topic} is for {name or 'one output'!r}, the network has {', '.join(known)}; write "
                    f"{topic} as a dict by these names"
                )
    for part in layout.outputs:
        _check_meaning(
            part, _of(meaning.roles, part, len(names) == 1), _of(meaning.labels, part, len(names) == 1)
        )
    role = meaning.roles.get("") or meaning.roles.get(names[0])
    if len(names) == 1 and names[0] == "y" and role not in (None, "raw"):
        return layout._replace(outputs=(layout.outputs[0]._replace(name=str(role)),))
    return layout


def initial_values(
    example: Example, parts: Sequence[Part], meaning: Meaning
) -> tuple[list[Tensor], dict[str, Any]]:
    """Returns what sessions start at.

    Args:
        example: Its state is the one, unless said otherwise.
        parts: The states.
        meaning: See there.

    Returns:
        The example's states with it; what the contract says, by name.

    Raises:
        ExportError: The rows of the example's state differ, so none of them is the one.
    """
    tensors: list[Tensor] = []
    said: dict[str, Any] = {}
    for tensor, part in zip(example.states, parts, strict=True):
        value = meaning.initial.get(part.name, meaning.initial.get(""))
        row = canonical(tensor, part)
        row = row[0] if BATCH in part.axes else row
        if value is not None:
            row = _shaped(value, row, part)
        elif BATCH in part.axes and not all(torch.equal(other, row) for other in canonical(tensor, part)):
            raise ExportError(
                f"the rows of state {part.name!r} differ in the example, and a session starts at one of "
                "them: give the state that a session starts at, or say initial=0 (--initial 0)"
            )
        tensors.append(_spread(row, tensor, part))
        said[part.name] = _written(row)
    return tensors, said


def _token(part: Part, name: str, context: int, size: int | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "axes": list(part.axes)}
    entry["kind"] = "token_id" if _is_id(part) else "features"
    if _is_id(part) and size is not None:
        entry["size"] = size
    if context:
        if len(part.numbers) != 1 or not 0 < context < part.numbers[0]:
            raise ExportError(
                f"context is {context} and {name} has the axes {list(part.axes)}: expected one numbered "
                "axis, longer than the context"
            )
        entry |= {"token": part.numbers[0] - context, "context": context}
    return entry


def _output(part: Part, name: str, is_lone: bool, meaning: Meaning) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "axes": list(part.axes)}
    entry["role"] = _of(meaning.roles, part, is_lone) or "raw"
    labels = _of(meaning.labels, part, is_lone)
    return entry | ({"labels": list(labels)} if labels else {})


def _fed_back(layout: Layout, outputs: Sequence[str], feedback: str) -> str:
    names = [part.name for part in layout.outputs]
    if feedback not in names:
        raise ExportError(f"feedback is {feedback!r}, the network has the outputs {', '.join(names)}")
    return outputs[names.index(feedback)]


def _of(given: Mapping[str, Any], part: Part, is_lone: bool) -> Any:
    return given.get(part.name, next(iter(given.values()), None) if is_lone else None)


def _check_meaning(part: Part, role: str | None, labels: Sequence[str] | None) -> None:
    if role is not None and role not in ROLES:
        raise ExportError(f"role of output {part.name!r} is {role!r}, expected one of {', '.join(ROLES)}")
    width = part.numbers[-1] if part.numbers else 1
    if labels and len(labels) != width:
        raise ExportError(
            f"output {part.name!r} has {width} values and {len(labels)} labels; give one for each value"
        )


def _is_id(part: Part) -> bool:
    return not part.dtype.is_floating_point and not part.numbers


def _shaped(value: Any, row: Tensor, part: Part) -> Tensor:
    try:
        given = torch.as_tensor(value).to(row.dtype)
        return given.expand(row.shape) if given.dim() == 0 else given.reshape(row.shape)
    except (RuntimeError, TypeError, ValueError):
        raise ExportError(
            f"initial of state {part.name!r} does not fit {list(row.shape)}: give a number, or as many"
        ) from None


def _spread(row: Tensor, tensor: Tensor, part: Part) -> Tensor:
    """Returns the state with this row in each of its rows."""
    if BATCH not in part.axes:
        return row.clone()
    axis = part.axes.index(BATCH)
    return torch.stack([row] * tensor.shape[axis], axis)


def _written(row: Tensor) -> Any:
    """Returns a state as a number if that is all it holds, else as nested lists."""
    values = row.detach().numpy()
    if values.size == 0:
        return 0
    if (values == values.flat[0]).all():
        number = values.flat[0].item()
        is_short = isinstance(number, float) and number.is_integer() and abs(number) < 1e6
        return int(number) if is_short else number
    return values.tolist()
