"""Whether a stream kept the promise: nothing lost, nothing twice, every output right."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from holdfast.client.reply import StepReply

TOLERANCE = 1e-5


class Judgement(NamedTuple):
    """The stream against the uninterrupted run.

    Attributes:
        lost: Tokens without an output.
        twice: Outputs beyond one per token.
        max_difference: Largest absolute difference of an output.
    """

    lost: int
    twice: int
    max_difference: float

    @property
    def is_good(self) -> bool:
        """Whether the promise held."""
        return self.lost == 0 and self.twice == 0 and self.max_difference <= TOLERANCE

    def __str__(self) -> str:
        return f"lost {self.lost}  applied twice {self.twice}  max difference {self.max_difference:.1e}"


def judge(replies: Sequence[StepReply], count: int, difference: Callable[[StepReply], float]) -> Judgement:
    """Compares what was served with the uninterrupted run.

    Args:
        replies: All of them.
        count: Tokens sent.
        difference: Largest difference of a reply's outputs from those of the run.
    """
    seen: Counter[int] = Counter()
    for reply in replies:
        seen.update(range(reply.position - reply.token_count + 1, reply.position + 1))
    lost = sum(1 for position in range(1, count + 1) if position not in seen)
    worst = max((difference(reply) for reply in replies), default=0.0)
    return Judgement(lost, sum(times - 1 for times in seen.values()), worst)
