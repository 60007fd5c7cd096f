"""The client against a real server: selections, resume, healing after a store that went back."""

import asyncio
import os
import signal
import uuid

import numpy as np
import pytest
import redis

import holdfast
from holdfast.errors import (
    ChunkPending,
    ClientClosed,
    DeadlinePassed,
    HoldfastError,
    InvalidRequest,
    ServerUnavailable,
    SessionDeleted,
    StoreRegressed,
)
from tests.support.oracle import run
from tests.support.server import ServerProcess

MODEL = "python-source"
TEXT = b"def f(x):\n    return x + 1\n"


@pytest.fixture(scope="module")
def client(server):
    with holdfast.Client(server.address, timeout_s=20) as client:
        yield client


def test_a_step_gives_what_was_asked_for(client):
    session = client.open_session("asked", model=MODEL)
    reply = session.step("import num", top_k=3, token_log_prob=True, outputs=["logits"], state=True)
    logits, log_probs = run(MODEL, b"import num")
    np.testing.assert_allclose(reply.token_log_probs, log_probs, atol=1e-5)
    np.testing.assert_allclose(reply.outputs["logits"], logits, atol=1e-5)
    assert [token for token, _ in reply.top[-1]] == np.argsort(-logits[-1])[:3].tolist()
    assert (reply.position, reply.token_count, reply.replayed, reply.ack_level) == (10, 10, False, "memory")
    np.testing.assert_array_equal(reply.state["h"], session.state()["h"])


def test_by_default_five_candidates_come(client):
    reply = client.open_session("default", model=MODEL).step("a")
    assert len(reply.top[0]) == 5
    assert reply.token_log_probs is None


@pytest.mark.parametrize("tokens", [TEXT.decode(), TEXT, list(TEXT), np.frombuffer(TEXT, np.uint8)])
def test_tokens_of_every_form_are_the_same_tokens(client, tokens):
    session = client.open_session(model=MODEL)
    np.testing.assert_allclose(
        session.step(tokens, token_log_prob=True).token_log_probs, run(MODEL, TEXT)[1], atol=1e-5
    )


def test_features_and_raw_outputs(client):
    session = client.open_session("vectors", model="features")
    reply = session.step(np.array([[1, 2], [3, 4]], np.float32))
    np.testing.assert_array_equal(reply.outputs["y"], [[1, 2], [4, 6]])


@pytest.mark.parametrize("wrong", [{"a": 1}, np.zeros((1, 2, 2)), [True], [-1], "", iter([1])])
def test_tokens_of_no_known_form_are_refused_before_they_are_sent(client, wrong):
    session = client.open_session("never", model=MODEL)
    with pytest.raises((TypeError, ValueError)):
        session.step(wrong)
    assert session.position == 0
    assert session.step("a").position == 1
    session.delete()


def test_closing_a_session_ends_its_use_here_and_deleting_destroys_it(client):
    session = client.open_session("let-go", model=MODEL)
    session.step("ab")
    session.close()
    session.close()
    for use in (lambda: session.step("c"), lambda: next(session.stream("c")), session.settle):
        with pytest.raises(ClientClosed, match="open the session again"):
            use()
    with client.open_session("let-go") as again:
        assert (again.resumed, again.position) == (True, 2)
    with pytest.raises(ClientClosed):
        again.step("c")
    assert client.get_session("let-go").position == 2
    assert client.open_session("let-go").delete() == 2
    with pytest.raises(SessionDeleted):
        client.get_session("let-go")
    new = client.open_session("let-go", model=MODEL)
    assert (new.resumed, new.position) == (False, 0)
    with pytest.raises(SessionDeleted):
        client.delete_session("let-go", incarnation=session.incarnation)
    assert new.step("a").position == 1
    assert client.delete_session("let-go") == client.delete_session("let-go") == 1


async def test_closing_a_session_of_asyncio_ends_its_use_here_too(server):
    async with holdfast.AsyncClient(server.address) as client:
        async with await client.open_session("let-go-async", model=MODEL) as session:
            await session.step("ab")
        with pytest.raises(ClientClosed):
            await session.step("c")
        again = await client.open_session("let-go-async")
        await again.close()
        with pytest.raises(ClientClosed):
            await anext(again.stream("c"))
        assert await again.delete() == 2
        with pytest.raises(SessionDeleted):
            await client.get_session("let-go-async")


def test_one_token_at_a_time_is_streamed_from_whatever_gives_tokens(client):
    for source in (
        range(60, 70),
        (token for token in range(60, 70)),
        map(np.int64, range(60, 70)),
        bytes(range(60, 70)),
    ):
        session = client.open_session(model=MODEL)
        replies = list(session.stream(source, token_log_prob=True))
        assert [reply.token_count for reply in replies] == [1] * 10
        given = np.concatenate([reply.token_log_probs for reply in replies])
        np.testing.assert_allclose(given, run(MODEL, bytes(range(60, 70)))[1], atol=1e-5)


def test_rows_of_features_are_streamed_one_by_one(client):
    session = client.open_session(model="features")
    replies = list(session.stream(row for row in np.arange(6.0).reshape(3, 2)))
    assert [reply.outputs["y"].tolist() for reply in replies] == [[[0, 1]], [[2, 4]], [[6, 9]]]


def test_a_session_is_known_by_a_number_or_a_uuid(client):
    for number, text in ((4711, "4711"), (uuid.UUID(int=5), str(uuid.UUID(int=5)))):
        session = client.open_session(number, model=MODEL)
        session.step("a")
        assert (session.session_id, client.get_session(number).position) == (text, 1)
        batch = client.step_batch(MODEL, [number], [98], [1])
        assert batch.positions.tolist() == [2]


def test_a_state_is_taken_from_whatever_holds_it(client):
    for value in ([1.0, 2.0], np.array([1, 2], ">f4"), np.array([[1, 9], [2, 9]], np.float32)[:, 0]):
        session = client.open_session(model="features", initial_state={"h": value})
        assert session.step([[1.0, 1.0]]).outputs["y"].tolist() == [[2, 3]]


def test_a_state_of_another_dtype_is_refused(client):
    with pytest.raises(InvalidRequest, match="float64"):
        client.open_session(model="features", initial_state={"h": np.ones(2)})


def test_a_client_that_may_keep_nothing_steps(server):
    with holdfast.Client(server.address, replay_tokens=0) as client:
        session = client.open_session(model=MODEL)
        assert [session.step("ab").position, session.step("c").position] == [2, 3]


def test_a_refused_chunk_leaves_the_session_usable(client):
    session = client.open_session("usable", model=MODEL)
    with pytest.raises(InvalidRequest):
        session.step([300])
    assert session.step("a").position == 1


@pytest.mark.parametrize(
    ("tokens", "options", "argument", "message"),
    [
        ("x" * 300, {}, "tokens", "the chunk has 300 tokens, expected 1..256"),
        ([1, 300], {}, "tokens", "300"),
        ([[1.0, 2.0]], {}, "tokens", "vocabulary"),
        ("a", {"top_k": 9999}, "top_k", "top_k is 9999"),
        ("a", {"outputs": "nothing"}, "outputs", "nothing"),
    ],
    ids=["too many", "not in the vocabulary", "features", "top_k", "outputs"],
)
def test_a_refusal_names_the_argument_at_fault(client, tokens, options, argument, message):
    """Whatever message the chunk went in, and whichever field of that it was."""
    session = client.open_session(model=MODEL)
    with pytest.raises(InvalidRequest, match=message) as caught:
        session.step(tokens, **options)
    assert (caught.value.field, len(caught.value.not_applied)) == (argument, 1)
    with pytest.raises(InvalidRequest, match=message) as caught:
        list(session.stream([tokens], chunk=512, **options))
    assert caught.value.field == argument
    assert session.step("a").position == 1


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_stream_equals_the_uninterrupted_run(client, chunk):
    replies = list(client.open_session(model=MODEL).stream(TEXT, chunk=chunk, token_log_prob=True))
    given = np.concatenate([reply.token_log_probs for reply in replies])
    np.testing.assert_allclose(given, run(MODEL, TEXT)[1], atol=1e-5)


def test_a_stream_left_early_is_settled_when_asked_to(client):
    session = client.open_session("early", model=MODEL)
    stream = session.stream(TEXT, token_log_prob=True)
    replies = [next(stream) for _ in range(3)]
    stream.close()
    assert session.position == replies[-1].position == 3
    with pytest.raises(ChunkPending):
        session.step("x")
    replies += session.settle()
    assert replies[-1].position == session.position
    given = np.concatenate([reply.token_log_probs for reply in replies])
    np.testing.assert_allclose(given, run(MODEL, TEXT[: session.position])[1], atol=1e-5)
    assert session.step("x").position == len(given) + 1


def test_a_second_client_resumes_where_the_first_stood(client, server):
    client.open_session("shared", model=MODEL).step(TEXT)
    with holdfast.Client(server.address) as other:
        session = other.open_session("shared")
        assert (session.resumed, session.position, session.model) == (True, len(TEXT), MODEL)


async def test_an_async_iterable_of_pieces_is_streamed(server):
    async def pieces():
        for start in range(0, len(TEXT), 5):
            await asyncio.sleep(0)
            yield TEXT[start : start + 5]

    async with holdfast.AsyncClient(server.address) as client:
        session = await client.open_session(model=MODEL)
        replies = [reply async for reply in session.stream(pieces(), chunk=3, token_log_prob=True)]
    given = np.concatenate([reply.token_log_probs for reply in replies])
    np.testing.assert_allclose(given, run(MODEL, TEXT)[1], atol=1e-5)


async def test_a_source_may_be_silent_for_longer_than_the_time_limit(server):
    async def pieces():
        yield TEXT[:5]
        await asyncio.sleep(1)
        yield TEXT[5:]

    async with holdfast.AsyncClient(server.address, timeout_s=0.5) as client:
        session = await client.open_session(model=MODEL)
        positions = [reply.position async for reply in session.stream(pieces(), chunk=64)]
    assert positions == [5, len(TEXT)]


async def test_a_stream_keeps_its_own_time_limit(tmp_path):
    server = ServerProcess(tmp_path / "data")
    async with holdfast.AsyncClient(server.address, timeout_s=60) as client:
        session = await client.open_session("s", model=MODEL)
        stream = session.stream(TEXT, timeout_s=0.5)
        assert (await anext(stream)).position == 1
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(DeadlinePassed):
                await asyncio.wait_for(_exhaust(stream), 20)
        finally:
            os.kill(server.pid, signal.SIGCONT)
            server.stop()


async def _exhaust(stream):
    async for _ in stream:
        pass


def regress(data_dir, change):
    """Puts the store back to what it held before `change` ran."""
    with redis.Redis(unix_socket_path=str(data_dir / "store.sock")) as store:
        [key] = store.keys("holdfast:v1:*")
        before = store.get(key)
        change()
        store.set(key, before)


def test_steps_lost_by_the_store_are_sent_again(tmp_path):
    data = tmp_path / "data"
    with ServerProcess(data) as server, holdfast.Client(server.address) as client:
        session = client.open_session("s", model=MODEL)
        session.step(TEXT[:5])
        regress(data, lambda: [session.step(TEXT[n : n + 1]) for n in range(5, 12)])
        given = session.step(TEXT[12:], token_log_prob=True).token_log_probs
        np.testing.assert_allclose(given, run(MODEL, TEXT)[1][12:], atol=1e-5)


def test_a_stream_heals_after_a_loss_in_the_store(tmp_path):
    data = tmp_path / "data"
    with ServerProcess(data) as server, holdfast.Client(server.address) as client:
        session = client.open_session("s", model=MODEL)
        session.step(TEXT[:5])
        regress(data, lambda: session.step(TEXT[5:12]))
        replies = list(session.stream(TEXT[12:], token_log_prob=True))
        given = np.concatenate([reply.token_log_probs for reply in replies])
        np.testing.assert_allclose(given, run(MODEL, TEXT)[1][12:], atol=1e-5)


def test_a_loss_older_than_the_buffer_is_raised(tmp_path):
    data = tmp_path / "data"
    with ServerProcess(data) as server, holdfast.Client(server.address, replay_tokens=4) as client:
        session = client.open_session("s", model=MODEL)
        session.step(TEXT[:5])
        regress(data, lambda: [session.step(TEXT[n : n + 1]) for n in range(5, 20)])
        with pytest.raises(StoreRegressed) as caught:
            session.step(TEXT[20:])
        assert caught.value.expected_position == 5


def test_a_chunk_whose_fate_is_unknown_is_settled_when_the_server_is_back(tmp_path):
    data = tmp_path / "data"
    server = ServerProcess(data)
    with holdfast.Client(server.address) as client:
        session = client.open_session("s", model=MODEL)
        session.step(TEXT[:5])
        server.kill()
        with pytest.raises((ServerUnavailable, DeadlinePassed)) as caught:
            session.step(TEXT[5:9], timeout_s=0.3)
        assert caught.value.pending == session.pending == ((5, TEXT[5:9]),)
        server = ServerProcess(data, grpc_address=server.address)
        assert [reply.position for reply in session.settle()] == [9]
        given = session.step(TEXT[9:], token_log_prob=True).token_log_probs
        np.testing.assert_allclose(given, run(MODEL, TEXT)[1][9:], atol=1e-5)
        assert session.position == len(TEXT)
    server.stop()


def test_no_server_is_an_error_of_the_tree():
    with holdfast.Client("127.0.0.1:1", timeout_s=0.2) as client, pytest.raises(HoldfastError):
        client.list_models()
