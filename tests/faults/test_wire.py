"""Connections are cut, silent, slow or in crumbs: client to server, and server to store."""

import asyncio
import itertools

import pytest

import holdfast
from holdfast.client.history import Recorder
from holdfast.errors import HoldfastError, PositionConflict, PositionGap
from tests.faults.verdict import MODEL, assert_held, chunk, seeded
from tests.nemesis.proxy import FaultProxy
from tests.nemesis.store import StoreProcess
from tests.support.server import ServerProcess, get

TEXT = b"class Stack(list):\n    def push(self, item):\n        self.append(item)\n"

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with StoreProcess(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture(scope="module")
def store_link(store):
    with FaultProxy(store.socket_path, store.folder / "proxy") as proxy:
        yield proxy


@pytest.fixture(scope="module")
def server(tmp_path_factory, store_link):
    flags = ("--store", f"unix://{store_link.address}", "--store-timeout-s", "0.4")
    with ServerProcess(tmp_path_factory.mktemp("server"), *flags) as server:
        yield server


@pytest.fixture(scope="module")
def client_link(server):
    with FaultProxy(server.address) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def healed(store_link, client_link):
    yield
    store_link.heal()
    client_link.heal()


@pytest.fixture
def session(client_link, tmp_path):
    """A session through both proxies, at position 1, whose client's history is judged at the end."""
    with holdfast.Client(client_link.address, timeout_s=20, history=tmp_path / "history") as client:
        session = client.open_session(f"wire-{tmp_path.name}", model=MODEL)
        session.step(TEXT[:1], token_log_prob=True)
        yield session
    total = assert_held(tmp_path / "history")
    assert not total.errors["STORE_REGRESSED"], "this store loses nothing, so an acknowledgement was false"


def test_a_connection_cut_between_commit_and_reply_costs_nothing(session, store_link, server):
    """The store has committed, its reply is lost: the server reads back what became of it."""
    connections = store_link.connection_count
    store_link.to_client.reset_after = 0
    reply = session.step(TEXT[1:9], token_log_prob=True)
    assert store_link.connection_count > connections
    assert (reply.position, session.step(TEXT[9:12], token_log_prob=True).position) == (9, 12)


@pytest.mark.parametrize("place", [0, 1, 9, 30])
def test_a_reply_cut_off_in_the_middle_is_asked_for_again(session, client_link, place):
    client_link.to_client.reset_after = place
    reply = session.step(TEXT[1:9], token_log_prob=True)
    assert (client_link.to_client.reset_after, reply.position) == (None, 9)
    assert session.step(TEXT[9:12], token_log_prob=True).position == 12


def test_a_request_cut_off_in_the_middle_is_sent_again(session, client_link):
    client_link.to_server.reset_after = 30
    assert session.step(TEXT[1:9], token_log_prob=True).position == 9


@pytest.mark.parametrize("place", [5, 200, 700])
def test_a_commit_cut_off_in_the_middle_is_made_again(session, store_link, place):
    store_link.to_server.reset_after = place
    assert session.step(TEXT[1:9], token_log_prob=True).position == 9
    assert session.step(TEXT[9:12], token_log_prob=True).position == 12


def test_single_bytes_are_put_together_again(session, store_link, client_link):
    for link in (store_link.to_server, store_link.to_client, client_link.to_server, client_link.to_client):
        link.slice_bytes = 1
    for start in range(1, 31, 10):
        session.step(TEXT[start : start + 10], token_log_prob=True)
    replies = list(session.stream(TEXT[31:61], chunk=3, token_log_prob=True))
    assert replies[-1].position == 61


def test_a_silent_store_is_refused_in_time_and_used_again(session, store_link, server):
    store_link.to_client.is_black_hole = True
    with pytest.raises(HoldfastError) as caught:
        session.step(TEXT[1:9], timeout_s=1.0, token_log_prob=True)
    assert caught.value.reason in ("STORE_UNAVAILABLE", "DEADLINE_PASSED")
    assert get(server, "/readyz")[0] == 503
    store_link.to_client.is_black_hole = False
    assert [reply.position for reply in session.settle()] == [9]
    assert session.step(TEXT[9:12], token_log_prob=True).position == 12


def test_a_slow_store_is_waited_for_and_a_slower_one_settled(session, store_link):
    store_link.to_server.delay_s, store_link.to_client.jitter_s = 0.1, 0.1
    assert session.step(TEXT[1:9], token_log_prob=True).position == 9
    store_link.to_client.delay_s = (
        0.6  # beyond the server's limit: it commits, and its reply comes too late
    )
    with pytest.raises(HoldfastError):
        session.step(TEXT[9:12], timeout_s=1.5, token_log_prob=True)
    store_link.heal()
    assert [reply.position for reply in session.settle()] == [12]
    assert session.step(TEXT[12:20], token_log_prob=True).position == 20


async def test_many_sessions_live_through_cuts_on_both_sides(client_link, store_link, tmp_path):
    rng = seeded()
    history = tmp_path / "history"
    async with holdfast.AsyncClient(client_link.address, timeout_s=30, history=history) as client:

        async def write(number):
            session = await client.open_session(f"cut-{tmp_path.name}-{number}", model=MODEL)

            async def pieces():
                for byte in TEXT:
                    await asyncio.sleep(rng.uniform(0, 0.04))
                    yield bytes([byte])

            async for _ in session.stream(pieces(), token_log_prob=True):
                pass
            return session.position

        async def cut():
            for link in itertools.islice(itertools.cycle((store_link, client_link)), 12):
                await asyncio.sleep(rng.uniform(0.02, 0.15))
                link.cut()

        positions = await asyncio.gather(*(write(number) for number in range(16)), cut())
    assert set(positions[:-1]) == {len(TEXT)}
    assert assert_held(history).tokens == 16 * len(TEXT)


async def test_duplicate_reordered_and_gapped_chunks_change_nothing(server, tmp_path):
    recorder = Recorder(tmp_path / "history")
    name = f"raw-{tmp_path.name}"
    async with holdfast.AsyncClient(server.address, history=recorder) as client:

        async def step(text, position, **fields):
            request = chunk(name, text, position, **fields)
            return (await client._calls.call_once("Step", request, client._calls.deadline_s(5))).result

        await client.open_session(name, model=MODEL)
        first = await step(b"abc", 0)
        again = await asyncio.gather(*(step(b"abc", 0) for _ in range(5)))
        assert all((reply.replayed, reply.outputs) == (True, first.outputs) for reply in again)
        with pytest.raises(PositionGap) as gap:
            await step(b"ghi", 6)
        with pytest.raises(PositionConflict) as conflict:
            await step(b"abx", 0)
        assert gap.value.expected_position == conflict.value.expected_position == 3
        pieces = [b"def", b"ghi", b"jkl"]
        late = [step(piece, 3 + 3 * index) for index, piece in enumerate(pieces)][::-1]
        outcomes = await asyncio.gather(*late, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes[:2]} <= {type(first), PositionGap}
        position = first.position
        for (
            piece
        ) in pieces:  # those that came too early are sent again, those that were applied are replays
            position += len(piece)
            assert (await step(piece, position - len(piece), acknowledged_position=3)).position == position
    assert assert_held(tmp_path / "history").replays >= 5
