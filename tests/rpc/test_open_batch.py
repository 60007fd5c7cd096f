"""Many sessions opened together, and batches that name their histories."""

import numpy as np
import pytest

import holdfast
from holdfast.errors import HistoryConflict, ServerUnavailable, SessionExists
from tests.support.scripted_server import LOST, ScriptedServer

IDS = ["a", "b", "c"]
QUICK = holdfast.RetryPolicy(initial_s=0.01, max_s=0.02, attempt_s=5)


@pytest.fixture
def scripted():
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def client(scripted):
    with holdfast.Client(scripted.address, retry=QUICK, timeout_s=10) as client:
        yield client


def test_an_opened_batch_says_where_every_session_stands(client, scripted):
    client.open_session("b", model="m").step("xy")
    opened = client.open_batch("m", IDS)
    assert opened.positions.tolist() == [0, 2, 0]
    assert opened.resumed_rows == [1]
    assert opened.errors == {}
    assert opened.model_versions.tolist() == [1, 1, 1]
    assert opened.incarnations.tolist() == [scripted.sessions[name].incarnation for name in IDS]
    assert opened.history_digests.tolist() == [
        scripted.sessions[name].digest_at(len(scripted.applied(name))) for name in IDS
    ]


def test_a_chain_of_batches_names_its_histories(client, scripted):
    given = client.open_batch("m", IDS)
    for tokens in (b"abc", b"def", b"ghi"):
        given = client.step_batch("m", IDS, tokens, given)
    assert [scripted.applied(name) for name in IDS] == [b"adg", b"beh", b"cfi"]
    for chunk in scripted.chunks:
        assert chunk.history_digest == scripted.sessions[chunk.session_id].digest_at(chunk.position)
        assert chunk.incarnation == scripted.sessions[chunk.session_id].incarnation
    scripted.stand_at(b"xyz", "b")
    reply = client.step_batch("m", IDS, b"jkl", given)
    assert list(reply.errors) == [1]
    assert isinstance(reply.errors[1], HistoryConflict)
    with pytest.raises(ValueError, match="'b'"):
        client.step_batch("m", IDS, b"mno", reply)
    assert [scripted.applied(name) for name in IDS] == [b"adgj", b"xyz", b"cfil"]


async def test_a_pipeline_takes_what_was_told(scripted):
    async with holdfast.AsyncClient(scripted.address) as client, client.batches("m") as batches:
        given = await client.open_batch("m", IDS)
        for tokens in (b"abc", b"def"):
            given = await (await batches.submit(IDS, tokens, given))
        assert given.session_ids == tuple(IDS)
        with pytest.raises(ValueError, match="positions have the shape"):
            await batches.submit(IDS, b"ghi", [])
    assert [scripted.applied(name) for name in IDS] == [b"ad", b"be", b"cf"]


def test_rows_that_are_not_opened_are_told(client):
    opened = client.open_batch("m", ["a", "refused"])
    assert list(opened.errors) == [1]
    assert isinstance(opened.errors[1], SessionExists)
    with pytest.raises(ValueError, match=r"'refused' \(SESSION_EXISTS\)"):
        client.step_batch("m", ["a", "refused"], b"ab", opened)


def test_a_batch_without_positions_is_not_repeated_and_its_error_says_how_to_find_out(client, scripted):
    client.open_batch("m", IDS)
    scripted.script.extend([None, None, LOST])
    with pytest.raises(ServerUnavailable, match="may apply them twice: read the position of each session"):
        client.step_batch("m", IDS, b"abc")
    assert [scripted.applied(name) for name in IDS] == [b"a", b"b", b"c"]
    again = client.open_batch("m", IDS)
    assert again.positions.tolist() == [1, 1, 1]
    assert again.resumed_rows == [0, 1, 2]


def test_an_empty_list_of_positions_is_not_none(client, scripted):
    client.open_batch("m", IDS)
    with pytest.raises(ValueError, match="positions have the shape"):
        client.step_batch("m", IDS, b"abc", [])
    assert scripted.chunks == []


def test_a_batch_with_positions_is_repeated_and_applied_once(client, scripted):
    opened = client.open_batch("m", IDS)
    scripted.script.extend([None, LOST])
    reply = client.step_batch("m", IDS, b"abc", opened)
    assert reply.positions.tolist() == [1, 1, 1]
    assert [scripted.applied(name) for name in IDS] == [b"a", b"b", b"c"]


def test_rows_with_outputs_of_their_own_are_replies_of_their_own(client):
    ids = ["a", "separate"]
    reply = client.step_batch("m", ids, b"ab", client.open_batch("m", ids))
    [(row, separate)] = reply.separate_rows.items()
    assert (row, separate.position, separate.model_version) == (1, 1, 2)
    np.testing.assert_array_equal(separate.token_log_probs, [0.5])


def test_an_opening_of_many_is_safe_to_repeat(server):
    """Against the real server: the same nonce finds what it made."""
    with holdfast.Client(server.address) as client:
        opened = client.open_batch("python-source", IDS, must_be_new=True)
        assert opened.errors == {}
        with_one_known = client.open_batch("python-source", [*IDS, "d"], must_be_new=True)
        assert sorted(with_one_known.errors) == [0, 1, 2]
        assert client.open_batch("python-source", IDS).resumed_rows == [0, 1, 2]
        reply = client.step_batch("python-source", IDS, b"xyz", opened)
        again = client.step_batch("python-source", IDS, b"xyz", opened)
        assert again.replayed_rows == [0, 1, 2]
        assert (again.history_digests == reply.history_digests).all()
        session = client.open_session("a")
        assert session.history_digest == reply.history_digests[0]
