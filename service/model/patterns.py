"""Writes names that run on by a number as one: `in_cache{0..3}` stands for four. Pure.

`service.model.document` reads them.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from service.model.document import MAX_EXPANDED

_NUMBER = re.compile(r"[0-9]{1,9}")

_NAMES = ("name", "input", "output")
"""Keys of a state whose texts run on together."""
_PLACE = "\0"
"""Where a number was."""

LEAST_ALIKE = 4
"""So many states in a row are written as one."""


def collapse(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns states with those that run on written as one, each run where its first state was.

    So a run that others interrupt (`key_0`, `value_0`, `key_1`, ...) comes before them: the order of states
    is that in which the contract has them.
    """
    left = {place: dict(entry) for place, entry in enumerate(entries)}
    done: dict[int, dict[str, Any]] = {}
    most_numbers = max((len(_NUMBER.findall(str(entry.get("input", "")))) for entry in entries), default=0)
    for number_from_right in range(1, min(most_numbers, 8) + 1):
        groups: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for place, entry in left.items():
            found = _template(entry, number_from_right)
            if found is not None:
                groups[repr(sorted(found[0].items()))].append((found[1], place))
        for members in groups.values():
            for run in _runs(members):
                places = [place for _, place in run]
                template = _template(left[places[0]], number_from_right)
                assert template is not None, "bug: a run without a number"
                span = f"{{{run[0][0]}..{run[-1][0]}}}"
                done[min(places)] = {
                    key: value.replace(_PLACE, span) if isinstance(value, str) else value
                    for key, value in template[0].items()
                }
                for place in places:
                    del left[place]
    return [entry for _, entry in sorted({**left, **done}.items())]


def _template(entry: Mapping[str, Any], number_from_right: int) -> tuple[dict[str, Any], int] | None:
    """Returns an entry with one number of each name left out, and this number; None if it has none such."""
    template, numbers = dict(entry), set()
    for key in _NAMES:
        text = entry.get(key)
        if not isinstance(text, str):
            continue
        found = list(_NUMBER.finditer(text))
        if len(found) < number_from_right:
            return None
        place = found[-number_from_right]
        numbers.add(place[0])
        template[key] = f"{text[: place.start()]}{_PLACE}{text[place.end() :]}"
    number = numbers.pop() if len(numbers) == 1 else ""
    return (template, int(number)) if number and number == str(int(number)) else None


def _runs(members: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    runs: list[list[tuple[int, int]]] = []
    for number, place in sorted(members):
        if runs and number == runs[-1][-1][0] + 1 and len(runs[-1]) < MAX_EXPANDED:
            runs[-1].append((number, place))
        else:
            runs.append([(number, place)])
    return [run for run in runs if len(run) >= LEAST_ALIKE]
