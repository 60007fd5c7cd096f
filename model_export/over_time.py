"""Gives a graph of one token a time axis: the whole graph becomes the body of one Scan. Knows no torch."""

from collections.abc import Collection, Mapping, Sequence

import onnx
from onnx import helper

INSIDE = "step/"
"""How names of the body's inputs and outputs begin."""


def scan_over_time(
    model: onnx.ModelProto,
    tokens: Collection[str],
    states: Mapping[str, str],
    outputs: Sequence[str],
    time: str = "time",
) -> onnx.ModelProto:
    """Returns the graph that takes T tokens: tokens and outputs have a time axis in front.

    Args:
        model: Takes one token and the states; what else it takes is the same for all tokens.
        tokens: Names of inputs with the token.
        states: Names of outputs with the next states, by those of the inputs.
        outputs: Names of the other outputs.
        time: Name of the new axis.
    """
    graph = model.graph
    given = {info.name: info for info in graph.input}
    made = {info.name: info for info in graph.output}
    renamed = {name: INSIDE + name for name in (*states, *tokens)}
    nodes = [_renamed(node, renamed) for node in graph.node]
    body_outputs = []
    for name in (*states.values(), *outputs):
        nodes.append(helper.make_node("Identity", [renamed.get(name, name)], [f"{INSIDE}{name}"]))
        body_outputs.append(_named(made[name], f"{INSIDE}{name}"))
    # a name of the body may not be one of the graph around it
    inner = {name: f"{INSIDE}{name}/made" for name in (*states.values(), *outputs)}
    nodes = [_renamed(node, inner, outputs_too=True) for node in nodes]
    body = helper.make_graph(
        nodes, "step", [_named(given[name], renamed[name]) for name in (*states, *tokens)], body_outputs
    )
    scan = helper.make_node(
        "Scan",
        [*states, *tokens],
        [*states.values(), *outputs],
        body=body,
        num_scan_inputs=len(tokens),
    )
    whole = helper.make_graph(
        [scan],
        graph.name,
        [_with_time(info, time) if info.name in tokens else info for info in graph.input],
        [_with_time(info, time) if info.name in outputs else info for info in graph.output],
        initializer=graph.initializer,
    )
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.CopyFrom(whole)
    return result


def _renamed(
    node: onnx.NodeProto, names: Mapping[str, str], *, outputs_too: bool = False
) -> onnx.NodeProto:
    """Returns a node that reads, and if asked writes, under other names, in its own graphs too."""
    result = onnx.NodeProto()
    result.CopyFrom(node)
    result.input[:] = [names.get(name, name) for name in node.input]
    if outputs_too:
        result.output[:] = [names.get(name, name) for name in node.output]
    for attribute in result.attribute:
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            inner = [_renamed(part, names, outputs_too=outputs_too) for part in graph.node]
            del graph.node[:]
            graph.node.extend(inner)
            for info in graph.output:
                info.name = names.get(info.name, info.name)
    return result


def _named(info: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    result = onnx.ValueInfoProto()
    result.CopyFrom(info)
    result.name = name
    return result


def _with_time(info: onnx.ValueInfoProto, time: str) -> onnx.ValueInfoProto:
    tensor = info.type.tensor_type
    shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    return helper.make_tensor_value_info(info.name, tensor.elem_type, [time, *shape])
