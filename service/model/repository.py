"""The models served: those on disk at start, `<folder>/<name>/<version>/model.onnx`, and later ones."""

import logging
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from holdfast.errors import ModelNotFound
from service.model import shipped
from service.model.apart import Apart
from service.model.check import check_model, each_file
from service.model.files import (
    MAX_MODEL_BYTES,
    ModelFile,
    ModelFileError,
    PackageMissingError,
    find_files,
    fingerprint_of,
    list_files,
    read_model,
)
from service.model.loading import load_model
from service.model.protocol import Model
from service.model.providers import Providers
from service.model.step_graph import ON_CPU

_log = logging.getLogger(__name__)

MAX_TEXT_BYTES = 3 << 20
"""What the descriptions of all models may have: clients receive 4 MiB, and ListModels has them all."""
_OTHER_BYTES = 1024
"""Of a description, beside what comes from the metadata: name, fingerprint, version."""


class _Served(NamedTuple):
    """What is served at one moment; never changed, but replaced as a whole."""

    versions: dict[str, dict[int, Model]]
    by_fingerprint: dict[bytes, Model]
    newest: dict[str, int]


class ModelRepository:
    """Implements `Models` on a folder, read once. Files are checked in processes of their own first.

    What is served is never exchanged and never taken away: sessions run on it. `add` is all that happens.

    Args:
        folder: Where the models lie.
        max_bytes: Largest file.
        checked: Fingerprints of files that have passed the check already.
        apart: What of a model's batches runs apart, beside what its files say.
        providers: What runs the models.
        skips_refused: Serve the other files if some are refused, which is said in the log.

    Raises:
        ModelFileError: The folder is missing or has no model, a version is not a number >= 1, or a
            file is refused; with `skips_refused`, every file is.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = MAX_MODEL_BYTES,
        checked: frozenset[bytes] = frozenset(),
        apart: Apart = MappingProxyType({}),
        providers: Providers = ON_CPU,
        skips_refused: bool = False,
    ) -> None:
        self._served = _Served({}, {}, {})
        files, refused = list_files(folder)
        if not (skips_refused and files):
            files = find_files(folder)

        def load(file: ModelFile) -> Model | ModelFileError:
            try:
                return _load(file, max_bytes, checked, apart.get(file.name, frozenset()), providers)
            except ModelFileError as error:
                return error

        for file, loaded in zip(files, each_file(load, files), strict=True):
            try:
                if isinstance(loaded, ModelFileError):
                    raise loaded
                self.add(loaded, file.path)
            except ModelFileError as error:
                if not (skips_refused or isinstance(error, PackageMissingError)):
                    raise
                refused.append(error)
        if not self._served.versions:
            raise refused[0]
        for refusal in refused:
            is_fault = not isinstance(refusal, PackageMissingError)
            _log.log(
                logging.ERROR if is_fault else logging.INFO, "%s; the other models are served", refusal
            )
        self.make_all_newest()
        for name in sorted(apart.keys() - self._served.versions.keys()):
            _log.warning("--apart names %r; so far no model has this name", name)

    def __iter__(self) -> Iterator[Model]:
        """Yields every model, by name and version."""
        versions = self._served.versions
        for name in sorted(versions):
            yield from (versions[name][version] for version in sorted(versions[name]))

    def add(self, model: Model, path: Path) -> None:
        """Serves one more model to those who name its version, or to all if nothing else has its name.

        Args:
            model: Loaded and checked.
            path: Where it comes from, for messages.

        Raises:
            ModelFileError: Name and version, or the very file, are served already (sessions are kept by
                fingerprint, so a copy under another version could not be told from what it is a copy of),
                or the list of models would be too long for clients.
        """
        versions, by_fingerprint, newest = self._served
        if model.version in versions.get(model.name, ()):
            raise ModelFileError(path, f"version {model.version} of {model.name} comes from another file")
        same = by_fingerprint.get(model.fingerprint)
        if same is not None:
            raise ModelFileError(
                path,
                f"it is a copy of version {same.version} of {same.name}, which is served; change a fact in "
                "its metadata to make it another model",
            )
        described = sum(_OTHER_BYTES + other.contract.text_bytes for other in (*self, model))
        if described > MAX_TEXT_BYTES:
            raise ModelFileError(
                path,
                f"the descriptions of all models would have {described} bytes, of which at most "
                f"{MAX_TEXT_BYTES} can be listed; remove versions that no session is on, and restart",
            )
        self._served = _Served(
            {**versions, model.name: {**versions.get(model.name, {}), model.version: model}},
            {**by_fingerprint, model.fingerprint: model},
            {model.name: model.version, **newest},
        )

    def make_all_newest(self) -> None:
        """Has version 0 of every name stand for its highest version."""
        newest = {name: max(versions) for name, versions in self._served.versions.items()}
        self._served = self._served._replace(newest=newest)

    def make_newest(self, name: str, version: int) -> None:
        """Has version 0 of a name stand for a version that is served, unless it does for a higher one."""
        newest = self._served.newest
        self._served = self._served._replace(newest={**newest, name: max(version, newest[name])})

    def find(self, name: str, version: int = 0) -> Model:
        """Returns a model; see `Models.find`."""
        versions = self._served.versions.get(name)
        if versions is None:
            known = ", ".join(sorted(self._served.versions))
            raise ModelNotFound(f"no model is named {name!r}; the server has {known}", field="model.name")
        model = versions.get(version or self._served.newest[name])
        if model is None:
            known = ", ".join(str(number) for number in sorted(versions))
            raise ModelNotFound(
                f"model {name!r} has no version {version}; the server has {known}",
                field="model.version",
            )
        return model

    def find_fingerprint(self, fingerprint: bytes) -> Model | None:
        """Returns the model with this fingerprint, if it is served."""
        return self._served.by_fingerprint.get(fingerprint)

    def fingerprint_at(self, name: str, version: int) -> bytes | None:
        """Returns the fingerprint that is served under a name and version, if one is."""
        model = self._served.versions.get(name, {}).get(version)
        return None if model is None else model.fingerprint

    def newest_version(self, name: str) -> int:
        """Returns the version that 0 stands for."""
        return self._served.newest[name]


def _load(
    file: ModelFile,
    max_bytes: int,
    checked: frozenset[bytes],
    apart: frozenset[str],
    providers: Providers,
) -> Model:
    data = read_model(file.path, max_bytes)
    if fingerprint_of(data) not in checked | shipped.FINGERPRINTS:
        check_model(file.path, data, apart=apart)
    return load_model(
        file.path, name=file.name, version=file.version, data=data, apart=apart, providers=providers
    )
