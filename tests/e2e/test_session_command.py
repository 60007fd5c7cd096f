"""`holdfast session`: what people and scripts see of lists, copies, exports and deletions."""

import io
import json
import os
import pty
import subprocess
import sys

import numpy as np
import pytest

import holdfast
from tests.rpc.conftest import MODEL
from tests.support.command_line import call
from tests.support.server import ServerProcess

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("server") / "data") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with holdfast.Client(server.address) as client:
        yield client


@pytest.fixture
def session(server):
    """Calls the command at the server."""
    return lambda command, *words: call("session", command, "--target", server.address, *words)


def lines(said):
    assert (said.code, said.err) == (0, "")
    return [json.loads(line) for line in said.out.splitlines()]


def run(server, *words, **options):
    """Runs the command as a process of its own, which has real files for input and output."""
    line = [sys.executable, "-c", "from service.command import main; main()", "session", *words]
    return subprocess.run([*line, "--target", server.address], capture_output=True, timeout=60, **options)


def test_list_prints_a_table_and_json(client, session):
    client.open_session("list-a", model=MODEL).step("abc")
    client.open_session("list-b", model="sensor-anomaly")
    table = session("list", "--prefix", "list-").out.splitlines()
    assert table[0].split() == ["position", "model", "idle", "expires", "session"]
    rows = {line.split()[-1]: line for line in table[1:]}
    assert rows.keys() == {"list-a", "list-b"}
    assert rows["list-a"].split()[:3] == ["3", MODEL, "1"]
    assert rows["list-a"].index("list-a") == table[0].index("session"), "columns are aligned"
    assert "24.0 h" in rows["list-a"]
    [found] = lines(session("list", "--prefix", "list-", "--model", MODEL, "--json"))
    stored = client.get_session("list-a")
    assert (found["session_id"], found["position"], found["incarnation"]) == (
        "list-a",
        3,
        stored.incarnation,
    )
    assert (found["model"], found["model_version"], found["quarantine_reason"]) == (MODEL, 1, None)
    assert found["history_digest"] == stored.history_digest
    assert 0 <= found["idle_s"] < 60
    assert session("list", "--prefix", "list-", "--min-idle", "1000").out == ""
    assert len(lines(session("list", "--prefix", "list-", "--limit", "1", "--json"))) == 1


def test_show_prints_facts_and_json(client, session):
    client.open_session("show", model=MODEL).step("ab")
    assert session("show", "show").out.splitlines()[:3:2] == ["session      show", "position     2"]
    [found] = lines(session("show", "show", "--json"))
    assert (found["session_id"], found["position"]) == ("show", 2)


def test_fork_makes_copies_and_says_which_were_not_made(client, session):
    client.open_session("fork", model=MODEL).step("abc")
    done = session("fork", "fork", "fork-1", "fork-2")
    assert (done.code, done.out) == (0, "fork-1 begins at position 3\nfork-2 begins at position 3\n")
    made = lines(session("fork", "fork", "--count", "3", "--json"))
    assert [one["position"] for one in made] == [3, 3, 3]
    assert len({one["session_id"] for one in made}) == 3
    assert client.get_session(made[0]["session_id"]).incarnation == made[0]["incarnation"]
    again = session("fork", "fork", "fork-1", "fork-3")
    assert (again.code, again.out) == (1, "fork-3 begins at position 3\n")
    assert (
        again.err
        == "holdfast session fork: fork-1: SESSION_EXISTS: the id is taken by a session at position 3\n"
    )
    other = session("fork", "fork", "--position", "2")
    assert (other.code, other.out) == (1, "")
    assert other.err.startswith(
        "holdfast session fork: POSITION_CONFLICT: position is 2, the session stands at 3"
    )


def test_export_and_import_by_files(client, session, tmp_path):
    source = client.open_session("export", model=MODEL)
    source.step("abc")
    done = session("export", "export", tmp_path / "blob")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert (tmp_path / "blob").read_bytes() == source.export()
    imported = session("import", tmp_path / "blob", "import")
    assert imported.code == 0
    assert imported.out.splitlines()[0] == "session      import"
    assert client.get_session("import").position == 3
    [unnamed] = lines(session("import", tmp_path / "blob", "--json"))
    assert len(unnamed["session_id"]) == 32
    taken = session("import", tmp_path / "blob", "import")
    assert (taken.code, taken.err.split(": ")[1]) == (1, "SESSION_EXISTS")
    (tmp_path / "blob").write_bytes(source.export()[:-1])
    damaged = session("import", tmp_path / "blob")
    assert damaged.err.startswith(
        "holdfast session import: INVALID_REQUEST: the blob is not an exported session: "
    )
    missing = session("import", tmp_path / "none")
    assert (missing.code, missing.err) == (
        1, f"holdfast session import: {tmp_path / 'none'}: no such file or directory\n",
    )  # fmt: skip
    refused = session("export", "export", tmp_path / "none" / "blob")
    assert refused.code == 1
    assert "no such file or directory" in refused.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blob"], "no part of a file is left"


def test_export_and_import_by_pipes(client, server):
    client.open_session("pipe", model=MODEL).step("abc")
    blob = run(server, "export", "pipe", "-")
    assert (blob.returncode, blob.stderr) == (0, b"")
    done = run(server, "import", "-", "pipe-2", input=blob.stdout)
    assert (done.returncode, done.stderr) == (0, b"")
    assert client.get_session("pipe-2").position == 3


def test_the_state_is_written_by_name(client, session, tmp_path, server):
    source = client.open_session("npz", model=MODEL)
    source.step("abc")
    assert session("export", "npz", "--npz", tmp_path / "state.npz").code == 0
    expected = source.state()
    with np.load(tmp_path / "state.npz") as found:
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
    piped = run(server, "export", "npz", "--npz", "-")
    assert np.load(io.BytesIO(piped.stdout)).keys() == expected.keys()


def test_checkpoints_are_kept_listed_and_restored(client, session):
    source = client.open_session("kept", model=MODEL)
    source.step("abc")
    done = session("checkpoint", "kept", "before")
    assert (done.code, done.out) == (0, "kept is kept as before at position 3\n")
    source.step("de", cursor=b"line 2")
    [saved] = lines(session("checkpoint", "kept", "after", "--position", "5", "--json"))
    assert (saved["name"], saved["position"]) == ("after", 5)
    assert saved["size_bytes"] > 500
    table = session("checkpoints", "kept").out.splitlines()
    assert table[0].split() == ["position", "bytes", "saved", "name"]
    assert [(line.split()[0], line.split()[-1]) for line in table[1:]] == [("3", "before"), ("5", "after")]
    assert table[1].index("before") == table[0].index("name"), "columns are aligned"
    assert [one["name"] for one in lines(session("checkpoints", "kept", "--json"))] == ["before", "after"]
    other = session("checkpoint", "kept", "none", "--position", "4")
    assert (other.code, other.err.split(": ")[1]) == (1, "POSITION_CONFLICT")
    [restored] = lines(session("restore", "kept", "before", "--json"))
    assert (restored["position"], restored["history_digest"]) == (
        3,
        client.checkpoints("kept")[0].history_digest,
    )
    assert session("restore", "kept", "after").out.splitlines()[2] == "position     5"
    assert session("show", "kept").out.splitlines()[-1] == "cursor       b'line 2'"
    gone = session("checkpoint", "kept", "before", "--delete")
    assert gone.out == "checkpoint before of kept was deleted\n"
    missing = session("restore", "kept", "before")
    assert missing.err.startswith("holdfast session restore: CHECKPOINT_NOT_FOUND: ")
    assert session("checkpoints", "kept").out.count("\n") == 2


def test_deletion_of_some_says_what_came_of_each(client, session):
    client.open_batch(MODEL, ["del-1", "del-2"])
    done = session("delete", "del-1", "del-none", "del-2")
    assert (done.code, done.out) == (
        1,
        "del-1 was deleted at position 0\ndel-2 was deleted at position 0\n",
    )
    assert done.err == "holdfast session delete: del-none: SESSION_NOT_FOUND: no session has this id\n"
    assert lines(session("delete", "del-1", "--json")) == [{"session_id": "del-1", "position": 0}]


def test_deletion_by_prefix_asks_before(client, session, server):
    many = [f"prefix-{number}" for number in range(250)]
    client.open_batch(MODEL, [*many, "prefiy"])
    unasked = session("delete", "--prefix", "prefix-")
    assert (unasked.code, unasked.out) == (1, "")
    assert unasked.err == "holdfast session delete: nothing was deleted; --yes deletes without asking\n"
    said = asked(server, b"n\n", "delete", "--prefix", "prefix-")
    assert b"delete 250 sessions at " in said
    assert b"nothing was deleted" in said
    said = asked(server, b"y\n", "delete", "--prefix", "prefix-1")
    assert b"111 sessions were deleted" in said
    assert lines(session("delete", "--prefix", "prefix-", "--yes", "--json")) == [
        {"deleted": 139, "failed": 0}
    ]
    assert client.get_session("prefiy").position == 0
    assert session("delete", "--prefix", "prefix-", "--yes").out == "0 sessions were deleted\n"


def asked(server, answer, *words):
    """Runs the command at a terminal, types an answer, and returns what was printed."""
    line = [sys.executable, "-c", "from service.command import main; main()", "session", *words]
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "wb", buffering=0) as keyboard, os.fdopen(theirs) as terminal:
        keyboard.write(answer)
        done = subprocess.run(
            [*line, "--target", server.address], stdin=terminal, capture_output=True, timeout=60
        )
    return done.stdout + done.stderr


WRONG = {
    ("export", "s"): "export needs either FILE or --npz FILE",
    ("export", "s", "f", "--npz", "g"): "export needs either FILE or --npz FILE",
    ("export", "s", "--npz", "g", "--position", "1"): "--position needs FILE",
    ("checkpoint", "s", "c", "--delete", "--position", "1"): "--position is for saving a checkpoint",
    ("delete",): "delete needs either IDs or --prefix",
    ("delete", "s", "--prefix", "p"): "delete needs either IDs or --prefix",
    ("delete", "s", "t", "--incarnation", "1"): "--incarnation needs exactly one ID",
    ("delete", "--prefix", "p", "--incarnation", "1"): "--incarnation needs exactly one ID",
    ("delete", "s", "--yes"): "--model, --version, --min-idle and --yes need --prefix",
    ("list", "--limit", "0"): "'0' is not a whole number >= 1",
    ("list", "--min-idle", "-1"): "'-1' is not a number of seconds",
    ("list", "--min-idle", "nan"): "'nan' is not a number of seconds",
    ("list", "--min-idle", "soon"): "'soon' is not a number of seconds",
    ("list", "--version", "2"): "holdfast session list: error: --version needs --model",
    ("delete", "--prefix", "", "--yes"): "an empty --prefix means every session",
    ("fork", "s", "--count", "x"): "'x' is not a whole number >= 1",
    ("none",): "invalid choice",
}


@pytest.mark.parametrize(("words", "why"), WRONG.items(), ids=" ".join)
def test_options_that_do_not_go_together_are_refused_before_anything_is_sent(words, why):
    said = call("session", *words)
    assert said.code == 2
    assert why in said.err


@pytest.mark.parametrize(
    "command",
    [
        "list",
        "show",
        "fork",
        "checkpoint",
        "checkpoints",
        "restore",
        "export",
        "import",
        "delete",
        "release",
    ],
)
def test_every_command_has_help(command):
    said = call("session", command, "--help")
    assert said.code == 0
    assert "--json" in said.out
    assert "--target" in said.out


def test_release_prints_json(client, session):
    client.open_session("release", model=MODEL)
    [released] = lines(session("release", "release", "--json"))
    assert released == {"session_id": "release", "reason": None, "position": 0}
