"""Decides whether a stream may open and a chunk may come in: bounds and fair shares. Pure.

Three things are bounded, each for the whole process: open streams, chunks taken and not answered, and
bytes, of those chunks and of replies that are not written yet.

The rule between tenants. A tenant may take more of a thing while what it then has is at most
share / (1 - share) times what is then free. A tenant alone so gets `share` of the bound and never all of
it. Of several that flood each gets the same, and (1 - share) / share of what one of them has stays free, so
that whoever comes later is let in. Nobody has to know how many tenants there are.

Rejected: a fixed share of the bound for each tenant, since a few that flood then fill it together; and
turns between tenants in the queue, which every chunk would pay for, while what waits here is worked
off within about a second.

A refusal asks for a pause that grows with how full the process is. The client adds jitter.
"""

from collections.abc import Callable
from dataclasses import dataclass

from holdfast.errors import Overloaded

MIN_PAUSE_S = 0.02
MAX_PAUSE_S = 0.2
"""What a refusal asks for where next to nothing is held, and where a bound is reached."""

THINGS = ("open streams", "waiting chunks", "waiting bytes")


@dataclass(frozen=True)
class Bounds:
    """What a process holds at most.

    Attributes:
        streams: Open streams.
        chunks: Chunks that are taken and not answered.
        size_bytes: Bytes of such chunks, and of replies that are not written.
        share: Of each bound, what a tenant alone may have, in (0, 1]; at 1 tenants are not told apart.
    """

    streams: int = 16_384
    chunks: int = 8192
    size_bytes: int = 256 << 20
    share: float = 0.8


@dataclass(slots=True)
class Held:
    """What the process, or one tenant, holds."""

    streams: int = 0
    chunks: int = 0
    size_bytes: int = 0


class Admission:
    """Counts what is held.

    Args:
        bounds: What may be held.
        refused: Told the reason of each refusal.

    Attributes:
        held: By all tenants together.
        refused: As given.
    """

    def __init__(self, bounds: Bounds, refused: Callable[[str], None] = lambda _: None) -> None:
        self.bounds = bounds
        self.held = Held()
        self.refused = refused
        self._tenants: dict[str, Held] = {}
        # with less than this held by all, no tenant can have too much: nothing else is looked at
        self.easy_chunks = int(bounds.chunks * bounds.share)
        self.easy_bytes = int(bounds.size_bytes * bounds.share)

    def open_stream(self, tenant: str) -> "Share":
        """Lets a stream open.

        Raises:
            Overloaded: So many are open, or the tenant has its share of them.
        """
        share = self.share(tenant)
        share.take_stream()
        return share

    def share(self, tenant: str) -> "Share":
        """Returns what one call of a tenant holds: nothing yet."""
        held = self._tenants.get(tenant)
        if held is None:
            held = self._tenants[tenant] = Held()
        return Share(self, held)

    def check(self, held: Held, streams: int, chunks: int, size_bytes: int) -> None:
        """Refuses what a tenant would hold too much with.

        Args:
            held: What the tenant has.
            streams: What it wants.
            chunks: What it wants.
            size_bytes: What it wants.

        Raises:
            Overloaded: As named.
        """
        whole, bounds = self.held, self.bounds
        wanted = (
            (streams, held.streams, whole.streams, bounds.streams),
            (chunks, held.chunks, whole.chunks, bounds.chunks),
            (size_bytes, held.size_bytes, whole.size_bytes, bounds.size_bytes),
        )
        for thing, (more, own, of_all, bound) in zip(THINGS, wanted, strict=True):
            free = bound - of_all - more
            if more and (free < 0 or (own + more) * (1 - bounds.share) > free * bounds.share):
                self._refuse(thing, more, own, of_all, bound)

    def _refuse(self, thing: str, more: int, own: int, of_all: int, bound: int) -> None:
        self.refused(Overloaded.reason)
        fill = min(1.0, of_all / bound)
        raise Overloaded(
            f"too many {thing}: {more:,} more to {of_all:,}, {own:,} of them this tenant's, where this "
            f"server takes {bound:,}, and from one tenant alone {self.bounds.share:.0%} of them",
            retry_after_s=MIN_PAUSE_S + (MAX_PAUSE_S - MIN_PAUSE_S) * fill,
        )


class Share:
    """What one call holds. Made by `Admission`."""

    __slots__ = ("_admission", "_chunks", "_size_bytes", "_streams", "_tenant", "_whole")

    def __init__(self, admission: Admission, tenant: Held) -> None:
        self._admission = admission
        self._tenant = tenant
        self._whole = admission.held
        self._streams = self._chunks = self._size_bytes = 0

    def take_stream(self) -> None:
        """Counts the call as a stream.

        Raises:
            Overloaded: There are too many.
        """
        self._admission.check(self._tenant, 1, 0, 0)
        self._streams += 1
        self._whole.streams += 1
        self._tenant.streams += 1

    def take(self, chunks: int, size_bytes: int) -> None:
        """Counts chunks that come in, and their bytes.

        Raises:
            Overloaded: There are too many; nothing is counted.
        """
        whole, admission = self._whole, self._admission
        if (
            whole.chunks + chunks > admission.easy_chunks
            or whole.size_bytes + size_bytes > admission.easy_bytes
        ):
            admission.check(self._tenant, 0, chunks, size_bytes)
        self.change(chunks, size_bytes)

    def change(self, chunks: int, size_bytes: int) -> None:
        """Counts chunks and bytes that come, or, below zero, go; refuses nothing."""
        whole, tenant = self._whole, self._tenant
        self._chunks += chunks
        self._size_bytes += size_bytes
        whole.chunks += chunks
        whole.size_bytes += size_bytes
        tenant.chunks += chunks
        tenant.size_bytes += size_bytes

    def hold(self, chunks: int, size_bytes: int) -> None:
        """Counts this in place of what was counted; refuses nothing."""
        self.change(chunks - self._chunks, size_bytes - self._size_bytes)

    def close(self) -> None:
        """The call has ended: nothing is held any more."""
        self.change(-self._chunks, -self._size_bytes)
        self._whole.streams -= self._streams
        self._tenant.streams -= self._streams
        self._streams = 0
