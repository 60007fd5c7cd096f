"""Writes a step graph's contract into its metadata. The server reads it; see `service.model.contract`.

Pure: dictionaries in, JSON text out.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any

CONTRACT_VERSION = "1"

SWITCH = "token_log_prob_wanted"
"""Optional input, bool, true if it is not fed; if false, token_log_prob is zeros and costs nothing."""


def byte_network_contract(
    hidden: int,
    state_names: Sequence[str],
    *,
    training: dict[str, Any],
    parity: dict[str, Any],
    apart: Collection[str] = (),
) -> dict[str, str]:
    """Returns the `metadata_props` of a network over bytes.

    Args:
        hidden: Units of each state tensor.
        state_names: Names of the state tensors; input `x` is followed by output `x_next`.
        training: Facts on the training, for people.
        parity: Outcome of the parity gate, for people.
        apart: What the graph would mix, so that it is run one at a time: `rows`, `tokens`.
    """
    topics = {
        "input": {"name": "token", "kind": "token_id", "dtype": "int64", "width": 1, "time_axis": True},
        "states": [_state(name, hidden) for name in state_names],
        "outputs": [
            {"name": "logits", "dtype": "float32", "shape": [256], "role": "logits"},
            {
                "name": "token_log_prob",
                "dtype": "float32",
                "shape": [],
                "role": "token_log_prob",
                "switch": SWITCH,
            },
        ],
        "vocabulary": {"kind": "bytes", "size": 256},
        "training": training,
        "parity": parity,
        **({"apart": sorted(apart)} if apart else {}),
    }
    encoded = {f"holdfast.{name}": json.dumps(value) for name, value in topics.items()}
    return {"holdfast.contract_version": CONTRACT_VERSION, **encoded}


def _state(name: str, hidden: int) -> dict[str, Any]:
    return {
        "name": name,
        "input": name,
        "output": f"{name}_next",
        "dtype": "float32",
        "shape": [hidden],
        "batch_axis": 0,
        "initial": "zeros",
    }
