"""The models on disk: `<folder>/<name>/<version>/model.onnx`."""

from collections.abc import Iterator
from pathlib import Path

from service.errors import ModelNotFound
from service.model.step_graph import ModelFileError, StepGraph

MODEL_FILE = "model.onnx"


class ModelRepository:
    """Implements `Models` on a folder, read once.

    Args:
        folder: Where the models lie.

    Raises:
        ModelFileError: The folder is missing or has no model, a version is not a number >= 1, or a
            file is refused.
    """

    def __init__(self, folder: Path) -> None:
        self._models: dict[str, dict[int, StepGraph]] = {}
        self._by_fingerprint: dict[bytes, StepGraph] = {}
        for name, version, path in _model_files(folder):
            self._add(StepGraph(path, name=name, version=version))
        if not self._models:
            raise ModelFileError(f"{folder}: no <name>/<version>/{MODEL_FILE} in this folder")

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

    def _add(self, model: StepGraph) -> None:
        self._models.setdefault(model.name, {})[model.version] = model
        self._by_fingerprint[model.fingerprint] = model


def _model_files(folder: Path) -> Iterator[tuple[str, int, Path]]:
    if not folder.is_dir():
        raise ModelFileError(f"{folder}: not a folder")
    for path in sorted(folder.glob(f"*/*/{MODEL_FILE}")):
        version_text = path.parent.name
        if not version_text.isdecimal() or int(version_text) < 1:
            raise ModelFileError(f"{path}: version {version_text!r} is not a number >= 1")
        yield path.parent.parent.name, int(version_text), path
