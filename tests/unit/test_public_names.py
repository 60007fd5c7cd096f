"""What an editor shows on the client's classes is what docs/guides/python.md lists, and nothing else."""

import re
import types

import pytest

import holdfast
from holdfast.client.calls import Calls
from holdfast.client.runner import Runner
from holdfast.client.steps import Steps
from holdfast.client.writer import Writer
from holdfast.v1 import holdfast_pb2 as pb
from tests.docs.pages import PAGES

[PAGE] = [page for page in PAGES if page.name == "python.md"]
ROWS = re.findall(
    r"^\| `(\w+)` \| (.*) \|$", PAGE.read_text().partition("\n## All names\n")[2], re.MULTILINE
)
DOCUMENTED = {kind: set(re.findall(r"`(\w+)`", names)) for kind, names in ROWS}


class Nowhere:
    """What a client calls over, without a connection; a thread whose event loop runs nothing."""

    is_inherited = is_closed = False
    replica_count = 1

    def check(self):
        pass

    def run(self, coroutine):
        coroutine.close()


def async_session():
    calls = Calls(
        Nowhere(), token=None, retry=holdfast.RetryPolicy(), timeout_s=1, ack_level=None, history=None
    )
    opened = pb.OpenSessionResponse(session=pb.Session(session_id="s"))
    return holdfast.AsyncSession(Writer(calls, Steps(calls), None, opened, [], 0))


def session():
    return holdfast.Session(Runner(Nowhere()), async_session())


MADE = {
    "Client": lambda: holdfast.Client("127.0.0.1:1"),
    "AsyncClient": lambda: holdfast.AsyncClient("127.0.0.1:1"),
    "Session": session,
    "AsyncSession": async_session,
    "StepReply": lambda: holdfast.StepReply(pb.ChunkResult()),
    "WatchedChunk": lambda: holdfast.WatchedChunk(pb.WatchSessionResponse()),
    "GeneratedToken": lambda: holdfast.GeneratedToken(
        pb.GeneratedToken(), holdfast.StepReply(pb.ChunkResult())
    ),
    "OpenedBatch": lambda: holdfast.OpenedBatch([], pb.OpenBatchResponse()),
    "DeletedBatch": lambda: holdfast.DeletedBatch([], pb.DeleteBatchResponse()),
    "BatchReply": lambda: holdfast.BatchReply(pb.BatchResult()),
    "BatchPipeline": lambda: holdfast.BatchPipeline(None, {}, 1),
    "PendingChunk": lambda: holdfast.PendingChunk(0, b"a"),
    "RetryPolicy": holdfast.RetryPolicy,
    "Tls": holdfast.Tls,
}


def test_every_class_has_a_row_on_the_page():
    classes = {name for name in holdfast.__all__ if isinstance(getattr(holdfast, name), type)}
    assert DOCUMENTED.keys() == MADE.keys() == classes - {"HoldfastError"}, "docs/errors.md has that one"


@pytest.mark.parametrize("kind", MADE)
def test_a_class_shows_what_the_page_lists(kind):
    made = MADE[kind]()
    shown = {name for name in dir(made) if not name.startswith("_")} - set(dir(tuple))
    assert shown == DOCUMENTED[kind]
    if kind == "Client":
        made.close()


def test_a_stream_is_a_generator_and_shows_nothing_else():
    assert type(session().stream(b"a")) is types.GeneratorType
    assert type(async_session().stream(b"a")) is types.AsyncGeneratorType
    assert type(session().generate(1)) is types.GeneratorType
    assert type(async_session().generate(1)) is types.AsyncGeneratorType
