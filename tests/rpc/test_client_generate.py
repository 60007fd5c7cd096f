"""Generation by the client: tokens of the offline loop, an account that stays right."""

import asyncio
import json

import numpy as np
import pytest

import holdfast
from holdfast.client.connection import Stream
from holdfast.client.generation import Generation
from holdfast.errors import (
    ClientClosed,
    DeadlinePassed,
    InvalidRequest,
    PositionConflict,
    SessionBusy,
    SessionDeleted,
)
from holdfast.history_digest import INITIAL, digest_after
from holdfast.verify.judge import judge
from tests.nemesis.proxy import FaultProxy
from tests.support.generation_oracle import Loop
from tests.support.models import CONTRACT, write_features_model
from tests.support.oracle import MODELS
from tests.support.server import ServerProcess

MODEL, WORDS = "python-source", "docstring-words"
PROMPT = b"class Reader("
OPTIONS = {"temperature": 0.8, "top_p": 0.95, "top_k": 40}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for shipped in (MODEL, WORDS, "sensor-anomaly"):
        (folder / shipped).symlink_to(MODELS / shipped)
    feedback = {**CONTRACT, "holdfast.feedback": json.dumps("y")}
    write_features_model(folder / "feedback" / "1" / "model.onnx", metadata=feedback)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory, folder):
    with ServerProcess(tmp_path_factory.mktemp("data"), "--models", str(folder)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with holdfast.Client(server.address, timeout_s=20) as client:
        yield client


def pairs(tokens):
    return [(token.id, token.text) for token in tokens]


def expected_pairs(loop, count, prompt=b"", **options):
    return [(number, text) for number, text, _ in loop.generate(count, prompt, **options)]


def is_where_it_says(client, session, said):
    """Whether session object, server and the tokens agree."""
    stored = client.get_session(session.session_id)
    assert session.position == stored.position == len(said)
    assert session.history_digest == stored.history_digest == digest_after(INITIAL, bytes(said))
    assert session.pending == ()


@pytest.mark.parametrize("model", [MODEL, WORDS])
@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_tokens_of_many_calls_are_those_of_one_loop(client, model, penalty):
    session = client.open_session(model=model)
    tokens = list(
        session.generate(100, PROMPT, seed=3, repetition_penalty=penalty, candidates=2, **OPTIONS)
    )
    loop = Loop(model)
    assert pairs(tokens) == expected_pairs(loop, 100, PROMPT, seed=3, penalty=penalty, **OPTIONS)
    assert [len(token.top) for token in tokens] == [2] * 100
    assert not any(token.replayed for token in tokens)
    said = PROMPT + b"".join(token.text for token in tokens)
    assert tokens[-1].position == len(said)
    is_where_it_says(client, session, said)
    # steps, and generations without a prompt, go on from there
    session.step("\n    ")
    more = list(session.generate(30, seed=4))
    loop.apply(b"\n    ")
    assert pairs(more) == expected_pairs(loop, 30, seed=4)
    is_where_it_says(client, session, said + b"\n    " + b"".join(token.text for token in more))


async def test_it_is_the_same_with_asyncio_and_many_at_a_time(server):
    async with holdfast.AsyncClient(server.address, timeout_s=20) as client:

        async def one(number):
            session = await client.open_session(model=MODEL)
            found = [token async for token in session.generate(40, PROMPT, seed=number)]
            reply = await session.step("x")
            assert reply.position == len(PROMPT) + 41
            return pairs(found)

        given = await asyncio.gather(*(one(number) for number in range(32)))
    for number in (0, 9, 31):
        assert given[number] == expected_pairs(Loop(MODEL), 40, PROMPT, seed=number)
    assert len(set(map(tuple, given))) > 20


@pytest.mark.parametrize("stop", ["\n", b"\n", ["self", "\n"]])
def test_texts_that_stop_it_may_begin_in_an_earlier_call(client, stop):
    session = client.open_session(model=MODEL)
    texts = [
        one if isinstance(one, bytes) else one.encode()
        for one in ([stop] if isinstance(stop, str | bytes) else stop)
    ]
    tokens = list(session.generate(200, PROMPT, seed=6, stop=stop, min_tokens=30))
    expected = expected_pairs(Loop(MODEL), 200, PROMPT, seed=6, stop_texts=texts, min_tokens=30)
    assert pairs(tokens) == expected
    is_where_it_says(client, session, PROMPT + b"".join(token.text for token in tokens))


@pytest.mark.parametrize("length", [15, 16, 17, 33])
def test_a_text_that_stops_it_is_found_across_the_end_of_a_call(client, length):
    expected = expected_pairs(Loop(MODEL), length, PROMPT, seed=8)
    said = b"".join(text for _, text in expected)
    stop = next(said[-size:] for size in range(2, 64) if said.count(said[-size:]) == 1)
    session = client.open_session(model=MODEL)
    assert pairs(session.generate(300, PROMPT, seed=8, stop=stop)) == expected
    is_where_it_says(client, session, PROMPT + said)


def test_ids_that_stop_it_are_not_emitted(client):
    stops = list(b" \n")
    for least in (0, 16, 17, 40):
        session = client.open_session(model=MODEL)
        tokens = list(session.generate(200, PROMPT, seed=5, stop=stops, min_tokens=least))
        expected = expected_pairs(Loop(MODEL), 200, PROMPT, seed=5, stop_ids=stops, min_tokens=least)
        assert pairs(tokens) == expected
        assert least <= len(tokens) < 200
        is_where_it_says(client, session, PROMPT + b"".join(token.text for token in tokens))


def test_a_forecast_goes_on_as_the_loop_would(client):
    session = client.open_session(model="feedback")
    given = np.array([[0.5, -1], [0.25, 3]], np.float32)
    state = given.sum(axis=0)
    for token in session.generate(40, given):
        assert (token.text, token.id) == (b"", 0)
        np.testing.assert_array_equal(token.features, state)
        state = state + state
    assert session.position == client.get_session(session.session_id).position == 42
    assert session.step([[1.0, 2.0]]).position == 43


@pytest.mark.parametrize("model", [MODEL, WORDS])
@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 31])
def test_a_generation_that_is_left_stands_behind_what_was_committed(client, model, count):
    session = client.open_session(model=model)
    tokens = session.generate(10_000, PROMPT, seed=7)
    given = [next(tokens) for _ in range(count)]
    tokens.close()
    session.step("x")  # waits until it is known what was committed
    said = PROMPT
    for _, text in expected_pairs(Loop(model), count + 17, PROMPT, seed=7):
        if len(said) == session.position - 1:
            break
        said += text
    assert len(said) == session.position - 1
    assert said.startswith(PROMPT + b"".join(token.text for token in given))
    is_where_it_says(client, session, said + b"x")


async def test_left_at_any_moment_it_can_be_gone_on_with(server, tmp_path):
    """Cancelled after a delay that may fall before the prompt, in a token or between two calls."""
    async with holdfast.AsyncClient(server.address, timeout_s=20, history=tmp_path / "history") as client:

        async def one(number):
            session = await client.open_session(f"left-{number}", model=MODEL)

            async def read():
                async for _ in session.generate(10_000, PROMPT, seed=number):
                    pass

            reading = asyncio.create_task(read())
            await asyncio.sleep(0.002 * number)
            reading.cancel()
            await asyncio.wait([reading])
            await session.settle()
            position = (await session.step("x")).position
            stored = await client.get_session(session.session_id)
            assert stored.position == position == session.position
            assert stored.history_digest == session.history_digest
            if position > 1:
                said = PROMPT + b"".join(
                    text
                    for _, text in expected_pairs(
                        Loop(MODEL), position - 1 - len(PROMPT), PROMPT, seed=number
                    )
                )
                assert stored.history_digest == digest_after(INITIAL, said + b"x")

        for number in range(40):
            await one(number)
    verdict = judge([tmp_path / "history"], MODELS)
    assert verdict.is_good, verdict.bad


async def stepped(session):
    return (await session.step("x")).position, b"x"


async def streamed(session):
    replies = [reply async for reply in session.stream("xyz", chunk=1)]
    return replies[-1].position, b"xyz"


async def saved(session):
    await session.save_checkpoint("c")
    return session.position, b""


async def generated(session):
    [token] = [token async for token in session.generate(1, "z", seed=9)]
    return token.position, b"z" + token.text


async def generated_on(session):
    [token] = [token async for token in session.generate(1, seed=9)]
    return token.position, token.text


@pytest.fixture
async def client_here(server):
    async with holdfast.AsyncClient(server.address, timeout_s=20) as client:
        yield client


async def leave(client, monkeypatch, prompt, *, is_late):
    """Returns a session that left a generation; may not have learnt what was committed meanwhile.

    So it is where a replica stands still, and commits another token after the session was looked at.
    """

    async def learn_nothing(*_):
        pass

    session = await client.open_session(model=MODEL)
    await session.step(PROMPT)
    tokens = session.generate(10_000, prompt, seed=7)
    await anext(tokens)
    with monkeypatch.context() as patch:
        if is_late:
            patch.setattr(Generation, "_fetch_rest", learn_nothing)
            while (await client.get_session(session.session_id)).position == session.position:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await tokens.aclose()
        await session.settle()
    return session


@pytest.mark.parametrize("prompt", ["(", None])
@pytest.mark.parametrize("go_on", [stepped, streamed, saved, generated, generated_on])
async def test_what_a_left_generation_commits_late_comes_before_what_is_sent_next(
    client_here, monkeypatch, prompt, go_on
):
    session = await leave(client_here, monkeypatch, prompt, is_late=True)
    known = session.position
    position, said = await go_on(session)
    stored = await client_here.get_session(session.session_id)
    assert known < position - len(said)
    assert position == session.position == stored.position
    before = PROMPT + (prompt or "").encode()
    late = expected_pairs(Loop(MODEL), position - len(said) - len(before), before, seed=7)
    whole = before + b"".join(text for _, text in late) + said
    assert session.history_digest == stored.history_digest == digest_after(INITIAL, whole)
    assert session.pending == ()


async def test_other_tokens_in_the_place_of_a_left_generation_stay_a_conflict(client_here, monkeypatch):
    session = await leave(client_here, monkeypatch, None, is_late=False)
    other = await client_here.open_session(session.session_id, model=MODEL)
    await other.step("q")
    with pytest.raises(PositionConflict) as refused:
        await session.step("x")
    assert [chunk.position for chunk in refused.value.not_applied] == [other.position - 1]
    assert session.pending == ()


async def test_a_step_to_a_place_that_its_caller_names_goes_nowhere_else(client_here, monkeypatch):
    session = await leave(client_here, monkeypatch, None, is_late=True)
    with pytest.raises(PositionConflict):
        await session.step("x", position=session.position)
    assert session.pending == ()


def test_a_limit_that_nothing_meets_does_not_hold_the_session(server):
    with (
        FaultProxy(server.address) as proxy,
        holdfast.Client(proxy.address, timeout_s=10) as client,
    ):
        session = client.open_session(model=MODEL)
        proxy.to_client.delay_s = 0.05
        with pytest.raises(DeadlinePassed):
            next(session.generate(20, PROMPT, timeout_s=0.01))
        session.settle()
        assert session.position == client.get_session(session.session_id).position >= len(PROMPT)


async def test_a_prompt_without_a_reply_is_in_doubt(server, monkeypatch):
    """It was applied before another writer took the session over: that it was not would be a lie."""

    async def never(_):
        await asyncio.Event().wait()

    async with (
        holdfast.AsyncClient(server.address, timeout_s=20) as client,
        holdfast.AsyncClient(server.address, timeout_s=20) as other,
    ):
        session = await client.open_session("left before its reply", model=MODEL)
        with monkeypatch.context() as patch:
            patch.setattr(Stream, "read", never)
            generating = asyncio.create_task(anext(session.generate(4, PROMPT)))
            while not (await other.get_session(session.session_id)).position:  # noqa: ASYNC110 -- a store
                await asyncio.sleep(0.01)
            await other.open_session(session.session_id, model=MODEL, take_over=True)
            generating.cancel()
            await asyncio.wait([generating])
        with pytest.raises(SessionDeleted) as refused:
            await session.settle()
        assert not refused.value.not_applied
        assert [chunk.position for chunk in refused.value.pending] == [0]


async def test_a_session_is_held_while_a_generation_is_read(server):
    async with holdfast.AsyncClient(server.address, timeout_s=20) as client:
        session = await client.open_session(model=MODEL)
        tokens = session.generate(100, PROMPT)
        await anext(tokens)
        with pytest.raises(SessionBusy, match="generation"):
            await session.step("x", timeout_s=0.2)
        await tokens.aclose()
        await session.step("x")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"max_tokens": 0}, ValueError, "at least 1"),
        ({"max_tokens": True}, TypeError, "an integer"),
        ({"max_tokens": 3, "temperature": "hot"}, TypeError, "a number"),
        ({"max_tokens": 3, "stop": [-1]}, ValueError, "at least 0"),
        ({"max_tokens": 3, "stop": [1.5]}, TypeError, "an integer"),
        ({"max_tokens": 3, "stop": None}, TypeError, "stop is None"),
        ({"max_tokens": 3, "seed": -1}, ValueError, "at least 0"),
        ({"max_tokens": 3, "prompt": ""}, ValueError, "no tokens"),
        ({"max_tokens": 3, "ack_level": "sure"}, ValueError, "memory"),
        ({"max_tokens": 3, "temperature": float("nan")}, InvalidRequest, ">= 0"),
        ({"max_tokens": 3, "min_tokens": 4}, InvalidRequest, "0..3"),
        ({"max_tokens": 3, "stop": "x" * 65}, InvalidRequest, "has 65 bytes, expected 1..64"),
        ({"max_tokens": 3, "stop": 256}, InvalidRequest, "0..255"),
    ],
)
def test_what_is_wrong_is_refused_and_the_session_goes_on(client, options, error, text):
    session = client.open_session(model=MODEL)
    with pytest.raises(error, match=text.replace(".", r"\.")):
        list(session.generate(**{"prompt": "a", **options}))
    assert (session.position, session.pending) == (0, ())
    assert session.step("x").position == 1


def test_a_model_that_cannot_is_told_of(client):
    session = client.open_session(model="sensor-anomaly")
    width = client.get_model("sensor-anomaly").input.width
    with pytest.raises(InvalidRequest, match="feedback") as refused:
        list(session.generate(3, np.zeros((1, width), np.float32)))
    assert refused.value.not_applied
    assert session.position == 0


def test_a_closed_client_ends_it(server):
    with holdfast.Client(server.address, timeout_s=20) as client:
        session = client.open_session(model=MODEL)
        tokens = session.generate(1000, PROMPT)
        next(tokens)
        client.close()
        with pytest.raises(ClientClosed):
            list(tokens)


def test_verify_understands_what_was_generated(server, folder, tmp_path):
    with holdfast.Client(server.address, timeout_s=20, history=tmp_path / "history") as client:
        for model in (MODEL, WORDS):
            session = client.open_session(f"judged-{model}", model=model)
            count = len(list(session.generate(60, PROMPT, seed=1, candidates=3)))
            session.step("\n", top_k=2, token_log_prob=True)
            count += len(list(session.generate(20, seed=2)))
            left = session.generate(10_000, "x")
            count += len([next(left) for _ in range(20)])
            left.close()
            session.step("y", token_log_prob=True)
            assert count == 100
        forecast = client.open_session("judged-forecast", model="feedback")
        assert len(list(forecast.generate(30, [[1.0, 2.0]]))) == 30
    verdict = judge([tmp_path / "history"], folder)
    assert verdict.is_good, verdict.bad
    assert (verdict.total.lost, verdict.total.twice, verdict.total.unexplained) == (0, 0, 0)
    assert verdict.total.replies > 230
    assert verdict.total.unchecked == 0
