"""What an axis stands for: time, batch, a number, or several of them one inside the other. Pure.

An axis is a tuple of factors, outermost first: `("time",)`, `("batch", 4)` for four entries per row laid
behind one another, `()` for extent 1. So a Reshape is nothing but another grouping of the same factors. A
graph may have been exported with a fixed batch or time; `frozen` has the extents, so that a 6 in a constant
shape can be recognised for the batch of 6 that it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

TIME, BATCH, HERE = "time", "batch", "here"
"""Names of symbols; HERE is the number of the token within a loop."""

Factor = str | int
Axis = tuple[Factor, ...]
Frozen = Mapping[str, int | None]
"""Symbol -> extent that the graph was exported with; None if it is dynamic."""

TIME_AXIS: Axis = (TIME,)
BATCH_AXIS: Axis = (BATCH,)
ONE: Axis = ()


@dataclass(frozen=True)
class Size:
    """A number that the graph computes from extents: `factor` times symbols, plus `plus`."""

    symbols: tuple[str, ...]
    factor: int = 1
    plus: int = 0


Extent = int | Size


def axis_of(number: int) -> Axis:
    """Returns the axis of a fixed extent."""
    return ONE if number == 1 else (number,)


def is_fixed(axis: Axis) -> bool:
    """Says whether an axis has neither time nor batch in it."""
    return all(isinstance(factor, int) for factor in axis)


def number_of(axis: Axis) -> int:
    """Returns the extent of a fixed axis."""
    total = 1
    for factor in axis:
        assert isinstance(factor, int), "bug: the extent of an axis that is not fixed"
        total *= factor
    return total


def joined(*axes: Axis) -> Axis:
    """Returns the axis that several make, one inside the other."""
    factors: list[Factor] = []
    for factor in (factor for axis in axes for factor in axis):
        if isinstance(factor, int) and factors and isinstance(factors[-1], int):
            factors[-1] *= factor
        elif factor != 1:
            factors.append(factor)
    return tuple(factors)


def extent_of(axis: Axis) -> Extent:
    """Returns the extent, as a number if it is one."""
    symbols = tuple(sorted(factor for factor in axis if isinstance(factor, str)))
    factor = number_of(tuple(factor for factor in axis if isinstance(factor, int)))
    return Size(symbols, factor) if symbols else factor


def times(left: Extent | None, right: Extent | None) -> Extent | None:
    """Multiplies; None is unknown."""
    if isinstance(right, int):
        left, right = right, left
    if left is None or right is None:
        return None
    if isinstance(left, int):
        if isinstance(right, int):
            return left * right
        return Size(right.symbols, right.factor * left, right.plus * left)
    if isinstance(right, Size) and not left.plus and not right.plus:
        return Size(tuple(sorted(left.symbols + right.symbols)), left.factor * right.factor)
    return None


def plus(left: Extent | None, right: Extent | None, sign: int = 1) -> Extent | None:
    """Adds, or subtracts if `sign` is -1; None is unknown."""
    if left is None or right is None:
        return None
    if isinstance(left, int) and isinstance(right, int):
        return left + sign * right
    if isinstance(left, Size) and isinstance(right, int):
        return Size(left.symbols, left.factor, left.plus + sign * right)
    if isinstance(left, int) and isinstance(right, Size) and sign == 1:
        return Size(right.symbols, right.factor, right.plus + left)
    if isinstance(left, Size) and isinstance(right, Size) and sign == -1 and left.symbols == right.symbols:
        return left.plus - right.plus if left.factor == right.factor else None
    return None


def divided(left: Extent | None, right: Extent | None) -> Extent | None:
    """Divides without remainder; None is unknown, and what leaves one."""
    if left is None or right is None or right == 0:
        return None
    if isinstance(right, int):
        if isinstance(left, int):
            return left // right
        whole = left.factor % right == 0 and left.plus % right == 0
        return Size(left.symbols, left.factor // right, left.plus // right) if whole else None
    if isinstance(left, int) or left.plus or right.plus or left.factor % right.factor:
        return None
    rest = list(left.symbols)
    for symbol in right.symbols:
        if symbol not in rest:
            return None
        rest.remove(symbol)
    factor = left.factor // right.factor
    return Size(tuple(rest), factor) if rest else factor


def is_same(extent: Extent | None, axis: Axis, frozen: Frozen) -> bool:
    """Says whether an extent is that of an axis, or the number that the axis was exported with."""
    if extent == extent_of(axis):
        return True
    total = 1
    for factor in axis:
        size = frozen.get(factor) if isinstance(factor, str) else factor
        if size is None:
            return False
        total *= size
    return extent == total


def regroup(
    axes: Sequence[Axis], targets: Sequence[Extent | None], frozen: Frozen
) -> tuple[Axis, ...] | None:
    """Finds what the axes stand for after a Reshape.

    Args:
        axes: Before it.
        targets: The shape asked for, -1 where it follows from the others.
        frozen: Extents that the graph was exported with.

    Returns:
        The axes; None if there is no reading, or more than one that is as good.
    """
    whole = joined(*axes)
    best: list[tuple[Axis, ...]] = []
    best_score = -1
    for wanted in _completed(whole, targets, frozen):
        for way in _ways(list(whole), list(wanted), frozen):
            score = sum(axis in (TIME_AXIS, BATCH_AXIS) for axis in way)
            if score > best_score:
                best, best_score = [way], score
            elif score == best_score and way not in best:
                best.append(way)
    return best[0] if len(best) == 1 else None


def _completed(whole: Axis, targets: Sequence[Extent | None], frozen: Frozen) -> Iterator[list[Extent]]:
    """Yields the targets with the -1 worked out: from symbols, and from the numbers that they were."""
    known = [target for target in targets if target is not None]
    if len(known) < len(targets):
        return
    if -1 not in known:
        yield known
        return
    others = [target for target in known if target != -1]
    for rest in dict.fromkeys(_without(extent_of(whole), others, frozen)):
        yield [rest if target == -1 else target for target in known]


def _without(total: Extent, extents: Sequence[Extent], frozen: Frozen) -> Iterator[Extent]:
    """Yields what divisions leave; a number that symbols were exported with may stand for them."""
    if not extents:
        yield total
        return
    first, rest = extents[0], extents[1:]
    left = divided(total, first)
    if left is not None and times(left, first) == total:
        yield from _without(left, rest, frozen)
    if not isinstance(total, Size) or not isinstance(first, int):
        return
    for symbol in dict.fromkeys(total.symbols):
        size, without = frozen.get(symbol), divided(total, Size((symbol,)))
        if size is not None and size > 1 and first % size == 0 and without is not None:
            yield from _without(without, [first // size, *rest], frozen)


def _ways(factors: list[Factor], targets: list[Extent], frozen: Frozen) -> Iterator[tuple[Axis, ...]]:
    """Yields every way to cut the factors into axes of the wanted extents."""
    if not targets:
        if not factors:
            yield ()
        return
    for axis, rest in _taken(factors, targets[0], frozen):
        for others in _ways(rest, targets[1:], frozen):
            yield (axis, *others)


def _taken(factors: list[Factor], wanted: Extent, frozen: Frozen) -> Iterator[tuple[Axis, list[Factor]]]:
    """Yields every start of the factors that has the wanted extent, and what is left."""
    if wanted == 1:
        yield ONE, factors
    if not factors:
        return
    first, rest = factors[0], factors[1:]
    if isinstance(first, str):
        left = divided(wanted, Size((first,)))
        size = frozen.get(first)
        if left is None and size is not None and isinstance(wanted, int) and wanted % size == 0:
            left = wanted // size
        if left is not None:
            for axis, remaining in _taken(rest, left, frozen):
                yield joined((first,), axis), remaining
        return
    left = divided(wanted, first)
    if left is not None and times(left, first) == wanted:
        for axis, remaining in _taken(rest, left, frozen):
            yield joined((first,), axis), remaining
    elif isinstance(wanted, int) and wanted > 1 and first % wanted == 0:
        yield (wanted,), [first // wanted, *rest]
