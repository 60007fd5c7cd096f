"""What a model must do so that a session can be run again by it alone."""

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from holdfast.verify.session_history import Outputs


class Network(Protocol):
    """The model of a session, run alone."""

    def run(self, tokens: NDArray[Any], initial: Mapping[str, NDArray[Any]] | None) -> "Run":
        """Runs tokens from an initial state; None is the model's own."""
        ...

    def dependence(self, tokens: NDArray[Any]) -> str | None:
        """Says what the model's outputs depend on beside a session's own tokens, as these show it.

        Returns:
            None if on nothing else that could be found.
        """
        ...


class Run(Protocol):
    """What a run gave."""

    def differences(self, start: int, outputs: Outputs) -> float:
        """Returns the largest difference of a reply from the outputs of tokens start .. start + k."""
        ...

    def state_after(self, count: int) -> Mapping[str, NDArray[Any]]:
        """Returns the state after so many tokens, from which another run can go on."""
        ...
