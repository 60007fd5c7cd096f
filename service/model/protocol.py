"""What the engine needs of a model. Implementations: `step_graph.StepGraph`, and a fake in the tests."""

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from service.model.contract import Contract

Arrays = Mapping[str, NDArray[Any]]


class Halt(Protocol):
    """Ends a run from another thread: once `terminate` is true, the run raises at its next operation."""

    terminate: bool


class Model(Protocol):
    """One network in one version, ready to run. Equal to itself only, so that it can be a key."""

    def __hash__(self) -> int:
        """See there."""
        ...

    @property
    def name(self) -> str:
        """Name in the repository."""
        ...

    @property
    def version(self) -> int:
        """Version, >= 1."""
        ...

    @property
    def fingerprint(self) -> bytes:
        """sha256 of the file, 32 bytes."""
        ...

    @property
    def contract(self) -> Contract:
        """Its tensors."""
        ...

    def new_halt(self) -> Halt:
        """Returns what can end one run."""
        ...

    def run(
        self,
        tokens: NDArray[Any],
        states: Arrays,
        needed: tuple[str, ...] | None = None,
        halt: Halt | None = None,
    ) -> tuple[Arrays, Arrays]:
        """Advances B sessions by T tokens each.

        Args:
            tokens: int64 (T, B) ids, or float32 (T, B, width) features; T >= 1.
            states: State name -> (B, ...), batch axis first whatever the graph has.
            needed: Names of outputs to return; None is all of them.
            halt: Made by `new_halt` for this run; None lets it take as long as it takes.

        Returns:
            Output name -> (T, B, ...), or (1, B, ...) where the graph gives it once a run, and state name
            -> (B, ...).

        Raises:
            Exception: Whatever the runtime raises; nothing is kept from the call.
        """
        ...


class SubwordModel(Model, Protocol):
    """A model that takes text and weighs subwords: one whose contract has `texts`."""

    def settled(self, states: Arrays, halt: Halt | None = None) -> NDArray[Any]:
        """Weighs what follows states, as if the piece of text that is unfinished ended there.

        Args:
            states: State name -> (B, ...).
            halt: As in `run`.

        Returns:
            What the ranked output is after that piece, (B, V).

        Raises:
            Exception: Whatever the runtime raises.
        """
        ...


class Models(Protocol):
    """The models served."""

    def find(self, name: str, version: int = 0) -> Model:
        """Returns a model; version 0 is the newest.

        Raises:
            ModelNotFound: None of that name and version.
        """
        ...

    def find_fingerprint(self, fingerprint: bytes) -> Model | None:
        """Returns the model with this fingerprint, if it is served."""
        ...
