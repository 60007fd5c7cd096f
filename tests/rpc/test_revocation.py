"""A credential that is gone lets nobody in and keeps nobody in, whatever call or file it stands behind."""

import contextlib
import queue

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

import holdfast
from holdfast.client.status import from_rpc
from holdfast.client.tls import channel_credentials
from holdfast.errors import Unauthenticated
from holdfast.v1 import holdfast_pb2 as pb
from service.rpc.rpcs import SERVICE_NAME
from tests.rpc.conftest import MODEL
from tests.support import call_heads
from tests.support.certificates import Authority
from tests.support.server import ServerProcess, get
from tests.support.stores import StoreProcess
from tests.support.tokens import TokensFile
from tests.support.waiting import wait_for

REVOKED = "the credential of this call was revoked"
OPEN, STEP = (f"/{SERVICE_NAME}/{name}" for name in ("OpenSession", "Step"))
REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


class Scene:
    """A server with mutual TLS and a tokens file, on a store that can be paused."""

    def __init__(self, folder, store):
        self.store = store
        self.authority = Authority(folder)
        self.tokens = TokensFile(folder / "tokens.toml")
        self.stays, self.goes = (self.tokens.add("acme", "step", "admin") for _ in range(2))
        for name in ("scorer.example", "leaver.example"):
            self.tokens.add_certificate("by-name", "step", "admin", san=name)
        flags = [
            *self.tokens.write(),
            *self.authority.server(),
            "--tls-client-ca",
            str(self.authority.path),
        ]
        self.server = ServerProcess(
            folder / "data", "--store", store.url, "--store-timeout-s", "30", *flags
        )
        self.nobody, self.somebody, self.leaver = (
            self.authority.client(f"{name}.example") for name in ("nobody", "scorer", "leaver")
        )

    def said(self, text):
        return self.server.log_path.read_text().count(text)

    def channel(self, tls):
        return grpc.secure_channel(self.server.address, channel_credentials(tls))

    def used(self, change):
        """Changes the file and waits until the server goes by it."""
        count = self.said("was replaced")
        change()
        wait_for(lambda: self.said("was replaced") > count)

    def lets_in(self, token):
        with holdfast.Client(self.server.address, token=token, tls=self.nobody) as client:
            try:
                return client.open_session(model=MODEL).step("x").position == 1
            except Unauthenticated:
                return False


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("revocation")
    with StoreProcess("valkey", folder / "store") as store:
        scene = Scene(folder, store)
        with scene.server:
            yield scene


def bearer(token):
    return (("authorization", f"Bearer {token}"),)


class OpenCall:
    """A call that sends its messages when the test says so."""

    def __init__(self, channel, path, metadata):
        self._messages = queue.SimpleQueue()
        method = channel.stream_stream(path)
        self._call = method(iter(self._messages.get, None), timeout=20, metadata=metadata)

    def send(self, message):
        self._messages.put(message)

    def reply(self):
        return next(self._call)

    def ending(self):
        """Sends no more and returns the error that the call ends with."""
        self._messages.put(None)
        try:
            return next(self._call)
        except grpc.RpcError as error:
            return from_rpc(error)


def opening(session_id):
    return pb.OpenSessionRequest(session_id=session_id, model=pb.ModelRef(name=MODEL)).SerializeToString()


def step(session_id):
    chunk = pb.Chunk(session_id=session_id, model=pb.ModelRef(name=MODEL), tokens=pb.Tokens(text=b"x"))
    return pb.StepRequest(chunk=chunk).SerializeToString()


# -- calls ----------------------------------------------------------------------------------------

REFLECTED = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()


@pytest.fixture(scope="module")
def endings(scene):
    """How calls of every kind end when their credential goes: by kind, for a token and for a certificate.

    One has not sent its message, one waits for the store, one is an open stream of reflection.
    """
    callers = {"token": (scene.nobody, bearer(scene.goes)), "certificate": (scene.leaver, ())}
    late, waiting, reflecting = {}, {}, {}
    with contextlib.ExitStack() as cleanup:
        for who, (tls, metadata) in callers.items():
            channel = cleanup.enter_context(scene.channel(tls))
            late[who] = OpenCall(channel, STEP, metadata)
            channel.unary_unary(OPEN)(opening("s"), timeout=20, metadata=metadata)
            reflecting[who] = OpenCall(channel, REFLECT, metadata)
            reflecting[who].send(REFLECTED)
            assert SERVICE_NAME.encode() in reflecting[who].reply()
        scene.store.pause()
        cleanup.callback(scene.store.resume)
        for who, (tls, metadata) in callers.items():
            waiting[who] = OpenCall(cleanup.enter_context(scene.channel(tls)), STEP, metadata)
            waiting[who].send(step("s"))
        started = 'grpc_server_started_total{grpc_method="Step"'
        wait_for(lambda: counted(get(scene.server, "/metrics")[1], started) == 4)
        for credential in (scene.goes, "leaver.example"):
            scene.tokens.remove(credential)
        scene.used(scene.tokens.write)
        for call in late.values():
            call.send(step("s"))
        kinds = {"late": late, "waiting": waiting, "reflecting": reflecting}
        return {(kind, who): call.ending() for kind, calls in kinds.items() for who, call in calls.items()}


@pytest.mark.parametrize("who", ["token", "certificate"])
@pytest.mark.parametrize("kind", ["late", "waiting", "reflecting"])
def test_a_call_ends_with_its_credential(endings, kind, who):
    error = endings[kind, who]
    assert (type(error), str(error)) == (Unauthenticated, REVOKED)


@pytest.mark.parametrize("name", ["Step", "StreamBatches"])
def test_a_certificate_of_nobody_is_refused_before_a_message_comes(scene, name):
    wait_for(lambda: is_even(get(scene.server, "/metrics")[1], name))  # calls of other tests have ended
    before = get(scene.server, "/metrics")[1]
    with scene.channel(scene.nobody) as channel:
        call = OpenCall(channel, f"/{SERVICE_NAME}/{name}", ())
        with pytest.raises(grpc.RpcError) as refused:
            call.reply()
        call.ending()
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    line = f'grpc_server_handled_total{{grpc_code="Unauthenticated",grpc_method="{name}"'
    wait_for(lambda: counted(get(scene.server, "/metrics")[1], line) == counted(before, line) + 1)


def is_even(page, name):
    """Whether every call of an rpc that has begun is counted as ended, too."""
    method = f'grpc_method="{name}"'
    lines = [line for line in page.splitlines() if method in line]
    began, ended = (counted_in(lines, f"grpc_server_{what}_total") for what in ("started", "handled"))
    return began == ended


def counted_in(lines, start):
    return sum(float(line.split()[-1]) for line in lines if line.startswith(start))


def counted(page, start):
    return counted_in(page.splitlines(), start)


def test_a_call_by_certificate_without_a_message_is_an_error_of_its_caller(scene):
    with scene.channel(scene.somebody) as channel:
        error = OpenCall(channel, STEP, ()).ending()
    assert (error.code, str(error)) == ("INVALID_ARGUMENT", "the call ended before it had a message")


# -- what strangers send --------------------------------------------------------------------------

HEADS = {
    "a token that is no UTF-8": (STEP.encode(), (b"authorization", b"Bearer s3cret\xff\xfe")),
    "a surrogate": (STEP.encode(), (b"authorization", b"Bearer s3cret\xed\xa0\x80")),
    "a token that is no ASCII": (STEP.encode(), (b"authorization", "Bearer s3crét".encode())),
    "a token as bytes": (STEP.encode(), (b"authorization-bin", b"czNjcmV0")),
    "two tokens": (
        STEP.encode(),
        (b"authorization", b"Bearer s3cret"),
        (b"authorization", b"Bearer s3cret"),
    ),
    "other metadata that is no UTF-8": (STEP.encode(), (b"x-s3cret", b"\xff")),
    "a path that is no UTF-8": (b"/s3cret\xff\xfe/Step",),
    "a method that is no UTF-8": (STEP.encode() + b"\xff",),
    "no path": (b"",),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_a_head_that_no_client_sends_is_refused_and_not_logged(scene, head):
    path, *metadata = head
    before = scene.server.log_path.read_text()
    assert b"grpc-status" in call_heads.call(scene.server.address, path, *metadata, tls=scene.nobody)
    assert scene.lets_in(scene.stays), "the server takes calls"
    assert scene.server.log_path.read_text() == before


# -- the file -------------------------------------------------------------------------------------


def test_a_file_that_was_refused_for_its_mode_is_used_once_that_is_mended(scene):
    path, new = scene.tokens.path, scene.tokens.add("acme", "step")
    path.chmod(0o666)  # as it stands by now, so there is no moment in which it was right
    path.write_text(scene.tokens.text())
    wait_for(lambda: scene.said("chmod o-w"))
    assert not scene.lets_in(new)
    scene.used(lambda: path.chmod(0o644))
    assert scene.lets_in(new)
    assert scene.said("chmod o-w") == 1, "told once"
