"""Puts a model file, its contract and what this one names where a server finds them, all at once or not."""

import os
import secrets
import shutil
from pathlib import Path

from service.model.bundle import CONTRACT_FILE, Bundle
from service.model.files import MODEL_FILE, ModelFileError, wrong_with_name

_MOST_VERSION = (1 << 31) - 1


def place_of(models: Path, name: str, version: int | None, path: Path) -> Path:
    """Returns the folder of a version that is not there yet.

    Args:
        models: Folder of models.
        name: Of the model.
        version: Which; None for the one after the highest.
        path: The file, for messages.

    Raises:
        ModelFileError: The name or version is none, or the version is there.
    """
    if (wrong := wrong_with_name(name)) is not None:
        raise ModelFileError(path, f"the name {name!r} {wrong}")
    if not name or "/" in name:
        raise ModelFileError(path, f"the name {name!r} is not a valid folder name")
    if version is None:
        there = [int(entry.name) for entry in (models / name).glob("*") if entry.name.isdecimal()]
        version = max(there, default=0) + 1
    if not 1 <= version <= _MOST_VERSION:
        raise ModelFileError(path, f"version {version} is not a number >= 1")
    place = models / name / str(version)
    if os.path.lexists(place):
        raise ModelFileError(path, f"{place} is there already; give another --version")
    return place


def put(bundle: Bundle, place: Path) -> None:
    """Writes a model beside the folder of models' names, and renames it to its place.

    Whoever looks meanwhile sees nothing of it, or all; what fails leaves nothing behind.

    Args:
        bundle: The model.
        place: Folder of the version, which is not there.

    Raises:
        OSError: It cannot be written.
    """
    models, own = place.parent.parent, place.parent
    is_new = not own.exists()
    draft = models / f".{place.parent.name}-{secrets.token_hex(8)}"  # a level too high to be found
    draft.mkdir(parents=True)
    try:
        _write(draft / MODEL_FILE, bundle.graph)
        for name, data in bundle.files.items():
            _write(draft / name, data)
        if bundle.contract is not None:
            _write(draft / CONTRACT_FILE, bundle.contract)
        own.mkdir(exist_ok=True)
        draft.rename(place)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        if is_new and own.exists():
            own.rmdir()
        raise


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
