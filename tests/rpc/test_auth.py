"""Who may call what, over real sockets: tokens, certificates, scopes, tenants, and their revocation."""

import hashlib
import secrets
import threading
from collections import deque
from itertools import count, cycle

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

import holdfast
from holdfast.client.status import from_rpc, from_status
from holdfast.errors import PermissionDenied, SessionNotFound, Unauthenticated
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from service.rpc.rpcs import RPC_SCOPES, SERVICE_NAME
from tests.rpc.conftest import MODEL
from tests.support.certificates import Authority
from tests.support.oracle import run
from tests.support.server import ServerProcess, get
from tests.support.tokens import TokensFile
from tests.support.waiting import wait_for

SERVICE = pb.DESCRIPTOR.services_by_name["StreamingInferenceService"]
NO_TOKEN = "no valid token came with the call, as 'authorization: Bearer …'"
MODEL_REF = pb.ModelRef(name=MODEL)


class Caller:
    """Calls rpcs with metadata of its own; a refusal comes back as an error of the client."""

    def __init__(self, channel, *authorizations):
        self.channel = channel
        self.stub = StreamingInferenceServiceStub(channel)
        self.metadata = tuple(("authorization", value) for value in authorizations)

    def call(self, name, request):
        """Sends one request; returns the reply or the error."""
        method = SERVICE.methods_by_name[name]
        options = {"timeout": 10, "metadata": self.metadata}
        try:
            sent = iter([request]) if method.client_streaming else request
            reply = getattr(self.stub, name)(sent, **options)
            return next(reply) if method.server_streaming else reply
        except grpc.RpcError as error:
            return from_rpc(error)

    def open(self, session_id):
        request = pb.OpenSessionRequest(session_id=session_id, model=MODEL_REF)
        return self.call("OpenSession", request).session

    def step(self, session_id, text=b"x", **fields):
        chunk = pb.Chunk(session_id=session_id, model=MODEL_REF, tokens=pb.Tokens(text=text), **fields)
        return self.call("Step", pb.StepRequest(chunk=chunk))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return TokensFile(tmp_path_factory.mktemp("tokens") / "tokens.toml")


@pytest.fixture(scope="module")
def token_of(tokens):
    """One token per scope and tenant; acme and beta have one with all scopes as well."""
    every = ("step", "read-state", "admin")
    return {scopes: tokens.add("acme", *scopes) for scopes in ((scope,) for scope in every)} | {
        tenant: tokens.add(tenant, *every) for tenant in ("acme", "beta")
    }


@pytest.fixture(scope="module")
def server(tokens, token_of, tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("auth") / "data", *tokens.write()) as server:
        yield server


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture(scope="module")
def caller(channel, token_of):
    """Returns a caller by the key of its token."""
    return lambda key: Caller(channel, f"Bearer {token_of[key]}")


def request_of(name):
    """Returns an empty request of an rpc, which gets as far as being looked at."""
    return getattr(pb, SERVICE.methods_by_name[name].input_type.name)()


def test_every_rpc_says_whom_it_is_for():
    assert RPC_SCOPES.keys() == {method.name for method in SERVICE.methods}


@pytest.mark.parametrize("name", RPC_SCOPES)
def test_every_rpc_is_closed_to_strangers_and_to_those_without_its_scope(channel, caller, name):
    for stranger in (Caller(channel), Caller(channel, f"Bearer {secrets.token_urlsafe(32)}")):
        refused = stranger.call(name, request_of(name))
        assert (type(refused), refused.code, str(refused)) == (Unauthenticated, "UNAUTHENTICATED", NO_TOKEN)
    for scope in ("step", "read-state", "admin"):
        outcome = caller((scope,)).call(name, request_of(name))
        is_denied = isinstance(outcome, PermissionDenied) and "needs a credential" in str(outcome)
        assert is_denied != (scope in RPC_SCOPES[name]), outcome
        assert not isinstance(outcome, Unauthenticated)


WRONG = {
    "another scheme": lambda token: [f"Basic {token}"],
    "no scheme": lambda token: [token],
    "no token": lambda token: ["Bearer "],
    "cut off": lambda token: [f"Bearer {token[:-1]}"],
    "longer": lambda token: [f"Bearer {token}A"],
    "twice": lambda token: [f"Bearer {token}", f"Bearer {token}"],
    "its hash": lambda token: [f"Bearer {hashlib.sha256(token.encode()).hexdigest()}"],
}


@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG.keys())
def test_only_the_token_itself_lets_in(channel, token_of, spoil):
    assert isinstance(Caller(channel, *spoil(token_of["acme"])).step("wrong"), Unauthenticated)


def test_the_scheme_may_be_written_in_any_case(channel, token_of):
    assert Caller(channel, f"bearer {token_of['acme']}").open(secrets.token_hex(8)).incarnation


def test_a_stranger_is_refused_before_his_message_comes(channel):
    never = threading.Event()

    def message():
        never.wait()
        yield b""

    step = channel.stream_unary(f"/{SERVICE_NAME}/Step")
    with pytest.raises(grpc.RpcError) as refused:
        step(message(), timeout=10)
    never.set()
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_what_a_stranger_sends_is_not_parsed(channel):
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(f"/{SERVICE_NAME}/Step")(b"\xff" * 100, timeout=10)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def reflect(channel, version, authorizations):
    method = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    try:
        [reply] = method(iter([request]), timeout=10, metadata=Caller(channel, *authorizations).metadata)
    except grpc.RpcError as error:
        return type(from_rpc(error))
    return {service.name for service in reply.list_services_response.service}


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_is_for_admins_only(channel, token_of, version):
    assert reflect(channel, version, []) is Unauthenticated
    assert reflect(channel, version, [f"Bearer {token_of['step',]}"]) is PermissionDenied
    assert SERVICE_NAME in reflect(channel, version, [f"Bearer {token_of['admin',]}"])


def test_probes_need_no_token(channel, server):
    reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
    assert get(server, "/readyz")[0] == 200


def test_refusals_are_counted(channel, server):
    Caller(channel).step("counted")
    lines = get(server, "/metrics")[1].splitlines()
    [line] = [line for line in lines if line.startswith('holdfast_errors_total{reason="UNAUTHENTICATED"}')]
    assert float(line.split()[-1]) >= 1


# -- states ---------------------------------------------------------------------------------------

STATE = pb.OutputSelection(state=True)


def test_the_state_is_shown_to_those_who_may_see_it(caller):
    name = secrets.token_hex(8)
    everything, steps, reads = caller("acme"), caller(("step",)), caller(("read-state",))
    steps.open(name)
    assert everything.step(name, position=0, outputs=STATE).result.outputs.state
    asked = pb.GetSessionRequest(session_id=name, include_state=True)
    assert reads.call("GetSession", asked).state
    refusals = [
        steps.call("GetSession", asked),
        steps.step(name, position=1, outputs=STATE),
        from_status(streamed(steps, name, position=1, outputs=STATE).error.status),
        reads.step(name, position=1),
    ]
    assert {type(refusal) for refusal in refusals} == {PermissionDenied}
    assert [refusal.metadata.get("field") for refusal in refusals] == [
        "include_state",
        "chunk.outputs.state",
        "chunk.outputs.state",
        None,
    ]
    assert steps.call("GetSession", pb.GetSessionRequest(session_id=name)).session.position == 1


def streamed(caller, name, **fields):
    chunk = pb.Chunk(session_id=name, model=MODEL_REF, tokens=pb.Tokens(text=b"x"), **fields)
    return caller.call("StreamSteps", pb.StreamStepsRequest(chunk=chunk))


def test_a_kept_reply_shows_its_state_to_those_who_may_see_it_only(caller):
    name = secrets.token_hex(8)
    caller("acme").open(name)
    first = caller("acme").step(name, position=0, outputs=STATE).result
    again = caller(("step",)).step(name, position=0).result
    on_stream = streamed(caller(("step",)), name, position=0).result
    seen = caller("acme").step(name, position=0).result
    assert again.replayed
    assert on_stream.replayed
    assert seen.outputs == first.outputs
    first.outputs.ClearField("state")
    assert again.outputs == on_stream.outputs == first.outputs


# -- tenants --------------------------------------------------------------------------------------

NAMED = [
    method.name
    for method in SERVICE.methods
    if "session_id" in method.input_type.fields_by_name and not method.server_streaming
]
ROWS = ("OpenBatch", "StepBatch", "StreamBatches", "DeleteBatch", "ListSessions")
IDS = ("a", "b")


def one_session(name, session_id):
    """Returns a request about one session, for any rpc that names one."""
    request = request_of(name)
    chunk = pb.Chunk(session_id=session_id, model=MODEL_REF, tokens=pb.Tokens(text=b"x"))
    if name in ("Step", "StreamSteps"):
        request.chunk.CopyFrom(chunk)
    elif name in ("StepBatch", "StreamBatches"):
        batch = pb.Batch(session_ids=[session_id], model=MODEL_REF, text=b"x")
        request.batch.CopyFrom(batch)
    elif name in ("OpenBatch", "DeleteBatch"):
        request.session_ids.append(session_id)
    elif name == "ListSessions":
        request.prefix = session_id
    else:
        request.session_id = session_id
    if name == "ForkSession":
        request.new_session_ids.append(f"{session_id}-copy")
    if name in ("OpenBatch", "OpenSession"):
        request.model.CopyFrom(MODEL_REF)
    return request


def shape(message, session_id):
    """Returns an outcome as text, without what differs from one run to the next."""
    if isinstance(message, holdfast.HoldfastError):
        text = f"{message.code} {message.reason} {sorted(message.metadata.items())} {message}"
    else:
        lines = str(message).splitlines()
        text = "\n".join(
            line for line in lines if not line.strip().startswith(("incarnation", "expires_in_s", "idle_s"))
        )
    return text.replace(session_id, "ID")


def run_alone(caller, operations, prefix):
    return [
        shape(caller.call(name, one_session(name, prefix + part)), prefix + part)
        for name, part in operations
    ]


operations = st.lists(
    st.tuples(
        st.sampled_from(["acme", "beta"]),
        st.sampled_from([*NAMED, "OpenSession", "Step", "StreamSteps", *ROWS]),
        st.sampled_from(IDS),
    ),
    min_size=2,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(operations)
def test_a_tenant_sees_what_it_would_see_alone(caller, operations):
    shared = secrets.token_hex(8)
    together = [
        (tenant, shape(caller(tenant).call(name, one_session(name, shared + part)), shared + part))
        for tenant, name, part in operations
    ]
    for tenant in ("acme", "beta"):
        own = [(name, part) for who, name, part in operations if who == tenant]
        alone = run_alone(caller(tenant), own, secrets.token_hex(8))
        assert [outcome for who, outcome in together if who == tenant] == alone


@pytest.mark.parametrize("name", ["Step", "StreamSteps", "StepBatch", "StreamBatches"])
def test_tenants_step_sessions_of_one_id_apart(caller, name):
    session_id = secrets.token_hex(8)

    for tenant in ("acme", "beta"):
        caller(tenant).open(session_id)

    def position(tenant):
        result = caller(tenant).call(name, one_session(name, session_id)).result
        return result.positions[0] if "Batch" in name else result.position

    assert [position(tenant) for tenant in ("acme", "beta", "acme", "beta")] == [1, 1, 2, 2]


@pytest.mark.parametrize("name", [*NAMED, "Step", "StreamSteps", *ROWS])
def test_anothers_session_looks_like_none(caller, name):
    theirs = secrets.token_hex(8)
    caller("beta").open(theirs)
    assert caller("beta").step(theirs).result.position == 1
    unknown = secrets.token_hex(8)
    seen, absent = (
        shape(caller("acme").call(name, one_session(name, session_id)), session_id)
        for session_id in (theirs, unknown)
    )
    assert seen == absent
    assert caller("beta").call("GetSession", pb.GetSessionRequest(session_id=theirs)).session.position == 1


def test_not_found_names_no_tenant(caller):
    missing = caller("acme").call("GetSession", pb.GetSessionRequest(session_id="nobody's"))
    assert isinstance(missing, SessionNotFound)
    assert "acme" not in str(missing)


# -- the client, and revocation -------------------------------------------------------------------


def test_the_client_sends_its_token_and_does_not_retry_a_refusal(server, token_of):
    with holdfast.Client(server.address, token=token_of["step",]) as client:
        session = client.open_session(model=MODEL)
        assert [reply.position for reply in session.stream("abc")] == [1, 2, 3]
    with holdfast.Client(server.address, token="holdfast_wrong") as client, pytest.raises(Unauthenticated):
        client.open_session(model=MODEL)


class Stream:
    """One stream that stays open: sends a chunk when told, and knows how it ended."""

    def __init__(self, caller, name):
        self._go = threading.Semaphore(0)
        self._name = name
        self._is_over = False
        self._call = getattr(caller.stub, name)(self._requests(), timeout=20, metadata=caller.metadata)
        self._session_id = secrets.token_hex(8)
        caller.open(self._session_id)

    def _requests(self):
        for position in count():
            self._go.acquire()
            if self._is_over:
                return
            if self._name == "StreamSteps":
                chunk = pb.Chunk(
                    session_id=self._session_id,
                    model=MODEL_REF,
                    tokens=pb.Tokens(text=b"x"),
                    position=position,
                )
                yield pb.StreamStepsRequest(chunk=chunk)
            else:
                batch = pb.Batch(
                    session_ids=[self._session_id], model=MODEL_REF, text=b"x", positions=[position]
                )
                yield pb.StreamBatchesRequest(batch=batch)

    def step(self):
        """Sends a chunk and returns the position, or the error that ended the stream."""
        self._go.release()
        return self.ended(next_one=True)

    def ended(self, *, next_one=False):
        try:
            result = next(self._call).result
        except grpc.RpcError as error:
            return from_rpc(error)
        assert next_one, "a reply to nothing"
        return result.position if self._name == "StreamSteps" else result.positions[0]

    def close(self):
        self._is_over = True
        self._go.release()
        self._call.cancel()


@pytest.mark.parametrize("name", ["StreamSteps", "StreamBatches"])
def test_streams_end_when_their_credential_is_revoked(tmp_path, name):
    tokens = TokensFile(tmp_path / "tokens.toml")
    stays, goes, shrinks = (tokens.add(tenant, "step", "admin") for tenant in ("acme", "acme", "beta"))
    with (
        ServerProcess(tmp_path / "data", *tokens.write()) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        streams = [Stream(Caller(channel, f"Bearer {token}"), name) for token in (stays, goes, shrinks)]
        assert [stream.step() for stream in streams] == [1, 1, 1]
        tokens.path.write_text("[[token]]\nsha256 = 7\n")
        said = server.log_path.read_text
        wait_for(lambda: said().count("the credentials before stay valid") == 1, 20)
        assert [stream.step() for stream in streams] == [2, 2, 2]
        assert isinstance(Caller(channel).step("s"), Unauthenticated)
        tokens.remove(goes)
        tokens.change_scopes(shrinks, "beta", "admin")
        tokens.write()
        for stream in streams[1:]:
            error = stream.ended()
            assert (type(error), str(error)) == (Unauthenticated, "the credential of this call was revoked")
        assert isinstance(Caller(channel, f"Bearer {goes}").step("s"), Unauthenticated)
        assert isinstance(Caller(channel, f"Bearer {shrinks}").step("s"), PermissionDenied)
        assert streams[0].step() == 3
        assert said().count("the credentials before stay valid") == 1, "told once"
        assert "calls ended: 2" in said()
        for stream in streams:
            stream.close()


def test_what_was_under_way_when_a_stream_was_revoked_is_applied_once(tmp_path):
    tokens = TokensFile(tmp_path / "tokens.toml")
    old, new = tokens.add("acme", "step"), tokens.add("acme", "step")
    text = b"import numpy as np\n"
    with ServerProcess(tmp_path / "data", *tokens.write()) as server:
        with holdfast.Client(server.address, token=old) as client:
            stream = client.open_session("s", model=MODEL).stream(bytes([byte]) for byte in cycle(text))
            next(stream)
            tokens.remove(old)
            tokens.write()
            with pytest.raises(Unauthenticated):
                deque(stream, maxlen=0)
        with holdfast.Client(server.address, token=new) as client:
            session = client.open_session("s", model=MODEL)
            before = session.position
            after = session.step("x", token_log_prob=True).token_log_probs[0]
    applied = (text * (before // len(text) + 1))[:before]
    assert abs(after - run(MODEL, applied + b"x")[1][-1]) < 1e-5


def test_everybody_who_may_write_the_file_could_let_himself_in(tmp_path):
    tokens = TokensFile(tmp_path / "tokens.toml")
    tokens.add("acme", "step")
    flags = tokens.write()
    tokens.path.chmod(0o666)
    with pytest.raises(RuntimeError, match="chmod o-w"):
        ServerProcess(tmp_path / "data", *flags).stop()
    tokens.path.chmod(0o644)
    with ServerProcess(tmp_path / "data", *flags) as server:
        assert get(server, "/readyz")[0] == 200


# -- certificates ---------------------------------------------------------------------------------


def test_a_certificate_is_a_credential_where_clients_have_one(tmp_path):
    authority = Authority(tmp_path)
    tokens = TokensFile(tmp_path / "tokens.toml")
    token = tokens.add("by-token", "step")
    tokens.add_certificate("by-san", "step", "admin", san="scorer.example")
    tokens.add_certificate("by-name", "read-state", common_name="reader")
    flags = [*tokens.write(), *authority.server(), "--tls-client-ca", str(authority.path)]

    def position(session_id, *names, common_name=None, **options):
        tls = authority.client(*names, common_name=common_name)
        with holdfast.Client(server.address, tls=tls, **options) as client:
            return client.open_session(session_id, model=MODEL).step("x").position

    with ServerProcess(tmp_path / "data", *flags) as server:
        assert position("s", "scorer.example") == 1
        assert position("s", "other.example", "scorer.example") == 2
        assert position("s", "scorer.example", token=token) == 1, "a token goes before the certificate"
        for stranger in (("unknown.example", "reader"), ("scorer.example", "reader")):
            with pytest.raises((Unauthenticated, PermissionDenied)):
                position("s", stranger[0], common_name=stranger[1])
        with pytest.raises(Unauthenticated):
            position("s", "unknown.example")
        with pytest.raises(Unauthenticated):
            position("s", "scorer.example", token="holdfast_wrong")
        assert reflection_over(server, authority.client("scorer.example"))
        assert not reflection_over(server, authority.client("unknown.example"))


def reflection_over(server, tls):
    with grpc.secure_channel(server.address, holdfast.client.tls.channel_credentials(tls)) as channel:
        return isinstance(reflect(channel, "v1", []), set)


def test_certificates_as_credentials_need_clients_that_have_them(tmp_path):
    tokens = TokensFile(tmp_path / "tokens.toml")
    tokens.add_certificate("acme", "step", san="scorer.example")
    with pytest.raises(RuntimeError, match="needs --tls-client-ca"):
        ServerProcess(tmp_path / "data", *tokens.write()).stop()
