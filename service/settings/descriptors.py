"""How many descriptors the processes of a server need, and may have.

A server holds one for each client's connection. The soft limit of 1024 that many systems begin with is for
programs that use `select`, which nothing here does; so it is raised as far as it is needed and allowed.
"""

import logging
import resource

from service.common.start_errors import StartError
from service.settings.schema import Settings

_log = logging.getLogger(__name__)

OWN_COUNT = 64
"""What a process has open beside connections, 30 at rest: loops, libraries, the store and what confirms its
writes, and for a while model files, certificates and processes that check them."""

HTTP_COUNT = 256
"""For the connections of the HTTP side; they are bounded by it."""

PER_WORKER_COUNT = 4
"""Of the supervisor, for each worker."""

LEAST_COUNT = OWN_COUNT + HTTP_COUNT + 64
"""With fewer no server starts: some clients must have room beside what it needs itself."""

_UNLIMITED = 1 << 30


def provide_descriptors(settings: Settings) -> None:
    """Raises the limit of this process, which its workers inherit, to what the settings may need.

    Raises:
        StartError: The limit is too low for any server.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = needed_count(settings)
    if _count(soft) < needed:
        soft = needed if needed < _count(hard) else hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if _count(soft) < LEAST_COUNT:
        raise StartError(
            f"a process may have {soft} descriptors (`ulimit -Hn`); a server needs {LEAST_COUNT} at least, "
            f"and {needed} for --max-streams {settings.max_streams}: raise the limit"
        )
    if _count(soft) < needed:
        _log.warning(
            "a process may have %d descriptors (`ulimit -Hn`), and --max-streams %d needs %d if each "
            "stream has a connection of its own: beyond %d connections clients are turned away; raise the "
            "limit, or lower --max-streams",
            *(soft, settings.max_streams, needed, most_connections(settings)),
        )


def most_connections(settings: Settings) -> int:
    """Returns how many connections of gRPC leave this process the descriptors that it needs itself."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _count(soft) - OWN_COUNT - (HTTP_COUNT if settings.workers == 1 else 0)


def needed_count(settings: Settings) -> int:
    """Returns the descriptors that the process which needs most of them may use at once."""
    streams = OWN_COUNT + settings.max_streams
    if settings.workers == 1:
        return streams + HTTP_COUNT
    return max(streams, OWN_COUNT + HTTP_COUNT + PER_WORKER_COUNT * settings.workers)


def _count(limit: int) -> int:
    return _UNLIMITED if limit == resource.RLIM_INFINITY else limit
