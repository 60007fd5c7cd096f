"""The corpus: the Python sources of the running interpreter's own standard library, as bytes.

It is on every machine that can run this project. Tests are left out: their generated tables and
deliberately odd code are not what people type. Standard library only.
"""

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

SEPARATOR = b"\0"
"""Stands after every file, so that the network learns where one begins."""

HELD_OUT_ONE_IN = 16

_SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "__pycache__"})


class SourceFile(NamedTuple):
    """A file of the corpus.

    Attributes:
        path: Relative to the library, with slashes.
        data: Its bytes, valid UTF-8.
    """

    path: str
    data: bytes


class Corpus(NamedTuple):
    """The corpus, split by file.

    Attributes:
        training: Files the networks learn from, by path.
        held_out: Files they never see, by path.
        digest: sha256 over paths and bytes of all files, hexadecimal.
    """

    training: tuple[SourceFile, ...]
    held_out: tuple[SourceFile, ...]
    digest: str


def load_corpus(folder: Path | None = None) -> Corpus:
    """Reads the corpus.

    Args:
        folder: Where to look; default is the standard library of the running interpreter.

    Raises:
        FileNotFoundError: No source file lies there (some distributions ship only compiled files).
    """
    root = folder if folder is not None else Path(sysconfig.get_paths()["stdlib"])
    files = sorted(_source_files(root))
    if not files:
        raise FileNotFoundError(f"no Python source files below {root}")
    return Corpus(
        training=tuple(file for file in files if not is_held_out(file.path)),
        held_out=tuple(file for file in files if is_held_out(file.path)),
        digest=digest(files),
    )


def is_held_out(path: str) -> bool:
    """Tells the half of the split a file belongs to, by its path alone.

    So a file keeps its side whatever other files an interpreter brings.
    """
    return hashlib.sha256(path.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def digest(files: Iterable[SourceFile]) -> str:
    """Returns the sha256 over paths and bytes, hexadecimal."""
    running = hashlib.sha256()
    for file in files:
        for part in (file.path.encode(), file.data):
            running.update(len(part).to_bytes(8, "little"))
            running.update(part)
    return running.hexdigest()


def join(files: Iterable[SourceFile]) -> bytes:
    """Returns the bytes of all files, each followed by the separator."""
    return b"".join(file.data + SEPARATOR for file in files)


def _source_files(root: Path) -> Iterator[SourceFile]:
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if _SKIPPED_FOLDERS.intersection(relative.parts[:-1]):
            continue
        data = path.read_bytes()
        if _is_utf8(data):
            yield SourceFile(relative.as_posix(), data)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
