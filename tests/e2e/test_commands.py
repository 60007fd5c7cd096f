"""Every command that calls a server reaches one with TLS and tokens, and fails in one line."""

import subprocess
import sys

import pytest

import holdfast
from tests.rpc.conftest import MODEL
from tests.support.certificates import Authority
from tests.support.command_line import call, starts
from tests.support.server import ServerProcess
from tests.support.tokens import TokensFile

pytestmark = pytest.mark.e2e

COMMANDS = {
    "session": ("session", "show", "s"),
    "model": ("model", "list"),
    "pipe": ("pipe", "--model", MODEL, "--from", "-", "--source-id", "nothing", "--to", "-"),
    "bench": ("bench", "--seconds", "0.2", "--streams", "1"),
    "verify": ("verify", "--seconds", "1", "--sessions", "2", "--history", "HISTORY"),
}


def filled(words, tmp_path):
    return [str(tmp_path / "history") if word == "HISTORY" else word for word in words]


def run(words, tmp_path, *options):
    words = filled(words, tmp_path)
    return starts().call(*words, *options)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server with TLS and tokens; gives it and the options that it takes."""
    folder = tmp_path_factory.mktemp("guarded")
    tokens, authority = TokensFile(folder / "tokens.toml"), Authority(folder)
    token, token_file = tokens.add("acme", "step", "read-state"), folder / "token"
    token_file.write_text(token + "\n")
    with ServerProcess(folder / "data", *tokens.write(), *authority.server()) as server:
        with holdfast.Client(server.address, token=token, tls=holdfast.Tls(authority.path)) as client:
            client.open_session("s", model=MODEL).step("abc")
        yield server, ("--target", server.address, "--token-file", token_file, "--tls-ca", authority.path)


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_server_with_tls_and_tokens_is_reached(words, guarded, tmp_path):
    words = [*filled(words, tmp_path), *map(str, guarded[1])]
    line = [sys.executable, "-c", "from service.command import main; main()", *words]
    result = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_what_is_wrong_is_said_in_one_line(words, guarded, tmp_path):
    server = guarded[0]
    missing = tmp_path / "missing"
    for options in (("--token-file", missing), ("--tls-ca", missing), ("--tls-key", missing)):
        result = call(*filled(words, tmp_path), "--target", server.address, *options)
        assert result.code in (1, 2), options
        said = [line for line in result.err.splitlines() if line.startswith("holdfast ")]
        assert len(said) == 1, result.err
        assert "Traceback" not in result.err


def test_a_session_is_deleted_by_its_incarnation_or_by_its_id(guarded, tmp_path):
    _, options = guarded
    shown = run(("session", "show", "s"), tmp_path, *options).out
    other = run(("session", "delete", "s", "--incarnation", "1"), tmp_path, *options)
    assert (other.code, other.out) == (1, "")
    assert other.err.startswith("holdfast session delete: SESSION_DELETED: ")
    assert run(("session", "show", "s"), tmp_path, *options).out.splitlines()[:3] == shown.splitlines()[:3]
    deleted = run(("session", "delete", "s"), tmp_path, *options)
    assert (deleted.code, deleted.out) == (0, "s was deleted at position 3\n")
    gone = run(("session", "show", "s"), tmp_path, *options)
    assert gone.code == 1
    assert gone.err.startswith(
        "holdfast session show: SESSION_DELETED: the session was deleted at position 3"
    )


@pytest.mark.parametrize(
    ("word", "meant"), [("models", "model"), ("export", "model export"), ("serv", "serve"), ("xyz", "")]
)
def test_an_unknown_command_is_answered_with_the_nearest_one(word, meant):
    said = call(word)
    line = f"holdfast: no command {word!r}" + (f"; did you mean {meant!r}?" if meant else "")
    assert (said.code, said.out, said.err.splitlines()[0]) == (2, "", line)
