"""The models on disk: `<folder>/<name>/<version>/model.onnx`."""

from collections.abc import Iterator
from pathlib import Path

from service.errors import ModelNotFound
from service.model.check import check_model, each_file
from service.model.files import MAX_MODEL_BYTES, ModelFile, find_files, fingerprint_of, read_file
from service.model.step_graph import StepGraph


class ModelRepository:
    """Implements `Models` on a folder, read once. Files are checked in processes of their own first.

    Args:
        folder: Where the models lie.
        max_bytes: Largest file.
        checked: Fingerprints of files that have passed the check already.

    Raises:
        ModelFileError: The folder is missing or has no model, a version is not a number >= 1, or a
            file is refused.
    """

    def __init__(
        self, folder: Path, *, max_bytes: int = MAX_MODEL_BYTES, checked: frozenset[bytes] = frozenset()
    ) -> None:
        self._models: dict[str, dict[int, StepGraph]] = {}
        self._by_fingerprint: dict[bytes, StepGraph] = {}

        def load(file: ModelFile) -> StepGraph:
            data = read_file(file.path, max_bytes)
            if fingerprint_of(data) not in checked:
                check_model(file.path, data)
            return StepGraph(file.path, name=file.name, version=file.version, data=data)

        for model in each_file(load, find_files(folder)):
            self._models.setdefault(model.name, {})[model.version] = model
            self._by_fingerprint[model.fingerprint] = model

    def __iter__(self) -> Iterator[StepGraph]:
        """Yields every model, by name and version."""
        for name in sorted(self._models):
            yield from (self._models[name][version] for version in sorted(self._models[name]))

    def find(self, name: str, version: int = 0) -> StepGraph:
        """Returns a model; see `Models.find`."""
        versions = self._models.get(name)
        if versions is None:
            known = ", ".join(sorted(self._models))
            raise ModelNotFound(f"no model is named {name!r}; served are {known}", field="model.name")
        model = versions.get(version or max(versions))
        if model is None:
            known = ", ".join(str(number) for number in sorted(versions))
            raise ModelNotFound(
                f"model {name!r} has no version {version}; served are {known}",
                field="model.version",
            )
        return model

    def find_fingerprint(self, fingerprint: bytes) -> StepGraph | None:
        """Returns the model with this fingerprint, if it is served."""
        return self._by_fingerprint.get(fingerprint)

    def newest_version(self, name: str) -> int:
        """Returns the version that 0 stands for."""
        return max(self._models[name])
