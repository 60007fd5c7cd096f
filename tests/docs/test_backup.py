"""Backup and restore of a store by docs/operate/operations.md: a snapshot back, and clients that go on."""

import shutil

import numpy as np

import holdfast
from holdfast.demo.processes import ServerProcess
from tests.docs.pages import ROOT
from tests.support.oracle import run
from tests.support.server import get
from tests.support.store_process import StoreProcess
from tests.support.waiting import wait_for

MODEL = "python-source"
TEXT = b"def answer():\n    return 42\n"
CUT = 10


def test_a_snapshot_is_restored_and_clients_send_again_what_it_lacks(tmp_path):
    data = tmp_path / "data"
    with (
        StoreProcess(tmp_path / "first") as first,
        ServerProcess(data, "--store", first.url) as server,
        holdfast.Client(server.address) as client,
    ):
        session = client.open_session("kept", model=MODEL)
        given = list(session.step(TEXT[:CUT], token_log_prob=True).token_log_probs)
        first.client.save()  # what `redis-cli --rdb` gets is the same file
        snapshot = shutil.copy(tmp_path / "first" / "dump.rdb", tmp_path / "holdfast.rdb")
        given += list(session.step(TEXT[CUT:-1], token_log_prob=True).token_log_probs)
        first.kill()
        (tmp_path / "second").mkdir()
        shutil.copy(snapshot, tmp_path / "second" / "holdfast.rdb")
        with restored(tmp_path / "second", port=first.port):
            given += list(session.step(TEXT[-1:], token_log_prob=True).token_log_probs)
            assert session.position == len(TEXT)
            assert 'holdfast_errors_total{reason="STORE_REGRESSED"} 1.0' in get(server, "/metrics")[1]
    np.testing.assert_allclose(given, run(MODEL, TEXT)[1], atol=1e-5, rtol=0)


def test_the_page_has_the_options_and_commands_of_this_test():
    text = (ROOT / "docs" / "operate" / "operations.md").read_text()
    assert "--dbfilename holdfast.rdb --appendonly no --maxmemory-policy noeviction" in text
    assert "CONFIG SET appendonly yes" in text


def restored(folder, port):
    """Starts a store on a snapshot, and has it make its append-only file."""
    store = StoreProcess(
        folder, port=port, dbfilename="holdfast.rdb", appendonly="no", maxmemory_policy="noeviction"
    )
    store.client.config_set("appendonly", "yes")
    info = {}

    def is_done():
        info.update(store.client.info("persistence"))
        return not (info["aof_rewrite_in_progress"] or info.get("aof_rewrite_scheduled"))

    wait_for(is_done, 20)
    assert info["aof_last_bgrewrite_status"] == "ok"
    return store
