"""Bounds of settings that many of them share, and why they lie there. Pure."""

LONGEST_S = 1_000_000
"""Eleven days. gRPC takes milliseconds as 32-bit integers, 24 days, to some of which others are added."""

LONGEST_TTL_S = 3_200_000_000
"""A hundred years; the store adds its clock to it, in milliseconds of 63 bits."""

MOST_MESSAGE_BYTES = (1 << 31) - 1
"""gRPC's own limit; its lengths are 32-bit integers."""

MOST_MODEL_BYTES = (1 << 31) - 1
"""An ONNX file is one protocol buffer, and so cannot be larger."""

LEAST_MEMORY_BYTES = 256 << 20
"""A server at rest has some 150 MiB; with less than that allowed it would refuse every call."""

MOST_BYTES = 1 << 50
MOST_COUNT = 1_000_000_000
"""More than any machine has; metrics show them as floats, exactly."""


def zero_or_from(least: float, value: float, most: int) -> float:
    """Returns a value that is 0 or not below the least; its field checks that it is not above the most.

    Raises:
        ValueError: It is between them.
    """
    if 0 < value < least:
        raise ValueError(f"expected 0, or a number from {least} to {most}")
    return value
