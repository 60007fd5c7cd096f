"""Bad input to `holdfast serve`: one line that names setting, source and remedy, and an exit code."""

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from holdfast.cli import serve as command
from tests.faults.test_store import store_of
from tests.support.certificates import Authority
from tests.support.command_line import Said
from tests.support.server import ServerProcess

pytestmark = pytest.mark.e2e

CONFIGURATION, OUTSIDE = 2, 1
ADDRESSES = {"--grpc-address": "127.0.0.1:0", "--http-address": "127.0.0.1:0"}
WITHOUT_ROOT = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""In front of a command, takes from root what other users do not have either: opening any file."""


@dataclass
class Case:
    """A start that is refused.

    Attributes:
        setting: Flag that the line starts with.
        source: Where the line says that it is from.
        remedy: What the line says, among other things.
        code: Exit code.
        flags: Of the command, by name.
        variables: Of its environment.
        file: Content of its settings file; None: it has none.
        runs: Which numbers of workers it is tried with.
        prefix: In front of the command.
    """

    setting: str
    source: str
    remedy: str
    code: int = OUTSIDE
    flags: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    file: str | None = None
    runs: tuple[int, ...] = (1,)
    prefix: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Names in the table below -> what they stand for here."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "empty").mkdir()
    (folder / "theirs").mkdir()
    if os.geteuid() == 0:
        os.chown(folder / "theirs", 65534, 65534)
    (folder / "sealed").mkdir(mode=0o500)
    (folder / "secret.pem").touch(mode=0o000)
    (folder / "no.pem").write_text("no PEM")
    authority = Authority(folder)
    cert, key = authority.server()[1::2]
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        ServerProcess(folder / "data") as server,
        store_of(folder / "data") as admin,
    ):
        admin.acl_setuser("asked", enabled=True, passwords=["+right"], keys=["*"], categories=["+@all"])
        yield {
            "dir": str(folder),
            "taken": f"127.0.0.1:{taken.getsockname()[1]}",
            "served": server.address,
            "store": f"unix://asked:wr0ng-secret@{folder}/data/store.sock",
            "cert": cert,
            "key": key,
        }


CASES = {
    "a flag that does not exist": Case(
        "--worker", "", "nearest is --workers", CONFIGURATION, {"--worker": "2"}
    ),
    "a variable that does not exist": Case(
        "the variable HOLDFAST_MAX_BATCHES",
        "",
        "nearest is HOLDFAST_MAX_BATCH;",
        CONFIGURATION,
        variables={"HOLDFAST_MAX_BATCHES": "2"},
    ),
    "a key that does not exist": Case(
        "--config {file}",
        "set by HOLDFAST_CONFIG",
        "key 'workres' is not known, the nearest is workers",
        CONFIGURATION,
        file="workres = 2",
    ),
    "a settings file that is not there": Case(
        "--config {dir}/none.toml",
        "set by flag",
        "no such file",
        CONFIGURATION,
        {"--config": "{dir}/none.toml"},
    ),
    "a settings file that is no TOML": Case(
        "--config {file}", "set by HOLDFAST_CONFIG", "it is not TOML", CONFIGURATION, file="workers: 2"
    ),
    "out of range in the file": Case(
        "--max-batch 0", "set in {file}", "from 1 to 1024", CONFIGURATION, file="max_batch = 0"
    ),
    "out of range in a variable": Case(
        "--workers 999",
        "set by HOLDFAST_WORKERS",
        "from 1 to 256",
        CONFIGURATION,
        variables={"HOLDFAST_WORKERS": "999"},
    ),
    "out of range in a flag": Case(
        "--tenant-share 2", "set by flag", "from 0.01 to 1", CONFIGURATION, {"--tenant-share": "2"}
    ),
    "a word for a number": Case(
        "--max-rows many", "set by flag", "an integer", CONFIGURATION, {"--max-rows": "many"}
    ),
    "a level that does not exist": Case(
        "--ack-level disk",
        "set in {file}",
        "one of memory, fsynced",
        CONFIGURATION,
        file="ack_level = 'disk'",
    ),
    "a level that needs replicas": Case(
        "--ack-level fsynced+replicated",
        "set by HOLDFAST_ACK_LEVEL",
        "level replicated needs --replicas-required N, N >= 1",
        CONFIGURATION,
        variables={"HOLDFAST_ACK_LEVEL": "fsynced+replicated"},
    ),
    "a store of another kind": Case(
        "--store mongodb://db",
        "set by HOLDFAST_STORE",
        "not one of redis://",
        CONFIGURATION,
        variables={"HOLDFAST_STORE": "mongodb://db"},
    ),
    "a certificate without a key": Case(
        "--tls-cert", "set by flag", "set both or neither", CONFIGURATION, {"--tls-cert": "{cert}"}
    ),
    "one address twice": Case(
        "--http-address 127.0.0.1:7",
        "set by flag",
        "another port",
        CONFIGURATION,
        {"--grpc-address": "127.0.0.1:7", "--http-address": "127.0.0.1:7"},
    ),
    "a key that may not be read": Case(
        "--tls-key {dir}/secret.pem",
        "set in {file}",
        "permission denied; name a PEM file",
        OUTSIDE,
        {"--tls-cert": "{cert}"},
        file="tls_key = '{dir}/secret.pem'",
        prefix=WITHOUT_ROOT,
    ),
    "a certificate that is none": Case(
        "--tls-cert {dir}/no.pem",
        "set by flag",
        "not PEM, or do not belong together",
        OUTSIDE,
        {"--tls-cert": "{dir}/no.pem", "--tls-key": "{key}"},
    ),
    "a password file that is not there": Case(
        "--store-password-file {dir}/none",
        "set by flag",
        "name a file",
        OUTSIDE,
        {"--store-password-file": "{dir}/none", "--store": "redis://127.0.0.1:1"},
    ),
    "gRPC's port in use": Case(
        "--grpc-address {taken}",
        "set by flag",
        "in use by another process",
        OUTSIDE,
        {"--grpc-address": "{taken}"},
        runs=(1, 2),
    ),
    "gRPC's port in use by a server": Case(
        "--grpc-address {served}",
        "set in {file}",
        "choose another port",
        OUTSIDE,
        {"--grpc-address": ""},
        file="grpc_address = '{served}'",
        runs=(1, 2),
    ),
    "the port of HTTP in use": Case(
        "--http-address {taken}",
        "set by HOLDFAST_HTTP_ADDRESS",
        "0 takes a free one",
        OUTSIDE,
        {"--http-address": ""},
        {"HOLDFAST_HTTP_ADDRESS": "{taken}"},
        runs=(1, 2),
    ),
    "an IPv6 address without brackets": Case(
        "--http-address ::1:8080",
        "set by flag",
        "in brackets",
        CONFIGURATION,
        {"--http-address": "::1:8080"},
    ),
    "HTTP on a socket in a folder": Case(
        "--http-address unix:/h.sock",
        "set by flag",
        "only gRPC listens",
        CONFIGURATION,
        {"--http-address": "unix:/h.sock"},
    ),
    "a socket's path that is too long": Case(
        "--grpc-address unix:/",
        "set by flag",
        "107 bytes at most",
        CONFIGURATION,
        {"--grpc-address": "unix:/" + "x" * 107},
    ),
    "a socket for several workers": Case(
        "--grpc-address unix:/h.sock",
        "set by flag",
        "several processes cannot",
        CONFIGURATION,
        {"--grpc-address": "unix:/h.sock", "--workers": "2"},
    ),
    "a socket in a folder that is not there": Case(
        "--grpc-address unix:{dir}/none/h.sock",
        "set by flag",
        "make it",
        OUTSIDE,
        {"--grpc-address": "unix:{dir}/none/h.sock"},
    ),
    "a file where the socket should be": Case(
        "--grpc-address unix:{dir}/no.pem",
        "set by flag",
        "another file is there",
        OUTSIDE,
        {"--grpc-address": "unix:{dir}/no.pem"},
    ),
    "a socket that somebody listens on": Case(
        "--grpc-address unix:{dir}/data/store.sock",
        "set by flag",
        "a server listens there",
        OUTSIDE,
        {"--grpc-address": "unix:{dir}/data/store.sock"},
    ),
    "too few descriptors": Case(
        "a process may have 200 descriptors",
        "",
        "a server needs 384 at least",
        OUTSIDE,
        prefix=("prlimit", "--nofile=200:200"),
        runs=(1, 2),
    ),
    "an address of another machine": Case(
        "--grpc-address 192.0.2.1:0",
        "set by flag",
        "no such address",
        OUTSIDE,
        {"--grpc-address": "192.0.2.1:0", "--allow-plaintext": ""},
    ),
    "a data folder that may not be written": Case(
        "--data-dir {dir}/sealed",
        "set by HOLDFAST_DATA_DIR",
        "that this user may write",
        OUTSIDE,
        {"--data-dir": ""},
        {"HOLDFAST_DATA_DIR": "{dir}/sealed"},
        prefix=WITHOUT_ROOT,
    ),
    "a data folder of another user": Case(
        "--data-dir {dir}/theirs",
        "set by flag",
        "name a folder of yours",
        OUTSIDE,
        {"--data-dir": "{dir}/theirs"},
    ),
    "a data folder that is a file": Case(
        "--data-dir {dir}/no.pem", "set by flag", "cannot be made", OUTSIDE, {"--data-dir": "{dir}/no.pem"}
    ),
    "no models": Case(
        "--models {dir}/empty",
        "set by flag",
        "no <name>/<version>/model.onnx in",
        OUTSIDE,
        {"--models": "{dir}/empty"},
        runs=(1, 2),
    ),
    "no folder of models": Case(
        "--models {dir}/none",
        "set by HOLDFAST_MODELS",
        "name one that has",
        OUTSIDE,
        variables={"HOLDFAST_MODELS": "{dir}/none"},
    ),
    "a store that refuses the password": Case(
        "--store",
        "set by HOLDFAST_STORE",
        "password is wrong: see --store",
        OUTSIDE,
        variables={"HOLDFAST_STORE": "{store}"},
        runs=(1, 2),
    ),
    "a store that is not there": Case(
        "--store",
        "set by flag",
        "once its store answers",
        OUTSIDE,
        {"--store": "redis://127.0.0.1:1"},
        runs=(2,),
    ),
}


def started(places, path, case, workers):
    """Returns a case's arguments of `holdfast serve`, and the variables of its environment."""

    def filled(text):
        return text.format_map(places | {"file": str(path)})

    flags = ADDRESSES | {"--data-dir": f"{path.parent}/data", "--workers": str(workers)} | case.flags
    variables = dict(case.variables)
    if "HOLDFAST_WORKERS" in variables:
        del flags["--workers"]
    if case.file is not None:
        path.write_text(filled(case.file))
        variables["HOLDFAST_CONFIG"] = str(path)
    arguments = []
    for flag, value in flags.items():
        if value or flag == "--allow-plaintext":
            arguments += [flag, filled(value)][: 2 if value else 1]
    return arguments, {name: filled(value) for name, value in variables.items()}, filled


def check_line(case, filled, code, out, err):
    lines = [line for line in err.splitlines() if not line.startswith("{")]
    assert (len(lines), out) == (1, ""), err
    assert lines[0].startswith(f"holdfast serve: {filled(case.setting)}"), lines
    assert lines[0].endswith(f"[{filled(case.source)}]" if case.source else ""), lines
    assert case.remedy in lines[0], lines
    assert code == case.code
    assert "wr0ng-secret" not in err


TOLD_LATER = {
    "a store of another kind",
    "a certificate without a key",
    "one address twice",
    "a socket for several workers",
}
"""Wrong settings that are noticed by the part that they are for."""
TOLD_FIRST = [name for name, case in CASES.items() if case.code == CONFIGURATION and name not in TOLD_LATER]


@pytest.mark.parametrize("case", [CASES[name] for name in TOLD_FIRST], ids=TOLD_FIRST)
def test_wrong_settings_are_refused_in_one_line_before_anything_starts(
    tmp_path, places, case, monkeypatch, capsys
):
    arguments, variables, filled = started(places, tmp_path / "settings.toml", case, 1)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(command, "serve", lambda settings: pytest.fail(f"it starts with {settings}"))
    code = command.main(arguments)
    check_line(case, filled, code, *capsys.readouterr())


@pytest.mark.parametrize(
    ("case", "workers"),
    [
        pytest.param(case, runs, id=f"{name}, {runs}")
        for name, case in CASES.items()
        for runs in case.runs
        if name not in TOLD_FIRST[1:]  # one of them is enough to see that the process ends so
    ],
)
def test_a_start_is_refused_in_one_line(tmp_path, places, case, workers, starts):
    if case.setting.endswith("theirs") and os.geteuid() != 0:
        pytest.skip("only root can make a folder of another user")
    arguments, variables, filled = started(places, tmp_path / "settings.toml", case, workers)
    if case.prefix and os.geteuid() == 0:
        line = [*case.prefix, Path(sys.executable).parent / "holdfast", "serve", *arguments]
        result = subprocess.run(
            line, capture_output=True, text=True, timeout=120, env=os.environ | variables
        )
        said = Said(result.returncode, result.stdout, result.stderr)
    else:
        said = starts.call("serve", *arguments, **variables)
    check_line(case, filled, *said)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to be kept from reading everything")
def test_the_tests_above_can_take_from_root_what_others_do_not_have():
    assert shutil.which("setpriv"), "of util-linux"
