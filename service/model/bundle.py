"""A model as one value: the graph alone, or with its contract.toml and the files that this one names. Pure.

What is hashed, checked in another process and loaded has to be the same, so all of it is one sequence of
bytes. A graph without a contract beside it is its own bundle.

    magic    MAGIC
    index    a line of JSON: pairs of name and length, the graph first
    content  one after the other
"""

import json
from collections.abc import Mapping
from typing import NamedTuple

MAGIC = b"holdfast bundle 1\n"
"""No ONNX file begins so: an `h` would be the tag of a field that a model does not have."""

CONTRACT_FILE = "contract.toml"


class BundleError(Exception):
    """Bytes are no bundle."""


class Bundle(NamedTuple):
    """The parts of a model.

    Attributes:
        graph: The ONNX file.
        contract: contract.toml; None if there is none.
        files: What the contract names, by name.
    """

    graph: bytes
    contract: bytes | None
    files: Mapping[str, bytes]


def pack(bundle: Bundle) -> bytes:
    """Returns a model as one value."""
    if bundle.contract is None:
        return bundle.graph
    parts = {"": bundle.graph, CONTRACT_FILE: bundle.contract, **dict(sorted(bundle.files.items()))}
    index = json.dumps([[name, len(data)] for name, data in parts.items()]).encode()
    return b"".join((MAGIC, index, b"\n", *parts.values()))


def unpack(data: bytes) -> Bundle:
    """Returns the parts of a model.

    Raises:
        BundleError: It has the magic, and is not what `pack` gives.
    """
    if not data.startswith(MAGIC):
        return Bundle(data, None, {})
    end = data.find(b"\n", len(MAGIC))
    parts: dict[str, bytes] = {}
    try:
        index = json.loads(data[len(MAGIC) : end])
        start = end + 1
        for name, size in index:
            parts[name] = data[start : start + size]
            start += size
        return Bundle(parts.pop(""), parts.pop(CONTRACT_FILE), parts)
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise BundleError(f"not a bundle: {error}") from None
