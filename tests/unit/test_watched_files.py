"""When a file of an operator is read, used, refused and looked at again."""

import contextlib
import os
import ssl

import pytest

from service.common.watched_files import WatchedFiles
from service.rpc import access, server_tls
from service.rpc.access import Access
from service.rpc.credentials import Credentials, CredentialsError, new_token, token_entry
from service.rpc.server_tls import ServerTls, TlsFilesError
from tests.support.certificates import Authority, replace
from tests.support.tokens import TokensFile

REFUSED = "the credentials before stay valid"


def data(files):
    """What changed, without permissions."""
    changed = files.read_changed()
    if changed is not None:
        files.judge()
        changed = [file.data for file in changed]
    return changed


def test_replaced_contents_are_noticed_and_trouble_is_told_once(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    files = WatchedFiles([one, two])
    assert data(files) == [b"1", b"2"]
    assert data(files) is None
    one.write_bytes(b"1")
    assert data(files) is None, "the same again is no change"
    two.write_bytes(b"3")
    assert data(files) == [b"1", b"3"]
    one.unlink()
    with pytest.raises(FileNotFoundError):
        files.read_changed()
    assert data(files) is None
    one.write_bytes(b"1")
    assert data(files) is None, "what is in use has come back"
    one.write_bytes(b"4")
    assert data(files) == [b"4", b"3"]


def test_other_permissions_are_a_change_and_what_was_not_judged_comes_again(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"1")
    files = WatchedFiles([path])
    assert files.read_changed() == files.read_changed() != None  # noqa: E711 -- nobody has judged it
    files.judge()
    assert files.read_changed() is None
    path.chmod(0o600)
    assert files.read_changed() is not None


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_regular_file_is_refused_at_once_and_holds_nothing(tmp_path, make):
    make(tmp_path / "file")
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
            WatchedFiles([tmp_path / "file"]).read_changed()
    assert os.listdir("/proc/self/fd") == before


class Deployment:
    """A tokens file and what a server makes of it at each look."""

    def __init__(self, folder, caplog):
        self.path = folder / "tokens.toml"
        self._caplog = caplog
        self._entries = [token_entry(new_token(), "acme", ["step"])]
        self.write(self.path)
        self.access = Access(self.path, asks_certificates=False)

    def write(self, path):
        path.write_text("\n".join(self._entries))

    def add(self):
        token = new_token()
        self._entries.append(token_entry(token, "acme", ["step"]))
        self.write(self.path)
        return token

    async def look(self, times=2):
        """Looks at the file; returns what was said of it."""
        self._caplog.clear()
        for _ in range(times):
            await self.access.refresh()
        return [record.getMessage() for record in self._caplog.records if record.levelname == "ERROR"]

    def lets_in(self, token):
        return self.access._credentials.of_token(token) is not None


@pytest.fixture
def deployment(tmp_path, caplog):
    return Deployment(tmp_path, caplog)


async def test_a_file_refused_for_its_mode_is_used_after_the_chmod_it_asks_for(deployment):
    deployment.path.chmod(0o646)
    token = deployment.add()
    [said] = await deployment.look()
    assert "chmod o-w" in said
    assert not deployment.lets_in(token)
    deployment.path.chmod(0o664)
    assert await deployment.look() == []
    assert deployment.lets_in(token), "a group may be one of administrators"


async def test_a_file_refused_for_what_it_says_is_told_once_and_judged_once(deployment, monkeypatch):
    judged = []
    monkeypatch.setattr(access, "Credentials", lambda text: judged.append(text) or Credentials(text))
    deployment.path.write_text("[[token]]\nsha256 = 7\n")
    assert len(await deployment.look(5)) == 1
    assert len(judged) == 1


@pytest.mark.parametrize("error", [MemoryError(), OSError(24, "Too many open files")])
async def test_a_file_that_could_not_be_looked_at_for_a_moment_is_used_after_it(
    deployment, monkeypatch, error
):
    def fail(_):
        raise error

    token = deployment.add()
    monkeypatch.setattr(access, "Credentials", fail)
    with contextlib.suppress(MemoryError):
        await deployment.look()
    assert not deployment.lets_in(token)
    monkeypatch.undo()
    assert await deployment.look() == []
    assert deployment.lets_in(token)


@pytest.mark.parametrize("make", [lambda _: None, os.mkfifo, os.mkdir, lambda path: path.symlink_to("no")])
async def test_whatever_stands_in_its_place_meanwhile_the_file_is_used_when_it_is_back(deployment, make):
    aside = deployment.path.with_name("aside")
    deployment.path.rename(aside)
    make(deployment.path)
    [said] = await deployment.look()
    assert REFUSED in said
    token = new_token()
    deployment._entries.append(token_entry(token, "acme", ["step"]))
    deployment.write(aside)
    if deployment.path.is_dir():
        deployment.path.rmdir()
    aside.rename(deployment.path)
    assert await deployment.look() == []
    assert deployment.lets_in(token)


async def test_a_link_that_is_switched_as_kubernetes_does_is_followed(tmp_path, caplog):
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        tokens = TokensFile(tmp_path / version / "tokens.toml")
        token = tokens.add("acme", "step")
        tokens.write()
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "tokens.toml").symlink_to("..data/tokens.toml")
    access = Access(tmp_path / "tokens.toml", asks_certificates=False)
    (tmp_path / "..new").symlink_to("v2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    await access.refresh()
    assert access._credentials.of_token(token).tenant == "acme"


async def test_other_words_for_the_same_grants_end_no_call(deployment, caplog):
    caplog.set_level("INFO")
    token = deployment.add()
    await deployment.look()
    caller = deployment.access._credentials.of_token(token)
    deployment._entries.reverse()
    with deployment.access.holding(caller):
        deployment.write(deployment.path)
        assert await deployment.look() == []
    assert "calls ended: 0" in caplog.text


def test_tls_files_that_could_not_be_checked_for_a_moment_are_used_after_it(tmp_path, monkeypatch):
    authority = Authority(tmp_path)
    authority.server()
    tls = ServerTls(tmp_path / "tls.crt", tmp_path / "tls.key", None)
    before = tls._latest
    certificate, key = authority.issue("localhost")
    replace(tmp_path / "tls.key", key)
    replace(tmp_path / "tls.crt", certificate)

    def fail(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(server_tls.os, "memfd_create", fail)
    with pytest.raises(TlsFilesError, match="cannot be checked now"):
        tls._read_changed()
    tls.refresh()
    assert tls._latest is before
    monkeypatch.undo()
    tls.refresh()
    assert tls._latest is not before


def test_tls_files_that_do_not_belong_together_are_checked_once(tmp_path, monkeypatch):
    authority = Authority(tmp_path)
    authority.server()
    tls = ServerTls(tmp_path / "tls.crt", tmp_path / "tls.key", None)
    replace(tmp_path / "tls.crt", authority.issue("localhost")[0])
    checks = []

    def check(*files):
        checks.append(files)
        raise ssl.SSLError("they do not")

    monkeypatch.setattr(server_tls, "_check", check)
    for _ in range(3):
        tls.refresh()
    assert len(checks) == 1


def test_a_file_that_cannot_be_read_at_the_start_is_named(tmp_path):
    os.mkfifo(tmp_path / "tokens.toml")
    with pytest.raises(CredentialsError, match="not a regular file"):
        Access(tmp_path / "tokens.toml", asks_certificates=False)
