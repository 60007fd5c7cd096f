"""Writes a model's folder, model.onnx with its contract, once the server's own trial is passed."""

import json
from collections.abc import Mapping
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from model_export.surgery.value import Refused
from service.model.bundle import CONTRACT_FILE, Bundle, pack
from service.model.check import check_model
from service.model.contract_text import to_toml
from service.model.files import MODEL_FILE, ModelFileError, fingerprint_of

MOST_LISTED = 64
"""Values of a first state that the contract lists; more go into a file beside it."""


def write_model(
    model: onnx.ModelProto, document: Mapping[str, Any], out: Path, *, overwrite: bool = False
) -> bytes:
    """Writes a step graph with its contract.

    Args:
        model: The step graph.
        document: Its contract; first states as numbers or lists.
        out: Folder of the version, as `models/mine/1`; made if need be.
        overwrite: Writes over a model that is there.

    Returns:
        The model's fingerprint.

    Raises:
        Refused: The server's own trial refuses it, or a model is there already; nothing is written then.
    """
    target = out / MODEL_FILE
    if target.exists() and not overwrite:
        raise Refused(f"{target} is there already; give another version, or --overwrite")
    contract, files = contract_files(document)
    parts = {MODEL_FILE: model.SerializeToString(), CONTRACT_FILE: contract, **files}
    bundle = pack(Bundle(parts[MODEL_FILE], contract, files))
    try:
        check_model(target, bundle)
    except ModelFileError as error:
        raise Refused(f"a server would refuse it: {error.reason}") from None
    out.mkdir(parents=True, exist_ok=True)
    for name, data in reversed(parts.items()):  # the graph last: a server looks for it
        draft = out / f"{name}.part"
        draft.write_bytes(data)
        draft.replace(out / name)
    return fingerprint_of(bundle)


def contract_files(document: Mapping[str, Any]) -> tuple[bytes, dict[str, bytes]]:
    """Returns contract.toml, and first states that are too long for it as .npy files by name."""
    files: dict[str, bytes] = {}
    written = deepcopy(dict(document))
    for entry in written.get("state", []):
        first = entry.get("initial", 0)
        if isinstance(first, list) and np.size(first) > MOST_LISTED:
            name = f"{json.dumps(entry['name'])[1:-1].replace('/', '_')}.npy"
            files[name] = _as_npy(np.asarray(first, np.float64))
            entry["initial"] = name
    return to_toml(written).encode(), files


def _as_npy(array: NDArray[Any]) -> bytes:
    held = BytesIO()
    np.save(held, array, allow_pickle=False)
    return held.getvalue()
