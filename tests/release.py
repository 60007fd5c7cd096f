"""Builds what is released and uses it as a stranger would: `python -m tests.release`.

The wheel from the sdist must be the wheel from the tree. On every Python that is found, from 3.11 on, the
wheel is installed into an empty environment, first alone, then with the extras of the server: the client
imports, and loads nothing of the server's; a server starts, answers a step, and drains. What imports take
is printed; it is no condition, since it depends on the machine.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
OLDEST = (3, 11)

SERVER_SIDE = (
    *("hiredis", "onnx", "onnxruntime", "prometheus_client", "pydantic", "redis", "rich"),
    *("service", "torch", "uvloop"),
)
"""What a client must not load, nor need to have."""

CLIENT = f"""
import sys, time
before = time.process_time()
import holdfast
holdfast.Client
took = time.process_time() - before
loaded = {{name.partition(".")[0] for name in sys.modules}} & set({SERVER_SIDE!r})
assert not loaded, f"the client loads {{loaded}}"
assert holdfast.__version__ == sys.argv[1], holdfast.__version__
print(f"{{took:.2f}} s of CPU")
"""

SERVER = """
import sys, time
before = time.process_time()
import holdfast.cli.serve, service.app
took = time.process_time() - before
assert not {"torch", "onnx"} & set(sys.modules), "the server loads what only training needs"
print(f"{took:.2f} s of CPU")
"""

STEP = """
import signal, subprocess, sys
import holdfast
from pathlib import Path
command = [str(Path(sys.executable).parent / "holdfast"), "serve", "--data-dir", sys.argv[1]]
command += ["--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
    line = server.stdout.readline()
    assert line.startswith("ready grpc="), line
    with holdfast.Client(line.split()[1].removeprefix("grpc=")) as client:
        assert client.open_session("s", model="python-source").step("import num").position == 10
    server.send_signal(signal.SIGTERM)
assert server.returncode == 0, server.returncode
"""


def main() -> None:
    """Builds, compares, installs and uses; raises at what does not hold."""
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="holdfast-release-") as name:
        folder = Path(name)
        wheel, version = build(folder)
        pythons = list(find_pythons())
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for line in pool.map(lambda found: check_on(*found, wheel, version, folder), pythons):
                print(line)
    found = ", ".join(label for label, _ in pythons)
    print(f"release: {wheel.name} on Python {found}; {time.monotonic() - started_s:.0f} s")


def build(folder: Path) -> tuple[Path, str]:
    """Builds sdist and wheel of the tree, and the wheel of the sdist; returns the latter and the version.

    Raises:
        AssertionError: The wheels differ, or lack something.
    """
    run(sys.executable, "-m", "hatchling", "build", "-d", folder / "tree", cwd=ROOT)
    [sdist] = (folder / "tree").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    [source] = (folder / "source").iterdir()
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "sdist", cwd=source)
    [of_tree], [of_sdist] = ((folder / name).glob("*.whl") for name in ("tree", "sdist"))
    names, others = contents(of_tree), contents(of_sdist)
    assert names == others, f"wheel of the tree and of the sdist differ: {sorted(names ^ others)}"
    files = {name for name, _ in names}
    for needed in ("holdfast/py.typed", "service/py.typed", "service/store/commit.lua"):
        assert needed in files, f"{needed} is not in the wheel"
    assert any(name.startswith("service/shipped_models/python-source/") for name in files), "no models"
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in files), "tests in the wheel"
    return of_sdist, of_sdist.name.split("-")[1]


def contents(wheel: Path) -> set[tuple[str, int]]:
    """Returns name and checksum of each file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {(entry.filename, entry.CRC) for entry in archive.infolist()}


def find_pythons() -> Iterator[tuple[str, Path]]:
    """Yields each Python from OLDEST on, once per version: its version and where it is."""
    seen = set()
    places = [Path(sys.executable)]
    places += [Path(found) for minor in range(11, 21) if (found := shutil.which(f"python3.{minor}"))]
    places += sorted((Path.home() / ".pyenv" / "versions").glob("3.*/bin/python3"))
    for place in places:
        asked = [place, "-c", "import sys, venv, ensurepip; print(*sys.version_info[:2])"]
        said = subprocess.run(asked, capture_output=True, text=True)
        if said.returncode:
            continue  # a shim without a version behind it, or a part of Python
        version = tuple(map(int, said.stdout.split()))
        if version >= OLDEST and version not in seen:
            seen.add(version)
            yield ".".join(map(str, version)), place


def check_on(label: str, python: Path, wheel: Path, version: str, folder: Path) -> str:
    """Installs the wheel alone, then with the server's extras, uses it each time, and says what it saw."""
    venv = folder / f"venv-{label}"
    run(python, "-m", "venv", "--without-pip", venv)
    inside, command = venv / "bin" / "python", venv / "bin" / "holdfast"
    install(inside, str(wheel))
    assert said(command, "--version") == f"holdfast {version}"
    refused = subprocess.run([command, "serve"], capture_output=True, text=True)
    assert refused.returncode == 2, refused
    assert "pip install 'holdfast[server,embedded]'" in refused.stderr, refused
    client = [said(inside, "-I", "-c", CLIENT, version) for _ in range(2)][1]  # compiled by the first
    install(inside, f"{wheel}[server,embedded]")
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", inside, "check")
    server = [said(inside, "-I", "-c", SERVER) for _ in range(2)][1]
    run(inside, "-I", "-c", STEP, venv / "data", environment={"HOLDFAST_LOG_LEVEL": "error"})
    return f"release: Python {label}: client imports in {client}, server in {server}; served a step"


def install(inside: Path, what: str) -> None:
    """Installs into the environment of an interpreter, by the pip of this one."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", "--python", inside]
    run(*pip, "install", "--no-compile", "--constraint", CONSTRAINTS, what)


def said(*command: str | Path) -> str:
    """Returns what a command prints."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd="/").stdout.strip()


def run(*command: str | Path, cwd: Path = Path("/"), environment: dict[str, str] | None = None) -> None:
    """Runs a command, quietly."""
    variables = os.environ | (environment or {})
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=cwd, env=variables)


if __name__ == "__main__":
    main()
