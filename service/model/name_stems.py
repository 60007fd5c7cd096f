"""Which output follows which input as its next state, as far as their names say so. Pure.

Names of a state and of its successor differ in a mark: `h_in` and `h_out`, `h` and `hn`, `cached_key_0` and
`new_cached_key_0`, `cache_last_channel_len` and `cache_last_channel_next_len`, `past.0.key` and
`present.0.key`. So a name is cut into words, marks are left out of it, and what stays is its stem. Two
names belong together if a stem is common to them, and if for both no other name is as near.

`in` and `out` alone do not tell a state from a signal: `audio_in` and `audio_out` are what a filter takes
and gives. Nor does a number that a tool has drawn: `input_2`, `getitem_1`.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from itertools import combinations

Words = tuple[str, ...]


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BEFORE = _set("prev previous past old last initial init before cur current curr 0 t")
_AFTER = _set("next new present after updated update final last cur current curr n t nxt 1 y")
"""Marks that say which of two it is in time: on inputs, on outputs."""
_IN = _set("in input inp i")
_OUT = _set("out output outp o")
"""Marks that say on which side of the graph it is."""
_TELLING = _set("prev previous past old next nxt new present updated")
"""Marks that nothing but a state and its successor have."""

_GLUED_IN = ("input", "prev", "past", "init", "old", "in", "0", "t", "i", "x")
_GLUED_OUT = ("output", "next", "new", "out", "n", "o", "t", "y")
"""Marks without a boundary, as in `hn`, `hout` and `newh`; those of one letter come last only."""

_SIGNALS = _set("""
    audio wav waveform pcm speech signal sample samples frame frames chunk mag magnitude phase spec
    spectrum spectrogram stft fft mel feat feats feature features embedding emb data tensor noisy
    clean mix mixture enhanced src image video token tokens id ids text x y z u in out input output
    mask logits prob probs value values result getitem identity add mul sub concat slice squeeze
    unsqueeze reshape transpose
""")
"""Words for what goes in and comes out, and for operators: no names of a state unless a mark tells."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+")
_REWRITTEN = (
    (re.compile(r"^serving_default_"), ""),
    (re.compile(r":\d+$"), ""),
    (re.compile(r"past_key_values"), "past"),
    (re.compile(r"(?<![A-Za-z])tm1(?![A-Za-z0-9])|(?<![A-Za-z])t_?minus_?1(?![0-9])"), "prev"),
    (re.compile(r"(?<![A-Za-z])tp?1(?![A-Za-z0-9])|(?<![A-Za-z])t_?plus_?1(?![0-9])"), "next"),
)
_TRACED = re.compile(r"\.\d+$")
"""A number that torch appends to what it names a second time."""

_MAX_WORDS, _MAX_MARKS = 32, 8
_MOST_ALIKE = 16
"""A stem that more outputs have tells none of them from the others."""
_MOST_ROUNDS = 8
_GLUE_COST = 2


def pair_names(
    inputs: Collection[str], outputs: Collection[str], fits: Callable[[str, str], bool]
) -> dict[str, str]:
    """Returns the outputs that follow inputs, for the inputs where names leave no doubt.

    Args:
        inputs: Names of inputs.
        outputs: Names of outputs.
        fits: Says whether an output can follow an input, by its type and shape.
    """
    candidates = [
        (cost, name, follower)
        for (name, follower), cost in _related(inputs, outputs).items()
        if name != follower and fits(name, follower)
    ]
    pairs: dict[str, str] = {}
    for _ in range(_MOST_ROUNDS):
        found = _nearest(candidates)
        if not found:
            break
        pairs |= found
        taken = set(pairs.values())
        candidates = [entry for entry in candidates if entry[1] not in pairs and entry[2] not in taken]
    return pairs


def namesakes(name: str, outputs: Collection[str]) -> list[str]:
    """Returns the outputs that would follow an input by their names, the nearest first."""
    related = _related([name], outputs)
    return [follower for (_, follower), _ in sorted(related.items(), key=lambda entry: entry[1])]


def words_of(name: str) -> Words:
    """Returns the words of a name in small letters; numbers are words."""
    for pattern, replacement in _REWRITTEN:
        name = pattern.sub(replacement, name)
    return tuple(word.lower() for word in _WORD.findall(name))


def _nearest(candidates: list[tuple[int, str, str]]) -> dict[str, str]:
    """Returns the pairs that are nearer to each other than to anything else."""
    by_input: dict[str, list[tuple[int, str]]] = defaultdict(list)
    by_output: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for cost, name, follower in candidates:
        by_input[name].append((cost, follower))
        by_output[follower].append((cost, name))
    best = {name: _only_nearest(found) for name, found in by_input.items()}
    best_back = {name: _only_nearest(found) for name, found in by_output.items()}
    return {
        name: follower
        for name, follower in best.items()
        if follower is not None and best_back[follower] == name
    }


def _only_nearest(found: list[tuple[int, str]]) -> str | None:
    least = min(cost for cost, _ in found)
    names = [name for cost, name in found if cost == least]
    return names[0] if len(names) == 1 else None


def _related(inputs: Collection[str], outputs: Collection[str]) -> dict[tuple[str, str], int]:
    """Returns what was left out of both names for each pair of them that has a stem in common."""
    by_stem: dict[Words, list[tuple[str, int, bool]]] = defaultdict(list)
    for name in outputs:
        for stem, (cost, tells) in _stems(name, _AFTER | _OUT, _GLUED_OUT).items():
            by_stem[stem].append((name, cost, tells))
    costs: dict[tuple[str, str], int] = {}
    for name in inputs:
        for stem, (cost, tells) in _stems(name, _BEFORE | _IN, _GLUED_IN).items():
            followers = by_stem.get(stem, ())
            for follower, other_cost, other_tells in followers if len(followers) <= _MOST_ALIKE else ():
                if tells or other_tells or not _SIGNALS.issuperset(_letters(stem)):
                    pair = (name, follower)
                    costs[pair] = min(cost + other_cost, costs.get(pair, cost + other_cost))
    return costs


def _letters(stem: Words) -> Words:
    return tuple(word for word in stem if not word.isdecimal())


def _stems(name: str, marks: frozenset[str], glued: tuple[str, ...]) -> dict[Words, tuple[int, bool]]:
    """Returns stem -> what leaving marks out costs, and whether one of them tells."""
    stems: dict[Words, tuple[int, bool]] = {}
    for words, start_cost in _spellings(name):
        places = [at for at, word in enumerate(words) if word in marks]
        for count in range(3):
            for left_out in combinations(places[-_MAX_MARKS:], count):
                stem = tuple(word for at, word in enumerate(words) if at not in left_out)
                _note(stems, stem, start_cost + count, tells=any(words[at] in _TELLING for at in left_out))
        for at, word in enumerate(words[:_MAX_MARKS]):
            for mark, rest in _unglued(word, glued):
                stem = (*words[:at], rest, *words[at + 1 :])
                _note(stems, stem, start_cost + _GLUE_COST, tells=mark in _TELLING)
    return stems


def _spellings(name: str) -> Iterator[tuple[Words, int]]:
    words = words_of(name)
    if len(words) > _MAX_WORDS:
        return
    yield words, 0
    if _TRACED.search(name):
        yield words[:-1], _GLUE_COST


def _note(stems: dict[Words, tuple[int, bool]], stem: Words, cost: int, *, tells: bool) -> None:
    if _letters(stem) and (stem not in stems or cost < stems[stem][0]):
        stems[stem] = cost, tells


def _unglued(word: str, glued: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for mark in glued:
        if len(word) > len(mark):
            if word.endswith(mark):
                yield mark, word.removesuffix(mark)
            if len(mark) > 2 and word.startswith(mark):
                yield mark, word.removeprefix(mark)
