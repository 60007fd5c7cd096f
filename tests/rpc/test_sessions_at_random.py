"""Calls in a random order over two replicas: what is beside a record is that of its session."""

import contextlib
import random

import pytest

import holdfast
from holdfast.errors import HoldfastError
from holdfast.history_digest import INITIAL, digest_after
from service.store.keys import session_key, sibling_key
from tests.rpc.conftest import MODEL
from tests.support.server import ServerProcess
from tests.support.store_process import StoreProcess

IDS = ["a", "b}", "c*", "d:beside", "b}:beside"]
NAMES = ["x", "cursor"]
CALL_COUNT = 300


class Expected:
    """A session as it should be: its tokens, its cursor, and the same of its checkpoints."""

    def __init__(self, tokens=b"", cursor=b""):
        self.tokens, self.cursor, self.checkpoints = tokens, cursor, {}


class Calls:
    """Makes calls, and notes what each should have done. A refusal changes nothing."""

    def __init__(self, clients, draw):
        self.clients, self.draw = clients, draw
        self.sessions = {}
        self.done = set()

    def make(self):
        """Makes one call; returns the ids of the sessions that it was about."""
        kinds = [self.open, self.step, self.save, self.restore, self.delete_checkpoint]
        seldom = [self.delete, self.fork, self.move]
        [call] = self.draw.choices([*kinds, *seldom], [3, 4, 4, 4, 1, 1, 1, 1])
        name, other = self.draw.choices(IDS, k=2)
        with contextlib.suppress(HoldfastError):
            call(self.draw.choice(self.clients), name, other)
            self.done.add(call.__name__)
        return name, other

    def open(self, client, name, _):
        client.open_session(name, model=MODEL, take_over=self.draw.random() < 0.3)
        self.sessions.setdefault(name, Expected())

    def step(self, client, name, _):
        tokens = self.draw.randbytes(self.draw.randint(1, 3))
        cursor = self.draw.choice([None, self.draw.randbytes(self.draw.randint(1, 256))])
        client.open_session(name).step(tokens, cursor=cursor)
        session = self.sessions[name]
        session.tokens, session.cursor = session.tokens + tokens, cursor or session.cursor

    def save(self, client, name, _):
        client.save_checkpoint(name, place := self.draw.choice(NAMES))
        session = self.sessions[name]
        session.checkpoints[place] = session.tokens, session.cursor

    def restore(self, client, name, _):
        client.restore_checkpoint(name, place := self.draw.choice(NAMES))
        session = self.sessions[name]
        session.tokens, session.cursor = session.checkpoints[place]

    def delete_checkpoint(self, client, name, _):
        client.delete_checkpoint(name, place := self.draw.choice(NAMES))
        del self.sessions[name].checkpoints[place]

    def delete(self, client, name, _):
        if self.draw.random() < 0.5:
            client.delete_session(name)
        else:
            client.delete_batch([name])
        self.sessions.pop(name, None)

    def fork(self, client, name, other):
        client.fork_session(name, other)
        self.sessions[other] = Expected(self.sessions[name].tokens)

    def move(self, client, name, other):
        client.import_session(client.export_session(name), other)
        session = self.sessions[name]
        self.sessions[other] = Expected(session.tokens, session.cursor)


@pytest.mark.parametrize("ttl_s", [0, 600])
def test_what_is_beside_a_record_is_that_of_its_session(tmp_path, ttl_s):
    draw = random.Random(ttl_s)
    with StoreProcess(tmp_path / "store") as store:
        flags = ["--store", store.url, "--session-ttl-s", str(ttl_s), "--max-checkpoints", "1"]
        with (
            ServerProcess(tmp_path / "one", *flags) as one,
            ServerProcess(tmp_path / "two", *flags) as two,
            holdfast.Client(one.address) as here,
            holdfast.Client(two.address) as there,
        ):
            calls = Calls([here, there], draw)
            for _ in range(CALL_COUNT):
                for name in calls.make():
                    check(store.client, draw.choice(calls.clients), name, calls.sessions.get(name))
            every = {"open", "step", "save", "restore", "delete_checkpoint", "delete", "fork", "move"}
            assert calls.done == every, "a kind of call was always refused"


def check(store, client, name, expected):
    """Compares a session, its cursor and its checkpoints with what they should be."""
    key = session_key("default", name)
    if expected is None:
        assert not store.exists(sibling_key(key))
        return
    found = client.get_session(name)
    assert found.history_digest == digest_after(INITIAL, expected.tokens)
    assert (found.position, found.cursor) == (len(expected.tokens), expected.cursor)
    kept = {one.name: one.history_digest for one in client.checkpoints(name)}
    assert kept == {
        place: digest_after(INITIAL, tokens) for place, (tokens, _) in expected.checkpoints.items()
    }
    if expected.cursor or kept:
        assert store.hlen(sibling_key(key)) == len(kept) + bool(expected.cursor)
        left_ms = [store.pttl(one) for one in (key, sibling_key(key))]
        assert left_ms == [-1, -1] or min(left_ms) > 500_000
    else:
        assert not store.exists(sibling_key(key))
