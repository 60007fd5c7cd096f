"""Turns a trained network into a step graph and lets it out only through the parity gate.

How the graph is built is told in `graph`; here weights leave torch and the file is written.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from model_export.contract import byte_network_contract
from model_export.graph import Layer, Weights, build_graph
from model_export.networks import StepNetwork
from model_export.parity import Parity, check_parity


def export(
    network: StepNetwork,
    target: Path,
    *,
    training: dict[str, Any],
    text: bytes,
    apart: Collection[str] = (),
) -> Parity:
    """Writes the step graph of a network.

    Args:
        network: Trained, in evaluation mode.
        target: The file to write; its folder is made. It appears only if the gate lets it pass.
        training: Facts to record.
        text: Bytes for the gate to run.
        apart: What the server is to run one at a time, see `byte_network_contract`.

    Returns:
        What the gate measured.

    Raises:
        ParityError: The graph does not compute what the network computes; no file is left.
    """
    model = build_graph(weights_of(network))
    parity = check_parity(network, model.SerializeToString(), text)
    metadata = byte_network_contract(
        network.hidden, network.state_names, training=training, parity=parity._asdict(), apart=apart
    )
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(".draft")
    draft.write_bytes(model.SerializeToString())
    draft.replace(target)
    return parity


def weights_of(network: StepNetwork) -> Weights:
    """Takes the weights out of a network."""
    recurrent = network.recurrent
    layer = Layer(
        inputs=network.table.detach().numpy(),
        recurrent=None if recurrent is None else recurrent.weight.detach().numpy().T,
        bias=None if recurrent is None else recurrent.bias.detach().numpy(),
    )
    readout = network.readout
    return Weights(network.kind, [layer], readout.weight.detach().numpy().T, readout.bias.detach().numpy())
