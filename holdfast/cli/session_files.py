"""The files that `holdfast session` writes and reads: blobs of sessions, and states as .npz."""

import io
import os
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STANDARD = "-"
"""Stands for standard input or output."""


def read_blob(name: str) -> bytes:
    """Reads a file, or standard input.

    Raises:
        OSError: It cannot be read.
    """
    return sys.stdin.buffer.read() if name == STANDARD else Path(name).read_bytes()


def write_blob(name: str, data: bytes) -> None:
    """Writes a file whole or not at all; or to standard output.

    Raises:
        OSError: It cannot be written.
    """
    if name == STANDARD:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    part = Path(f"{name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, name)
    finally:
        part.unlink(missing_ok=True)


def npz_of(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Returns arrays as `numpy.load` reads them, by name."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # numpy.savez takes no array named "file"
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    return file.getvalue()
