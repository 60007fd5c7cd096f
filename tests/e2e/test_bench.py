"""`holdfast bench` as a user runs it, and what of `make bench` leans on modules of the server."""

import subprocess
import sys

import grpc
import numpy as np
import pytest
import redis

from benchmarks import callers
from benchmarks.ceilings import bare, commits
from benchmarks.contestants import MODEL_FILE, Contestant
from benchmarks.graphs import open_graph
from benchmarks.loads import load
from benchmarks.population import Population, SpreadBatches, copy_record
from holdfast import AsyncClient
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub
from service.rpc.credentials import DEFAULT_TENANT
from service.store.embedded import EmbeddedStore
from service.store.keys import session_keys
from service.store.record import decode
from tests.support.certificates import Authority
from tests.support.command_line import call, starts
from tests.support.models import write_features_model
from tests.support.oracle import MODELS
from tests.support.server import ServerProcess
from tests.support.tokens import TokensFile

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def server(folder):
    models = folder / "models"
    models.mkdir()
    (models / "python-source").symlink_to(MODELS / "python-source")
    write_features_model(models / "features" / "1" / "model.onnx")
    with ServerProcess(folder / "data", "--models", str(models)) as server:
        yield server


def bench(*options):
    return starts().call("bench", *options)


def test_it_knows_tls_and_tokens(tmp_path):
    authority, tokens = Authority(tmp_path), TokensFile(tmp_path / "tokens.toml")
    token = tmp_path / "token"
    token.write_text(tokens.add("acme", "step") + "\n")
    tls = authority.client("bench.example")
    flags = [*tokens.write(), *authority.server(), "--tls-client-ca", str(authority.path)]
    options = ["--tls-ca", tls.ca, "--tls-cert", tls.cert, "--tls-key", tls.key, "--seconds", "0.2"]
    with ServerProcess(tmp_path / "data", *flags) as server:
        target = ["--target", server.address, "--streams", "2", "--connections", "2"]
        result = bench(*target, *map(str, options), "--token-file", str(token))
        assert result.code == 0, result.err
        refused = bench(*target, *map(str, options))
        assert (refused.code, "no valid token" in refused.err) == (1, True)
        assert call("bench", *target, "--tls-cert", tls.cert).code == 2
        assert call("bench", *target, "--token-file", tmp_path / "none").code == 2


@pytest.mark.parametrize("model", ["python-source", "features"])
def test_it_prints_a_row_per_load_and_closes_its_sessions(folder, server, model):
    target = ["--target", server.address, "--http", server.http, "--model", model]
    result = bench(*target, "--streams", "1", "4", "--seconds", "0.2")
    assert result.code == 0, result.err
    assert f"model {model} version 1" in result.out
    for name in (
        "1 stream",
        "4 streams",
        "4 unary callers",
        "batches of 64 rows x 1",
        "batches of 64 rows x 16",
    ):
        [row] = [line for line in result.out.splitlines() if f" {name}  " in line]
        assert len(row.split()) == len(name.split()) + 8, row  # steps/s to p99.9, and three of the server
    with redis.Redis(unix_socket_path=str(folder / "data" / "store.sock")) as store:
        records = [decode(store.get(key)) for key in store.scan_iter("holdfast:*")]
    assert len(records) >= 1 + 4 + 4 + 64 + 64
    assert all(record.deleted for record in records)


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        (["--model", "nope"], 2, "no model is named 'nope'"),
        (["--seconds", "0"], 2, "--seconds"),
        (["--http", "127.0.0.1:1"], 1, "--http 127.0.0.1:1: "),
        (["--target", "127.0.0.1:1"], 1, "127.0.0.1:1: "),
    ],
)
def test_it_says_what_is_wrong_in_one_line(server, options, code, complaint):
    result = call("bench", "--target", server.address, *options)
    assert result.code == code
    assert complaint in result.err.splitlines()[-1]
    assert "Traceback" not in result.err


def test_the_ceilings_of_make_bench_can_be_measured(folder, server):
    store = EmbeddedStore.start(folder / "data")  # joins the server's
    try:
        turns = [commits(store, 0.05)]
    finally:
        store.release()
    turns.append(bare(open_graph(MODEL_FILE), 2, 3, 0.05))
    assert all(turn.steps_per_s > 0 for turn in turns)


@pytest.mark.parametrize(
    ("connect", "loop"),
    [
        (AsyncClient, callers.Callers("tasks", 3, callers.steps)),
        (AsyncClient, callers.Callers("streams", 3, callers.streams)),
        (callers.by_threads, callers.Threads("threads", 3)),
    ],
    ids=["tasks", "streams", "threads"],
)
def test_callers_of_the_client_step_on_from_turn_to_turn(server, connect, loop):
    contestant = Contestant("client", server.address, server.pid, connect=connect)
    for _ in range(2):
        turn = load(contestant, loop, 0.2)
        assert turn.steps_per_s > 0
        assert turn.load_us > 0


def test_a_record_is_copied_so_that_the_server_goes_on_from_it(folder, server):
    contestant = Contestant("server", server.address, server.pid)
    population = Population("python-source", 10)
    everyone = np.arange(10)
    load(contestant, SpreadBatches(population, everyone[:1], 1, rows=1, once=True), 0.0)
    socket_path = folder / "data" / "store.sock"
    [first, *others] = session_keys(DEFAULT_TENANT, map(population.id_of, range(10)))
    with redis.Redis(unix_socket_path=str(socket_path)) as store:
        copy_record(store, socket_path, first, others)
        assert 0 < store.pttl(others[-1]) <= store.pttl(first)
    population.positions[:] = 1
    population.is_open[:] = True
    load(contestant, SpreadBatches(population, everyone, 1, rows=10, once=True), 0.0)
    assert population.positions.tolist() == [2] * 10


def test_the_plain_server_keeps_a_state_for_each_session(server, folder):
    command = [sys.executable, "-m", "benchmarks.peers.plain", str(MODEL_FILE)]
    command.append(f"unix://{folder}/data/store.sock")
    texts = {"one": b"abc", "two": b"abd"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().split("grpc=")[1].split()[0]
            with grpc.insecure_channel(address) as channel:
                stub = StreamingInferenceServiceStub(channel)
                for place in range(3):
                    calls = [
                        stub.Step.future(plain_step(name, text[place])) for name, text in texts.items()
                    ]
                    replies = [call.result(10).result.outputs for call in calls]
        finally:
            process.terminate()
    for text, reply in zip(texts.values(), replies, strict=True):
        assert list(reply.top_ids) == likeliest_after(text)


def plain_step(session_id, byte):
    return pb.StepRequest(chunk=pb.Chunk(session_id=session_id, tokens=pb.Tokens(text=bytes([byte]))))


def likeliest_after(text):
    graph = open_graph(MODEL_FILE)
    feed = {"token": np.frombuffer(text, np.uint8).astype(np.int64)[:, np.newaxis]}
    feed["h"] = np.zeros((1, graph.get_inputs()[1].shape[1]), np.float32)
    [logits] = graph.run(["logits"], feed)
    return np.argsort(-logits[-1, 0])[:5].tolist()
