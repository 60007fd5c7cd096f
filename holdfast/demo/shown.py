"""Streams what a screen brings along, shows the outputs on it, and judges them by an uninterrupted run."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from holdfast.client.reply import StepReply
from holdfast.demo.judgement import Judgement, judge
from holdfast.demo.live import LiveScreen
from holdfast.demo.served import served
from holdfast.verify.oracle import Oracle
from service.settings.schema import Settings


class Shown(LiveScreen):
    """A screen with the stream that it shows. It is made from the most tokens wanted and a file, or None.

    Attributes:
        model: Name of the network.
        outputs: Names of the outputs it needs.
        chunk: Tokens per reply.
        tokens: The stream: bytes, or float32 (count, width).
        facts: What the network's contract says for people; there once it has been read.
        labels: Names of what it ranks; likewise.
    """

    model: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    chunk: ClassVar[int] = 1
    tokens: bytes | NDArray[np.float32]
    facts: Mapping[str, str] = MappingProxyType({})
    labels: Sequence[str] = ()

    @abstractmethod
    def __init__(self, limit: int | None, file: Path | None) -> None:
        """Takes the tokens."""

    @abstractmethod
    def show(self, outputs: Mapping[str, NDArray[Any]], count: int) -> None:
        """Shows the next tokens, so many, and what they gave: (count or 1, ...) by name."""

    def start(self, count: int, unit: str) -> None:
        """See `LiveScreen`; called when the tokens are known."""
        LiveScreen.__init__(self, count, unit)


def stream_shown(screen: Shown, data_dir: Path, store: str) -> tuple[LiveScreen, Judgement]:
    """Streams the screen's tokens through two servers; returns the last screen and the verdict."""
    oracle = Oracle(Settings().models / screen.model / "1" / "model.onnx")
    screen.facts = oracle.contract.facts
    screen.labels = oracle.contract.ranked.labels if oracle.contract.ranked is not None else ()
    expected = _uninterrupted(screen, oracle)
    replies: list[StepReply] = []
    options = {"outputs": list(screen.outputs), "chunk": screen.chunk}
    with screen:
        for reply in served(data_dir, store, screen.model, screen.tokens, screen, **options):
            screen.show(reply.outputs, reply.token_count)
            replies.append(reply)
    return screen, judge(replies, len(screen.tokens), lambda reply: difference(reply, expected))


def difference(reply: StepReply, expected: Mapping[str, NDArray[Any]]) -> float:
    """Returns the largest difference of a reply from the run; an output of the last token has one row."""
    return max(
        float(
            np.abs(
                reply.outputs[name] - values[reply.position - len(reply.outputs[name]) : reply.position]
            ).max()
        )
        for name, values in expected.items()
    )


def _uninterrupted(screen: Shown, oracle: Oracle) -> dict[str, NDArray[Any]]:
    """Returns outputs after every token, (count, ...) by name, of onnxruntime alone."""
    tokens = screen.tokens
    given = np.frombuffer(tokens, np.uint8) if isinstance(tokens, bytes) else tokens
    state = oracle.start()
    collected: dict[str, list[NDArray[Any]]] = {name: [] for name in screen.outputs}
    for index in range(len(given)):
        outputs, state = oracle.advance(given[index : index + 1], state)
        for name, rows in collected.items():
            rows.append(outputs[name])
    return {name: np.concatenate(rows) for name, rows in collected.items()}
