"""What a refused trial says: the likely cause, and what can be done. Pure.

The cause is guessed from the operators that the file has: a hint, no finding. An operator's name stands in
the file behind the tag of its field and its length, as does the direction of a recurrence; a file that has
these bytes elsewhere gets a wrong hint.
"""

from collections.abc import Collection

_MAX_NAMED = 3

_DYNAMIC = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
_REVERSE = ("bidirectional", "reverse")
_ACROSS = (
    "CumSum",
    "TopK",
    "Unique",
    "NonZero",
    "Softmax",
    "LogSoftmax",
    "InstanceNormalization",
    "GroupNormalization",
    "MeanVarianceNormalization",
    "LpNormalization",
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceL1",
    "ReduceL2",
    "ReduceProd",
    "ArgMax",
    "ArgMin",
    "Reshape",
    "Transpose",
)

_CAUSES: dict[str, tuple[tuple[tuple[str, ...], str], ...]] = {
    "rows": (
        (_DYNAMIC, "with one scale for all it gets"),
        (_ACROSS, "across rows"),
    ),
    "tokens": (
        (_REVERSE, "recurrence, which reads ahead"),
        (_DYNAMIC, "with one scale for all it gets"),
        (("Conv",), "padded so that it looks ahead: pad it on the left only"),
        (_ACROSS, "across tokens"),
    ),
    "mixed": ((_ACROSS, "across rows or tokens"),),
    "random": (
        (
            (
                "RandomNormal",
                "RandomNormalLike",
                "RandomUniform",
                "RandomUniformLike",
                "Multinomial",
                "Bernoulli",
                "Dropout",
            ),
            "which draws random numbers",
        ),
        (("BatchNormalization",), "in training mode, which keeps its mean from run to run"),
    ),
}
"""By what is wrong: operators, the most likely first, and what is the matter with them."""


LOOKS_AHEAD = (
    "earlier tokens change with later ones: a network that looks ahead cannot be streamed; train and "
    "export one that reads forward only"
)
"""What is to be done about such a network; no setting helps."""


def has_reverse(data: bytes) -> bool:
    """Tells whether a file seems to have a recurrence that reads backwards."""
    return any(_tagged(name) in data for name in _REVERSE)


def has_one_scale(data: bytes) -> bool:
    """Tells whether a file seems to compute one scale for all that a run gets."""
    return any(_tagged(name) in data for name in _DYNAMIC)


def likely_cause(data: bytes, kind: str) -> str:
    """Returns the operators of a file that probably make it so, in words.

    Args:
        data: The file.
        kind: `rows`, `tokens`, `mixed` or `random`.
    """
    for names, matter in _CAUSES[kind]:
        found = [name for name in names if _tagged(name) in data]
        if found:
            return f"the likely cause is {', '.join(found[:_MAX_NAMED])} {matter}"
    return "no operator stands out as the cause"


def remedy(apart: Collection[str]) -> str:
    """Returns how such a graph can be served nevertheless.

    Args:
        apart: `rows`, `tokens` or both.
    """
    names = [name for name in ("rows", "tokens") if name in apart]
    lines = ", ".join(f"{name}_per_run = 1" for name in names)
    each = " and ".join(name.removesuffix("s") for name in names)
    return f"set {lines} in contract.toml or --apart NAME={','.join(names)}: one run per {each}"


def _tagged(name: str) -> bytes:
    """An operator in a node, or a text in an attribute: field 4 of either."""
    return b"\x22" + bytes([len(name)]) + name.encode()
