"""Model files as they come from a disk that is not trusted: where they lie, and how one is read, once.

A file is opened once, looked at through what was opened, and read into memory; its hash, its check and its
session are all made from these bytes, so that it does not matter what happens to the file meanwhile.
Symbolic links are followed, since mounted volumes are made of them: what is served is what was read and
hashed, wherever it lay.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MODEL_FILE = "model.onnx"

MAX_MODEL_BYTES = 512 << 20
"""Default of `--max-model-bytes`: a step graph this big does not step in milliseconds."""


class ModelFileError(Exception):
    """A model file cannot be served.

    Attributes:
        reason: What is wrong with it and what would be right; the message has the file before it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


class ModelFile(NamedTuple):
    """A file of the repository.

    Attributes:
        name: Of the model.
        version: >= 1.
        path: Where it lies.
    """

    name: str
    version: int
    path: Path


def find_files(folder: Path) -> list[ModelFile]:
    """Returns the files `<name>/<version>/model.onnx` of a folder, sorted by path.

    Raises:
        ModelFileError: The folder is missing or has no model, or a version is not a number >= 1.
    """
    if not folder.is_dir():
        raise ModelFileError(folder, f"not a folder; name one that has <name>/<version>/{MODEL_FILE}")
    files = list(_find(folder))
    if not files:
        raise ModelFileError(folder, f"no <name>/<version>/{MODEL_FILE} in this folder")
    return files


def _find(folder: Path) -> Iterator[ModelFile]:
    for path in sorted(folder.glob(f"*/*/{MODEL_FILE}")):
        version_text = path.parent.name
        if not (version_text.isascii() and version_text.isdecimal() and 0 < int(version_text) < 1 << 31):
            raise ModelFileError(path, f"version {version_text!r} is not a number >= 1")
        yield ModelFile(path.parent.parent.name, int(version_text), path)


def read_file(path: Path, max_bytes: int = MAX_MODEL_BYTES) -> bytes:
    """Reads a whole file.

    Raises:
        ModelFileError: It cannot be read, is no regular file, or is larger than allowed.
    """
    try:
        # a pipe without a writer must not block the open, nor a terminal become ours
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ModelFileError(path, "not a regular file")
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ModelFileError(path, error.strerror or str(error)) from None
    if len(data) > max_bytes:
        raise ModelFileError(path, f"more than {max_bytes} bytes, the limit of --max-model-bytes")
    return data


def fingerprint_of(data: bytes) -> bytes:
    """Returns the sha256 of a file, 32 bytes."""
    return hashlib.sha256(data).digest()
