"""What must be survived and what can be refused, by name; and the protections listed against it.

A fault is named here and nowhere else, a reason by its class in `holdfast/errors`. An entry of the
TOML files of this folder says with `guards` which of them it stands for; `tests/test_protections.py` fails
while one has no entry. `python -m tests.protections` then takes the entries out.
"""

import tomllib
from pathlib import Path
from typing import NamedTuple

from holdfast.errors import ServiceError
from service.common.failpoints import POINTS

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent

FAULTS = {
    # servers
    **{
        f"server-killed-{point.replace('_', '-')}": "SIGKILL there; the retry goes to another replica"
        for point in POINTS
    },
    "server-stopped": "SIGSTOP past every timeout, then SIGCONT: its late commit is refused",
    "worker-killed": "SIGKILL to one of several workers on a port",
    # the store
    "store-killed": "SIGKILL and restart from the append-only file, under load",
    "store-tail-truncated": "the append-only file loses its tail, acknowledged commits with it",
    "store-rolled-back": "it comes back to positions it had by other tokens, under replicas that remember",
    "store-disk-full": "the append-only file cannot grow",
    "store-full": "no memory left under noeviction: refused cleanly, old sessions intact",
    "store-that-evicts": "a store that may drop sessions silently is refused at start",
    "eviction-policy-changed": "the same, set while servers run on it",
    "store-client-retries": "a client of the store that sends a commit twice",
    "store-error-noscript": "the script was flushed",
    "store-error-readonly": "the primary was demoted",
    "store-error-loading": "it still reads its file",
    "store-error-busy": "a script of another client runs for too long",
    "store-error-masterdown": "a replica without its primary",
    "store-error-misconf": "it cannot persist and refuses writes",
    "store-error-oom": "a commit is refused for lack of memory",
    "sentinel-fail-over": "the primary is killed under load",
    "sentinel-partition-at-memory": "the old primary takes writes and loses them: noticed, and sent again",
    "sentinel-partition-at-replicated": "the same: nothing that was acknowledged is lost",
    "cluster-fail-over": "a primary is killed under load",
    "cluster-slot-migration": "slots move under load",
    # connections
    "store-link-slow": "latency and jitter, beyond the time limit too",
    "store-link-silent": "nothing comes back",
    "store-link-cut": "a commit is cut off in the middle",
    "client-link-cut": "a reply is cut off in the middle",
    "client-link-frozen": "it swallows everything and stays open; new connections are fine",
    "reply-lost-after-commit": "the connection to the store is cut between commit and reply",
    "replies-in-single-bytes": "all links deliver single bytes",
    # clients
    "two-writers": "on one session, through two replicas",
    "ten-writers": "the same with ten",
    "duplicate-chunks": "sent again after they were answered",
    "reordered-chunks": "sent in the wrong order",
    "gapped-chunks": "sent with one missing",
    "random-cancellations": "10,000 calls given up at any moment: no reply to a wrong caller",
    "fork-with-clients": "a process forks with clients closed, open or in use",
    "too-many-open-files": "a client may open none for a moment",
    "slow-reader": "a client sends and does not read",
    "herd": "all clients come back at once after a restart",
    "pipe-killed": "SIGKILL of `holdfast pipe` at any point",
    "pipe-held-up": "SIGSTOP past its lease, then SIGCONT, beside the pipe that has taken over",
    "malformed-request": "bytes that are no message",
    "nested-request": "groups in groups, deeper than a parser follows",
    "oversized-request": "more than the models could need",
    "empty-chunk": "a chunk without tokens",
    "wrong-tensor": "features of another width, shape or dtype",
    "nan-in-input": "features that are not finite",
    "nan-in-state": "a step that leaves NaN or infinity",
    "poison-raises": "a session on which the model raises",
    "poison-stalls": "a session on which the model does not end",
    # what is stored, what is served, and time
    "record-damaged": "flipped bytes",
    "record-foreign": "something else under the session's key",
    "model-file-replaced": "on disk, while it is served under load",
    "clock-jump": "the wall clock of a server or of the store jumps",
}
"""Name -> what happens, and what must come of it where that is not plain."""

REASONS = frozenset(kind.reason for kind in ServiceError.__subclasses__())

_KEYS = {"name", "file", "old", "new", "test", "guards"}


class Protection(NamedTuple):
    """One entry.

    Attributes:
        name: What is protected, as a sentence.
        file: Path from the root of the tree.
        old: The protection, exactly.
        new: What stands there without it.
        test: Id of the test that must fail.
        guards: Faults and reasons that it stands for.
    """

    name: str
    file: str
    old: str
    new: str
    test: str
    guards: tuple[str, ...]


def read(folder=FOLDER, words=()):
    """Yields the entries of a folder; a wrong one is a ValueError that names it.

    Args:
        folder: With TOML files.
        words: Only entries whose file or name has one of these, or that guard one.
    """
    for path in sorted(folder.glob("*.toml")):
        for entry in tomllib.loads(path.read_text()).get("protection", []):
            if entry.keys() != _KEYS:
                expected = f"expected {', '.join(sorted(_KEYS))}"
                raise ValueError(f"{path.name}: {entry.get('name')}: {expected}")
            protection = Protection(**{**entry, "guards": tuple(entry["guards"])})
            if not words or any(
                word == path.stem or word in protection.name or word in protection.guards for word in words
            ):
                yield protection
