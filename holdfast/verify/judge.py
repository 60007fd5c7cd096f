"""Judges recorded histories: every session against its model, run by onnxruntime alone."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from holdfast.verify.chain import TOLERANCE, check, origins_of
from holdfast.verify.findings import Findings
from holdfast.verify.oracle import Oracle
from holdfast.verify.reading import Histories, ModelId
from service.model.apart import Apart

MODEL_FILE = "model.onnx"


@dataclass
class Verdict:
    """What was found in all sessions.

    Attributes:
        total: The sum.
        sessions: Findings by session.
        models_missing: Models that the folder does not have, so that their outputs are unchecked.
        dependent: Model -> what its outputs depend on beside a session's own tokens.
    """

    total: Findings = field(default_factory=Findings)
    sessions: dict[str, Findings] = field(default_factory=dict)
    models_missing: set[str] = field(default_factory=set)
    dependent: dict[str, str] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Whether the promise held."""
        return self.total.is_good

    @property
    def bad(self) -> dict[str, Findings]:
        """Sessions for which it did not."""
        return {name: found for name, found in self.sessions.items() if not found.is_good}


def judge(
    paths: Iterable[Path],
    models: Path,
    *,
    tolerance: float = TOLERANCE,
    apart: Apart = MappingProxyType({}),
    on_session: Callable[[int, int], None] = lambda done, of: None,
) -> Verdict:
    """Judges histories.

    Args:
        paths: Their files.
        models: Folder of the models, `<name>/<version>/model.onnx`.
        tolerance: Largest difference of an output.
        apart: What of a model's batches the server runs apart, beside what its file says.
        on_session: Told how many sessions are done, and of how many.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is not a history.
    """
    verdict = Verdict()
    shelf = _Shelf(models, apart)
    sessions = Histories(paths).sessions
    origins = origins_of(session.history for session in sessions.values())
    for done, (session_id, session) in enumerate(sorted(sessions.items()), 1):
        oracle = shelf.find(session.model)
        if oracle is None and session.history.attempts:
            verdict.models_missing.add(_text(session.model))
        found = check(session.history, oracle, tolerance, origins)
        if oracle is not None and oracle.found_dependence is not None:
            verdict.dependent[_text(session.model)] = oracle.found_dependence
        verdict.sessions[session_id] = found
        verdict.total.add(found)
        on_session(done, len(sessions))
    return verdict


class _Shelf:
    """The models of a folder, opened when they are needed."""

    def __init__(self, models: Path, apart: Apart) -> None:
        self._models = models
        self._apart = apart
        self._open: dict[ModelId, Oracle | None] = {}

    def find(self, model: ModelId) -> Oracle | None:
        """Returns a model; None if the folder has not this very one."""
        if model not in self._open:
            self._open[model] = self._load(model)
        return self._open[model]

    def _load(self, model: ModelId) -> Oracle | None:
        path = self._models / model.name / str(model.version) / MODEL_FILE
        if not model.name or not path.is_file():
            return None
        oracle = Oracle(path, self._apart.get(model.name, frozenset()))
        return oracle if model.fingerprint in ("", oracle.fingerprint.hex()) else None


def _text(model: ModelId) -> str:
    return f"{model.name or 'unnamed'} version {model.version}"
