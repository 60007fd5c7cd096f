"""Sessions that travel as bytes: out of one deployment, into another one with a store of its own."""

import contextlib
import itertools

import numpy as np
import pytest

import holdfast
from holdfast.errors import (
    InvalidRequest,
    ModelMismatch,
    Overloaded,
    PermissionDenied,
    SessionDeleted,
    SessionExists,
    SessionNotFound,
)
from holdfast.v1 import holdfast_pb2 as pb
from service.store.keys import session_key
from service.store.record import decode
from tests.rpc.conftest import MODEL, Rpc
from tests.support.models import write_features_model
from tests.support.oracle import run
from tests.support.server import ServerProcess
from tests.support.store_process import StoreProcess
from tests.support.tokens import TokensFile

QUICK = holdfast.RetryPolicy(initial_s=0.01, max_s=0.02)
TEXT = "def main():\n    return [x for x in range(10)]\n"


class Deployment:
    """A service and a store of its own, on the same models.

    Attributes:
        store: The store's process.
        server: The service's.
    """

    def __init__(self, folder, *flags):
        self._folder, self._flags = folder, flags
        self.store = StoreProcess(folder / "store")
        self.server = self._serve()

    def _serve(self, **options):
        return ServerProcess(self._folder / "data", "--store", self.store.url, *self._flags, **options)

    def restart(self):
        """Kills the service with SIGKILL and starts it at the same address."""
        self.server.kill()
        self.server = self._serve(grpc_address=self.server.address)

    def client(self, **options):
        return holdfast.Client(self.server.address, retry=QUICK, timeout_s=30, **options)

    def record(self, session_id, tenant="default"):
        return decode(self.store.client.get(session_key(tenant, session_id)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.stop()
        self.store.__exit__()


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    with Deployment(tmp_path_factory.mktemp("here")) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    with Deployment(tmp_path_factory.mktemp("there")) as deployment:
        yield deployment


@contextlib.contextmanager
def calling(deployment):
    """Gives what calls the rpcs of a deployment."""
    rpc = Rpc(deployment.server)
    with rpc.channel:
        yield rpc


def ahead(rpc, session_id, position):
    """Sends a byte without acknowledging any reply."""
    reply = rpc.step(
        session_id, text=b"abcdefgh"[position : position + 1], position=position, acknowledged_position=0
    )
    return reply.result


@pytest.fixture
def clients(here, there):
    with here.client() as ours, there.client() as theirs:
        yield ours, theirs


@pytest.fixture
def name(request):
    return request.node.name


def test_a_session_moves_in_the_middle_of_a_stream_and_both_services_die_on_the_way(
    here, there, clients, name
):
    """Its outputs are those of an uninterrupted run, and its last chunk is answered as it was before."""
    ours, theirs = clients
    given, pieces = [], [TEXT[:9], TEXT[9:20], TEXT[20:33], TEXT[33:]]
    session = ours.open_session(name, model=MODEL)
    given.append(session.step(pieces[0], token_log_prob=True))
    here.restart()
    given.append(session.step(pieces[1], token_log_prob=True))
    blob = session.export()
    here.restart()
    moved = theirs.import_session(blob, name)
    assert (moved.position, moved.history_digest) == (20, session.history_digest)
    assert there.record(name).state == here.record(name).state
    assert there.record(name).incarnation not in (0, 1, here.record(name).incarnation)
    again = moved.step(pieces[1], position=9)
    assert again.replayed
    np.testing.assert_array_equal(again.token_log_probs, given[1].token_log_probs)
    assert moved.position == 20
    there.restart()
    given.append(moved.step(pieces[2], token_log_prob=True))
    there.restart()
    given.append(moved.step(pieces[3], token_log_prob=True))
    log_probs = np.concatenate([reply.token_log_probs for reply in given])
    np.testing.assert_allclose(log_probs, run(MODEL, TEXT.encode())[1], atol=1e-5, rtol=0)
    assert (moved.position, here.record(name).position) == (len(TEXT), 20)


def test_chunks_that_were_sent_ahead_are_answered_after_the_move(here, there, clients, name):
    """A stream keeps the replies that its client has not acknowledged: all of them travel."""
    ours, theirs = clients
    with calling(here) as rpc:
        rpc.open(name)
        first = [ahead(rpc, name, position) for position in range(5)]
    theirs.import_session(ours.export_session(name), name)
    with calling(there) as rpc:
        for position in range(5):
            again = ahead(rpc, name, position)
            assert (again.replayed, again.position) == (True, position + 1)
            assert again.outputs == first[position].outputs


def test_the_same_session_gives_the_same_blob_and_it_may_be_imported_many_times(clients, name):
    ours, theirs = clients
    session = ours.open_session(name, model=MODEL)
    session.step(TEXT)
    blob = session.export()
    assert session.export() == blob == ours.export_session(name, position=len(TEXT))
    first, second = theirs.import_session(blob, f"{name}-1"), theirs.import_session(blob)
    assert len(second.session_id) == 32
    assert first.incarnation != second.incarnation
    assert theirs.export_session(first.session_id) == theirs.export_session(second.session_id) == blob
    back = ours.import_session(theirs.export_session(second.session_id), f"{name}-back")
    np.testing.assert_array_equal(back.state()["h"], session.state()["h"])


def test_a_generation_goes_on_after_the_move_and_in_a_copy_as_it_would_have(clients, name):
    """The kept reply has the token that comes next: it travels, and passes what an import checks."""
    ours, theirs = clients
    session = ours.open_session(name, model=MODEL)
    for _ in session.generate(max_tokens=9, prompt="import nu", temperature=0.8, seed=3, candidates=2):
        pass
    moved, copy = theirs.import_session(session.export(), name), session.fork(f"{name}-copy")
    texts = [
        b"".join(token.text for token in one.generate(max_tokens=9, temperature=0.8, seed=3))
        for one in (moved, copy, session)
    ]
    assert len(texts[0]) == 9
    assert texts[0] == texts[1] == texts[2]


def test_a_cursor_travels_with_its_session_and_not_with_a_copy(clients, name):
    ours, theirs = clients
    session = ours.open_session(name, model=MODEL)
    session.step("abc", cursor=b"line 7")
    moved = theirs.import_session(session.export(), name)
    assert (moved.cursor, theirs.get_session(name).cursor) == (b"line 7", b"line 7")
    copy = session.fork(f"{name}-copy")
    assert (copy.cursor, ours.get_session(f"{name}-copy").cursor) == (b"", b"")
    [listed] = theirs.list_sessions(name)
    assert (listed.history_digest, listed.position) == (session.history_digest, 3)
    moved.delete()
    assert theirs.import_session(ours.export_session(f"{name}-copy"), name).cursor == b"", (
        "what lay there is gone"
    )


def test_an_id_that_is_taken_stays_as_it_is(clients, here, name):
    ours, _ = clients
    session = ours.open_session(name, model=MODEL)
    session.step("abc")
    blob, before = session.export(), here.record(name)
    with pytest.raises(SessionExists, match="at position 3"):
        ours.import_session(blob, name)
    assert here.record(name) == before
    session.delete()
    assert ours.import_session(blob, name).position == 3, "a tombstone is no session"


def test_an_import_that_comes_again_finds_what_the_first_has_made(clients, here, name):
    ours, _ = clients
    session = ours.open_session(name, model=MODEL)
    session.step("abc")
    request = pb.ImportSessionRequest(session_id=f"{name}-b", blob=session.export(), nonce=55)
    with calling(here) as rpc:
        first = rpc.call("ImportSession", request)
        assert rpc.call("ImportSession", request).session.incarnation == first.session.incarnation
        request.nonce = 56
        assert isinstance(rpc.call("ImportSession", request), SessionExists)
        ours.delete_session(f"{name}-b")
        request.nonce = 55
        assert isinstance(rpc.call("ImportSession", request), SessionDeleted)


def test_flipped_bits_and_cuts_are_refused_over_the_wire(clients, name):
    """Every byte once; the parser itself is tried with every bit in `tests/unit/test_blob.py`."""
    ours, theirs = clients
    session = ours.open_session(name, model=MODEL)
    session.step("abc")
    blob = session.export()
    for place in range(0, len(blob), 7):
        damaged = bytearray(blob)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(InvalidRequest, match="the blob is not an exported session: ") as caught:
            theirs.import_session(bytes(damaged), name)
        assert caught.value.field == "blob"
    for end in (0, 3, 17, len(blob) // 2, len(blob) - 1):
        with pytest.raises(InvalidRequest, match="the blob is not an exported session: "):
            theirs.import_session(blob[:end], name)


def test_a_model_that_is_not_served_there_is_named(tmp_path, here, clients, name):
    ours, _ = clients
    blob = ours.open_session(name, model=MODEL).export()
    models = tmp_path / "models"
    write_features_model(models / "features" / "1" / "model.onnx")
    with (
        Deployment(tmp_path, "--models", str(models)) as other,
        other.client() as client,
        pytest.raises(ModelMismatch, match=f"runs on '{MODEL}' version 1, with fingerprint 0ec0385002d6"),
    ):
        client.import_session(blob, name)


def test_tenants_see_their_own_and_a_blob_may_be_given_to_another(tmp_path, clients):
    """Who may export and import is decided by scopes, and where it goes by the credential."""
    tokens = TokensFile(tmp_path / "tokens.toml")
    reader, writer = tokens.add("acme", "step", "read-state"), tokens.add("other", "step")
    with (
        Deployment(tmp_path, *tokens.write()) as deployment,
        deployment.client(token=reader) as acme,
        deployment.client(token=writer) as other,
    ):
        session = acme.open_session("s", model=MODEL)
        session.step("abc")
        for refused, kind in (
            (lambda: other.export_session("s"), PermissionDenied),
            (lambda: other.fork_session("s"), SessionNotFound),
        ):
            with pytest.raises(kind):
                refused()
        moved = other.import_session(session.export(), "s")
        assert (moved.position, deployment.record("s", "other").state) == (
            3,
            deployment.record("s", "acme").state,
        )
        assert {one.session_id: one.position for one in other.list_sessions()} == {"s": 3}


def test_a_session_travels_with_as_many_replies_as_it_may_keep(here, clients, name):
    ours, theirs = clients
    with calling(here) as rpc:
        rpc.open(name)
        for position in itertools.count():
            fields = {"outputs": pb.OutputSelection(tensors=["*"]), "position": position}
            if isinstance(rpc.step(name, text=b"a", acknowledged_position=0, **fields), Overloaded):
                break
    blob = ours.export_session(name)
    assert len(blob) > 60_000
    assert theirs.import_session(blob, name).position == position
    assert theirs.export_session(name) == blob


def test_what_is_no_blob_is_refused_before_it_is_sent(clients):
    ours, _ = clients
    with pytest.raises(TypeError, match="a blob is a str, expected the bytes"):
        ours.import_session("blob")
    with pytest.raises(ValueError, match="a session id is ''"):
        ours.import_session(b"", "")
