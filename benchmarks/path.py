"""What one hot token touches in a server: files, functions, and the ways between files.

    python -m benchmarks.path

The server runs under Python's profiler while a token is on its way; what all of several tokens have called
counts, so that heartbeats do not. Beside it stands how long the files of the service are, and what of it
lies in no room.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import grpc

from holdfast.demo.processes import ServerProcess
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub

SERVICE = Path(__file__).parent.parent / "service"
MODEL = pb.ModelRef(name="python-source")
TOKENS, WARM_UP = 9, 3
POLL_S = 0.002


class Calls(NamedTuple):
    """What a token has called."""

    functions: Counter[str]
    crossings: Counter[str]


def profile(folder: Path) -> None:
    """Counts calls between the service's functions, in this process, while `folder/on` is there."""
    functions: Counter[str] = Counter()
    crossings: Counter[str] = Counter()
    is_on = False

    def seen(frame: FrameType, event: str, _: Any) -> None:
        if not is_on or event != "call":
            return
        name = _name(frame)
        if name is None:
            return
        functions[f"{name}:{frame.f_code.co_qualname}"] += 1
        caller = None if frame.f_back is None else _name(frame.f_back)
        if caller not in (None, name):
            crossings[f"{caller} -> {name}"] += 1

    def watch() -> None:
        nonlocal is_on
        while True:
            wanted = (folder / "on").exists()
            if is_on and not wanted:
                is_on = False
                _put(folder / "counted", json.dumps([functions, crossings]))
                functions.clear()
                crossings.clear()
            elif wanted and not is_on:
                is_on = True
                _put(folder / "begun", "")
            time.sleep(POLL_S)

    threading.setprofile(seen)
    sys.setprofile(seen)
    threading.Thread(target=watch, daemon=True).start()


def _name(frame: FrameType) -> str | None:
    path = frame.f_code.co_filename
    return path.removeprefix(f"{SERVICE}/") if path.startswith(f"{SERVICE}/") else None


def _put(path: Path, text: str) -> None:
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").replace(path)


def _take(path: Path) -> str:
    while not path.exists():
        time.sleep(POLL_S)
    text = path.read_text()
    path.unlink()
    return text


def _counted(folder: Path, send: Callable[[], None]) -> Calls:
    (folder / "on").touch()
    _take(folder / "begun")
    send()
    time.sleep(10 * POLL_S)  # what a server does behind a reply belongs to the token
    (folder / "on").unlink()
    functions, crossings = json.loads(_take(folder / "counted"))
    return Calls(Counter(functions), Counter(crossings))


def _path_of(folder: Path, send: Callable[[], None]) -> Calls:
    """Returns what every one of several tokens has called."""
    for _ in range(WARM_UP):
        send()
    every = [_counted(folder, send) for _ in range(TOKENS - WARM_UP)]
    functions, crossings = every[0]
    for more in every[1:]:
        functions &= more.functions
        crossings &= more.crossings
    return Calls(functions, crossings)


def _unary(stub: StreamingInferenceServiceStub) -> Callable[[], None]:
    stub.OpenSession(pb.OpenSessionRequest(session_id="unary", model=MODEL))

    def send() -> None:
        chunk = pb.Chunk(session_id="unary", model=MODEL, tokens=pb.Tokens(text=b"a"))
        stub.Step(pb.StepRequest(chunk=chunk))

    return send


def _stream(stub: StreamingInferenceServiceStub) -> Callable[[], None]:
    stub.OpenSession(pb.OpenSessionRequest(session_id="stream", model=MODEL))
    waiting = threading.Semaphore(0)

    def requests() -> Iterator[pb.StreamStepsRequest]:
        for position in range(TOKENS):
            waiting.acquire()
            chunk = pb.Chunk(
                session_id="stream", model=MODEL, tokens=pb.Tokens(text=b"a"), position=position
            )
            chunk.acknowledged_position = position
            yield pb.StreamStepsRequest(chunk=chunk)

    replies = stub.StreamSteps(requests())

    def send() -> None:
        waiting.release()
        next(replies)

    return send


def main() -> None:
    """Prints the figures, with `--all` the functions too."""
    parser = argparse.ArgumentParser(description="Counts what one hot token touches in a server.")
    parser.add_argument("--all", action="store_true", help="names files and functions")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        ServerProcess(Path(name, "data"), program=("-m", "benchmarks.path", "--profiled", name)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = StreamingInferenceServiceStub(channel)
        for title, begin in (("unary", _unary), ("on a stream", _stream)):
            functions, crossings = _path_of(Path(name), begin(stub))
            files = sorted({function.partition(":")[0] for function in functions})
            print(
                f"a token {title}: {len(files)} files, {len(functions)} functions, "
                f"{functions.total()} calls, {crossings.total()} of them to another file"
            )
            for file in files if options.all else ():
                names = (key[len(file) + 1 :] for key in functions if key.startswith(f"{file}:"))
                print("   ", file, *names)
    lengths = sorted((len(path.read_text().splitlines()), path) for path in SERVICE.rglob("*.py"))
    longest, path = lengths[-1]
    loose = [path.name for path in SERVICE.glob("*.py") if path.name != "__init__.py"]
    print(f"longest file of the service: {path.relative_to(SERVICE)}, {longest} lines")
    print(f"files in no room: {len(loose)} ({', '.join(sorted(loose))})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--profiled"]:
        profile(Path(sys.argv[2]))
        sys.argv = ["holdfast", "serve", *sys.argv[3:]]
        from service.command import main as serve

        serve()
    else:
        main()
