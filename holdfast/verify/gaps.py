"""Which requests of open fate fill the gaps of a life. Pure."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.verify.digests import DigestChain
from holdfast.verify.life import Life
from holdfast.verify.network import Network
from holdfast.verify.session_history import Attempt

MAX_FILLINGS = 1024
"""Ways to fill a gap that are tried."""


class Gaps:
    """Positions of a life that somebody saw and no acknowledged chunk covers."""

    def __init__(self, life: Life, network: Network | None, tolerance: float, chain: DigestChain) -> None:
        self._life = life
        self._network = network
        self._tolerance = tolerance
        self._chain = chain

    def fill(self) -> None:
        """Fills them on the tape; what no request explains is a finding."""
        life = self._life
        place = life.base
        while place < life.top:
            if place in life.tape:
                place += 1
                continue
            end = next((other for other in range(place, life.top) if other in life.tape), life.top)
            generated = sorted(known for known in life.generated if place <= known < end)
            filling = self._proven(place, end) if generated else self._choose(place, end)
            if filling is None and generated:
                filling, end = self._prompt_of_generation(place, generated, end)
            if filling is None and place not in life.generated:
                life.findings.unexplained += end - place
                life.note(f"positions {place}..{end} were applied, and no recorded request explains it")
            for attempt, start in filling or ():
                life.tape.update(zip(itertools.count(start), attempt.tokens, strict=False))
            place = end

    def _prompt_of_generation(
        self, start: int, generated: list[int], end: int
    ) -> tuple[list[tuple[Attempt, int]] | None, int]:
        """Returns what fills a gap up to where a broken generation went on by itself, and that place."""
        for place in generated:
            if place > start and (filling := self._choose(start, place)) is not None:
                return filling, place
        return None, end

    def _proven(self, start: int, end: int) -> list[tuple[Attempt, int]] | None:
        """Returns the requests that fill a gap by a digest that is said later; None if none proves any.

        A broken generation may have applied tokens there of which nobody was told, so that it is not
        enough that a request fits.
        """
        fillings = itertools.islice(self._fillings(start, end), MAX_FILLINGS)
        return next((filling for filling in fillings if self._leads_on(start, filling)), None)

    def _leads_on(self, start: int, filling: list[tuple[Attempt, int]]) -> bool:
        return self._chain.leads_on(start, [token for attempt, _ in filling for token in attempt.tokens])

    def _choose(self, start: int, end: int) -> list[tuple[Attempt, int]] | None:
        """Returns the requests of open fate that fill a gap; of several ways that which is confirmed.

        By a digest that is said later, or else by outputs; without one the next digest is not judged.
        """
        life, network = self._life, self._network
        fillings = list(itertools.islice(self._fillings(start, end), MAX_FILLINGS))
        for filling in fillings if len(fillings) > 1 else ():
            if self._leads_on(start, filling):
                return filling
        if len(fillings) > 1:
            life.unsure.append(end)
        if len(fillings) < 2 or network is None or not life.knows_start:
            return fillings[0] if fillings else None
        after = next((piece for piece in life.pieces if piece.start == end), None)
        if after is None or any(place not in life.tape for place in range(life.base, start)):
            return fillings[0]
        before = [*life.prefix, *(life.tape[place] for place in range(life.base, start))]
        state: Mapping[str, NDArray[Any]] | None = life.initial
        if before:
            state = network.run(np.array(before), life.initial).state_after(len(before))
        for filling in fillings:
            tokens = [token for attempt, _ in filling for token in attempt.tokens]
            run = network.run(np.array([*tokens, *after.attempt.tokens]), state)
            if run.differences(len(tokens), after.reply.outputs) <= self._tolerance:
                return filling
        return fillings[0]

    def _fillings(self, start: int, end: int) -> Iterator[list[tuple[Attempt, int]]]:
        """Yields the ways to lay requests of open fate end to end from one position to another.

        The latest first: who found the session further on sent nothing there any more, and what was sent
        earlier is more likely to have found it elsewhere.
        """
        tried: set[bytes] = set()
        for attempt in reversed(self._life.open_fates):
            size = len(attempt.tokens)
            if attempt.position not in (None, start) or not 0 < size <= end - start:
                continue
            name = attempt.tokens.tobytes()
            if name in tried:
                continue
            tried.add(name)
            if start + size == end:
                yield [(attempt, start)]
            else:
                for rest in self._fillings(start + size, end):
                    yield [(attempt, start), *rest]
