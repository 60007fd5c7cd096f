"""A server with secrets says none of them: not in its log, its arguments, its pages or its errors."""

from pathlib import Path

import pytest

import holdfast
from holdfast.demo.processes import ServerProcess
from holdfast.errors import Unauthenticated
from tests.faults.test_store import store_of
from tests.faults.test_workers import workers_of
from tests.support.certificates import Authority, replace
from tests.support.server import get
from tests.support.tokens import TokensFile
from tests.support.waiting import wait_for

pytestmark = pytest.mark.e2e

PASSWORD = "st0re-s3cret"
MODEL = "python-source"


@pytest.fixture
def store_url(tmp_path):
    """The URL of a store that asks for a password."""
    folder = tmp_path / "store"
    with ServerProcess(folder), store_of(folder) as admin:  # a server has a store in its folder
        allowed = {"enabled": True, "passwords": [f"+{PASSWORD}"], "keys": ["*"], "categories": ["+@all"]}
        admin.acl_setuser("holdfast", **allowed)
        yield f"unix://holdfast:{PASSWORD}@{folder}/store.sock"


@pytest.mark.parametrize("workers", [1, 2])
def test_no_secret_is_said(tmp_path, monkeypatch, store_url, workers):
    authority = Authority(tmp_path)
    tokens = TokensFile(tmp_path / "tokens.toml")
    token, wrong = tokens.add("acme", "step"), "holdfast_wr0ng-secret"
    flags = [*tokens.write(), *authority.server(), "--workers", str(workers)]
    monkeypatch.setenv("HOLDFAST_STORE", store_url)
    tls = holdfast.Tls(ca=authority.path)
    with ServerProcess(tmp_path / "data", *flags) as server:
        with holdfast.Client(server.address, token=token, tls=tls) as client:
            client.open_session("private-session", model=MODEL).step("private text")
        with (
            holdfast.Client(server.address, token=wrong, tls=tls) as client,
            pytest.raises(Unauthenticated) as refused,
        ):
            client.list_models()
        replace(tokens.path, f'[[token]]\ntoken = "{token}"\n'.encode())
        replace(tmp_path / "tls.key", (tmp_path / "tls.key").read_bytes()[:-40])
        said = server.log_path.read_text
        wait_for(lambda: said().count("--tls-cert") and said().count("--tokens-file") == workers, 20)
        wait_for(lambda: said().count("go on with the files before") == workers, 20)
        places = {
            "log": said(),
            "error": str(refused.value),
            **{page: get(server, page)[1] for page in ("/metrics", "/livez", "/readyz")},
        }
        processes = [server.pid, *workers_of(server)]
        assert len(processes) == (1 if workers == 1 else 1 + workers)
        for pid in processes:
            places[f"arguments of {pid}"] = Path(f"/proc/{pid}/cmdline").read_text()
    places["log of the end"] = said()
    key = (tmp_path / "tls.key").read_text().splitlines()[1]
    for place, text in places.items():
        for secret in (PASSWORD, token, wrong, key, "private"):
            assert secret not in text, f"{secret} stands in {place}"
    assert "store=unix://holdfast:***@" in places["log"], "the settings are printed"


@pytest.mark.parametrize(
    "url", [f"redis://:{PASSWORD}@127.0.0.1:1", f"redis://h:{PASSWORD}", f":{PASSWORD}@h"]
)
def test_a_store_that_cannot_be_reached_is_named_without_its_password(tmp_path, url, starts):
    flags = ("--data-dir", tmp_path, "--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0")
    result = starts.call("serve", *flags, HOLDFAST_STORE=url)
    assert result.code == (1 if url.endswith("127.0.0.1:1") else 2)
    assert PASSWORD not in result.out + result.err
    assert result.err.splitlines()[-1].startswith("holdfast serve: ")
