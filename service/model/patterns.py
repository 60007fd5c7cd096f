"""Names that run on by a number, as one: `in_cache{0..3}` stands for four. Pure."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from service.model.contract import ContractError

_RANGE = re.compile(r"\{([0-9]{1,6})\.\.([0-9]{1,6})\}")
_NUMBER = re.compile(r"[0-9]{1,9}")

_PATTERNED = ("name", "input", "output", "initial")
"""Keys of a state whose texts run on together."""

MAX_STATES = 4096
LEAST_ALIKE = 4
"""So many states in a row are written as one."""


def expand(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the states that an entry stands for: itself, or one per number of its ranges.

    Raises:
        ContractError: Its ranges are not equally long, or too long.
    """
    ranges = {
        key: found
        for key in _PATTERNED
        if isinstance(entry.get(key), str) and (found := _RANGE.search(entry[key])) is not None
    }
    if not ranges:
        return [dict(entry)]
    spans = {key: range(int(found[1]), int(found[2]) + 1) for key, found in ranges.items()}
    counts = {key: len(span) for key, span in spans.items()}
    shown = ", ".join(f"{key} {entry[key]!r} of {count}" for key, count in counts.items())
    if len(set(counts.values())) > 1 or not 1 <= min(counts.values()) <= MAX_STATES:
        raise ContractError(f"state: the ranges must be equally long and not empty; found are {shown}")
    return [
        {
            **entry,
            **{
                key: f"{entry[key][: found.start()]}{spans[key][at]}{entry[key][found.end() :]}"
                for key, found in ranges.items()
            },
        }
        for at in range(next(iter(counts.values())))
    ]


def collapse(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns states with those that run on written as one, each run where its first state was.

    So a run that others interrupt (`key_0`, `value_0`, `key_1`, ...) comes before them: the order of states
    is that in which the contract has them.
    """
    left = {place: dict(entry) for place, entry in enumerate(entries)}
    done: dict[int, dict[str, Any]] = {}
    most_numbers = max((len(_NUMBER.findall(str(entry.get("input", "")))) for entry in entries), default=0)
    for number_from_right in range(1, min(most_numbers, 8) + 1):
        groups: dict[str, list[tuple[dict[str, int], int]]] = defaultdict(list)
        for place, entry in left.items():
            template, numbers = _template(entry, number_from_right)
            if numbers:
                groups[template].append((numbers, place))
        for members in groups.values():
            for run in _runs(members):
                places = [place for _, place in run]
                done[min(places)] = _joined(left[places[0]], run[0][0], run[-1][0], number_from_right)
                for place in places:
                    del left[place]
    return [entry for _, entry in sorted({**left, **done}.items())]


def _template(entry: Mapping[str, Any], number_from_right: int) -> tuple[str, dict[str, int]]:
    """Returns an entry with one number of each name left out, and these; none if an input has too few."""
    template, numbers = dict(entry), {}
    for key in _PATTERNED:
        text = entry.get(key)
        found = list(_NUMBER.finditer(text)) if isinstance(text, str) else []
        if len(found) >= number_from_right and key != "initial":
            place = found[-number_from_right]
            if place[0] != str(int(place[0])):
                return "", {}  # leading zeros
            template[key] = f"{text[: place.start()]}\0{text[place.end() :]}"  # type: ignore[index]
            numbers[key] = int(place[0])
    return (repr(sorted(template.items())), numbers) if "input" in numbers else ("", {})


def _runs(members: list[tuple[dict[str, int], int]]) -> list[list[tuple[dict[str, int], int]]]:
    runs: list[list[tuple[dict[str, int], int]]] = []
    for numbers, place in sorted(members, key=lambda member: member[0]["input"]):
        expected = {key: number + 1 for key, number in runs[-1][-1][0].items()} if runs else {}
        if numbers == expected:
            runs[-1].append((numbers, place))
        else:
            runs.append([(numbers, place)])
    return [run for run in runs if len(run) >= LEAST_ALIKE]


def _joined(
    entry: Mapping[str, Any], first: Mapping[str, int], last: Mapping[str, int], number_from_right: int
) -> dict[str, Any]:
    joined = dict(entry)
    for key, number in first.items():
        place = list(_NUMBER.finditer(entry[key]))[-number_from_right]
        joined[key] = f"{entry[key][: place.start()]}{{{number}..{last[key]}}}{entry[key][place.end() :]}"
    return joined
