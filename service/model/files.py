"""Model files as they come from a disk that is not trusted: where they lie, and how one is read, once.

A file is opened once, looked at through what was opened, and read into memory, with the contract.toml that
lies beside it; hash, check and session are all made from these bytes, so that it does not matter what
happens to the files meanwhile.
Symbolic links are followed, since mounted volumes are made of them: what is served is what was read and
hashed, wherever it lay.
"""

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from service.common.names import control_character, unseen_character, without_controls
from service.common.shortage import is_passing
from service.common.text_files import decoded
from service.model.bundle import CONTRACT_FILE, MAGIC, Bundle, pack
from service.model.config_pbtxt import CONFIG_FILE, read_config
from service.model.contract import ContractError
from service.model.contract_text import to_toml
from service.model.document import files_named, from_toml

MODEL_FILE = "model.onnx"

MAX_NAME_CHARS = 128

MAX_MODEL_BYTES = 512 << 20
"""Default of `--max-model-bytes`: a step graph this big does not step in milliseconds."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the text begins that a repository has in place of a file while Git LFS is not installed."""


class ModelFileError(Exception):
    """A model file cannot be served.

    Attributes:
        path: The file.
        reason: What is wrong with it and what would be right; the message has the file before it.
        is_passing: It is not the file's fault: this machine has no descriptor or memory left.
    """

    def __init__(self, path: Path, reason: str, *, is_passing: bool = False) -> None:
        super().__init__(f"{without_controls(str(path))}: {reason}")  # names of files need be no text
        self.path = path
        self.reason = reason
        self.is_passing = is_passing


class PackageMissingError(ModelFileError):
    """A model that comes with Holdfast needs a package that is not installed, which is no fault."""


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


class Stamp(NamedTuple):
    """What tells, without reading it, that a file may hold something else than before.

    Two networks of one shape are equally long, and tools that copy set times as they like; so the time of
    the last change of any kind and the number of the file are looked at as well. A stamp that is new
    without need costs a reading, a change that is not seen a version.

    Attributes:
        size_bytes: Length.
        mtime_ns: When it was written, as it says.
        ctime_ns: When anything of it was changed, its permissions included.
        inode: Its number in the file system.
    """

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int


Stamps = tuple[Stamp | None, ...]
"""Of the model file and of all that may belong to it, by name."""


def find_files(folder: Path) -> list[ModelFile]:
    """Returns the files `<name>/<version>/model.onnx` of a folder, sorted by path.

    Raises:
        ModelFileError: The folder is missing or has no model, or a version is not a number >= 1.
    """
    files, refused = list_files(folder)
    if refused:
        raise refused[0]
    if not files:
        raise ModelFileError(folder, f"no <name>/<version>/{MODEL_FILE} in this folder")
    return files


def list_files(folder: Path) -> tuple[list[ModelFile], list[ModelFileError]]:
    """Returns the files of a folder, sorted by path, and what is wrong with the names of others."""
    if not folder.is_dir():
        return [], [
            ModelFileError(folder, f"not a folder; name one that has <name>/<version>/{MODEL_FILE}")
        ]
    files, refused = [], []
    for path in sorted(folder.glob(f"*/*/{MODEL_FILE}")):
        name, version_text = path.parent.parent.name, path.parent.name
        if (wrong := wrong_with_name(name)) is not None:
            refused.append(ModelFileError(path, f"its model's name {wrong}"))
        elif version_text.isascii() and version_text.isdecimal() and 0 < int(version_text) < 1 << 31:
            files.append(ModelFile(name, int(version_text), path))
        else:
            refused.append(ModelFileError(path, f"version {version_text!r} is not a number >= 1"))
    return files, refused


def wrong_with_name(name: str) -> str | None:
    """Returns what keeps a name from being that of a model; None if nothing does."""
    if (place := control_character(name) or unseen_character(name)) is not None:
        return f"has {place}"
    if name.startswith("."):
        return "begins with a dot, as those of hidden folders do"
    if len(name) > MAX_NAME_CHARS:
        return f"has {len(name)} characters, expected at most {MAX_NAME_CHARS}"
    return None


def stamps_of(path: Path) -> Stamps | None:
    """Returns the stamps of a model file and of what lies beside it; None if it cannot be looked at."""
    own = _stamp_of(path)
    if own is None:
        return None
    named = (*path.parent.glob("*.npy"), *path.parent.glob("*.json"))
    beside = sorted([path.with_name(CONTRACT_FILE), *_configs(path), *named])
    return (own, *map(_stamp_of, beside))


def _stamp_of(path: Path) -> Stamp | None:
    try:
        found = path.stat()  # of what a link leads to
    except OSError:
        return None
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def read_model(path: Path, max_bytes: int = MAX_MODEL_BYTES) -> bytes:
    """Reads a model file, and the contract.toml beside it with all that this one names, as one bundle.

    Without it a config.pbtxt of Triton is read as one.

    Raises:
        ModelFileError: A file cannot be read, or together they are larger than allowed.
    """
    graph = read_file(path, max_bytes)
    if graph.startswith(MAGIC):
        raise ModelFileError(path, "not an ONNX file")
    beside = path.with_name(CONTRACT_FILE)
    if not os.path.lexists(beside):
        return _with_config(path, graph, max_bytes)
    contract = read_file(beside, max_bytes)
    try:
        names = files_named(from_toml(contract))
    except ContractError as error:
        raise ModelFileError(path, str(error)) from None
    files, left = {}, max_bytes - len(graph)
    for name in names:
        files[name] = read_file(path.with_name(name), left)
        left -= len(files[name])
    return pack(Bundle(graph, contract, files))


def _with_config(path: Path, graph: bytes, max_bytes: int) -> bytes:
    """Returns a graph with what a config.pbtxt says of it, if there is one."""
    config = next((place for place in _configs(path) if os.path.lexists(place)), None)
    if config is None:
        return graph
    left = max_bytes - len(graph)
    text = read_file(config, left)
    try:
        document, files = read_config(decoded(text), lambda name: read_file(config.parent / name, left))
    except (ContractError, UnicodeDecodeError) as error:
        raise ModelFileError(path, str(error)) from None
    return pack(Bundle(graph, to_toml(document).encode(), files))


def _configs(path: Path) -> list[Path]:
    """Returns where a config.pbtxt may lie: beside the file, or beside its versions, as Triton has it."""
    is_version = path.name == MODEL_FILE and path.parent.name.isdecimal()
    return [path.with_name(CONFIG_FILE), *([path.parent.parent / CONFIG_FILE] if is_version else [])]


def read_file(path: Path, max_bytes: int = MAX_MODEL_BYTES) -> bytes:
    """Reads a whole file.

    Raises:
        ModelFileError: It cannot be read, is no regular file, or is larger than allowed.
    """
    try:
        with open(path, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ModelFileError(path, "not a regular file")
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ModelFileError(path, error.strerror or str(error), is_passing=is_passing(error)) from None
    if data.startswith(LFS_POINTER):
        raise ModelFileError(path, "a pointer of Git LFS, not the model; fetch that by git lfs pull")
    if len(data) > max_bytes:
        raise ModelFileError(path, f"more than {max_bytes} bytes, the limit of --max-model-bytes")
    return data


def _open(path: str, flags: int) -> int:
    """Opens a file; neither blocks a pipe without a writer, nor becomes a terminal ours."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def fingerprint_of(data: bytes) -> bytes:
    """Returns the sha256 of a model as `read_model` gives it, 32 bytes."""
    return hashlib.sha256(data).digest()
