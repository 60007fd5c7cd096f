"""Random tokens for a model, by what it says it takes."""

from collections.abc import Sequence

import numpy as np

from holdfast.client.tokens import to_tensor
from holdfast.v1 import holdfast_pb2 as pb


class Payload:
    """Makes tokens for one model.

    Args:
        model: As GetModel describes it; without a vocabulary it takes features.
        seed: Of the random numbers.
    """

    def __init__(self, model: pb.Model, seed: int = 0) -> None:
        self.model = pb.ModelRef(name=model.name, version=model.version)
        self._width = model.input.width
        self._vocabulary = model.vocabulary if model.HasField("vocabulary") else None
        self._random = np.random.default_rng(seed)

    def tokens(self, count: int) -> pb.Tokens:
        """Draws tokens for a chunk."""
        if self._vocabulary is None:
            return pb.Tokens(features=to_tensor(self._features(count)))
        if self._vocabulary.is_bytes:
            return pb.Tokens(text=self._random.bytes(count))
        return pb.Tokens(ids=self._ids(count))

    def batch(self, session_ids: Sequence[str], tokens_per_row: int) -> pb.Batch:
        """Draws tokens for a message of rows."""
        message = pb.Batch(model=self.model, session_ids=session_ids, tokens_per_row=tokens_per_row)
        count = len(session_ids) * tokens_per_row
        if self._vocabulary is None:
            message.features = self._features(count).astype("<f4").tobytes()
        elif self._vocabulary.is_bytes:
            message.text = self._random.bytes(count)
        else:
            message.ids.CopyFrom(self._ids(count))
        return message

    def _features(self, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return self._random.standard_normal((count, self._width), np.float32)

    def _ids(self, count: int) -> pb.TokenIds:
        assert self._vocabulary is not None, "bug: ids of a model without a vocabulary"
        return pb.TokenIds(values=self._random.integers(self._vocabulary.size, size=count).tolist())
