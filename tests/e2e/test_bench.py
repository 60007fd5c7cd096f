"""`holdfast bench` as a user runs it, and what of `make bench` leans on modules of the server."""

import pytest
import redis

from benchmarks.ceilings import bare, commits, store_writes
from benchmarks.contestants import MODEL_FILE
from benchmarks.graphs import open_graph
from service.store.embedded import EmbeddedStore
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
    for load in (
        "1 stream",
        "4 streams",
        "4 unary callers",
        "batches of 64 rows x 1",
        "batches of 64 rows x 16",
    ):
        [row] = [line for line in result.out.splitlines() if f" {load}  " in line]
        assert len(row.split()) == len(load.split()) + 8, row  # steps/s to p99.9, and three of the server
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
        turns = [store_writes(store, 0.05), commits(store, 0.05)]
    finally:
        store.release()
    turns.append(bare(open_graph(MODEL_FILE), 2, 3, 0.05))
    assert all(turn.steps_per_s > 0 for turn in turns)
