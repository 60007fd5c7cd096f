"""Names of what a model ranks: classes, words of a vocabulary, or bytes."""

from holdfast.v1 import holdfast_pb2 as pb

_RANKED = frozenset({"logits", "probs", "log_probs"})


def labels_of(model: pb.Model) -> tuple[str, ...]:
    r"""Returns the names of a model's candidates, by id.

    Args:
        model: As `Client.model` gives it.

    Returns:
        The labels of the output by which it ranks; of a vocabulary of bytes their text, `\xff` of those
        that are none alone. Empty if it ranks nothing, or ids that have no names.
    """
    ranked = next((output for output in model.outputs if output.role in _RANKED), None)
    if ranked is None:
        return ()
    if ranked.labels:
        return tuple(ranked.labels)
    if model.vocabulary.is_bytes and list(ranked.shape) == [256]:
        return tuple(bytes([byte]).decode(errors="backslashreplace") for byte in range(256))
    return ()
