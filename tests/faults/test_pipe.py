"""`holdfast pipe` is killed, and its server and stores are: its output is that of an uninterrupted run."""

import contextlib
import json
import random
import signal
import threading

import pytest

from tests.faults.conftest import MODEL
from tests.support.pipe_process import (
    PipeProcess,
    check_records,
    make_events,
    read_csv,
    read_jsonl,
)
from tests.support.server import ServerProcess
from tests.support.store_process import StoreProcess
from tests.support.waiting import wait_for

pytestmark = pytest.mark.faults

ASKED = ("--model", MODEL, "--session-field", "user", "--token-field", "text:line", "--token-log-prob")


class Deployment:
    """A store, a server on it that is started again at its address, and a store of streams."""

    def __init__(self, folder, stack):
        self._folder = folder
        self.store = stack.enter_context(StoreProcess(folder / "store"))
        self.streams = stack.enter_context(StoreProcess(folder / "streams"))
        self._address = "127.0.0.1:0"
        self._start()
        self._address = self.server.address
        stack.callback(lambda: self.server.stop())

    def _start(self):
        flags = ("--store", self.store.url, "--store-timeout-s", "1")
        self.server = ServerProcess(self._folder / "server", *flags, grpc_address=self._address)

    def kill(self, what):
        """Kills a part and starts it again."""
        if what == "server":
            self.server.kill()
            self._start()
        else:
            part = getattr(self, what)
            part.kill()
            part.start()

    def stream(self, name):
        return f"redis-stream://127.0.0.1:{self.streams.port}/{name}"

    def add(self, events):
        """Adds events to a stream; returns their entries."""
        with self.streams.client.pipeline(transaction=False) as pipeline:
            for session, line in events:
                pipeline.xadd("events", {"user": session, "line": line})
            return [entry.decode() for entry in pipeline.execute()]

    def records(self):
        """Returns what is written to a stream."""
        found = self.streams.client.xrange("records")
        return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in found]


@pytest.fixture
def deployment(tmp_path):
    with contextlib.ExitStack() as stack:
        yield Deployment(tmp_path, stack)


def seeded():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


def disturb(rng, deeds, count, written):
    """Does each deed in turn whenever some more of `count` records are written, in a thread."""
    points = sorted(rng.sample(range(1, count), len(deeds)))
    rng.shuffle(deeds)

    def run():
        for point, deed in zip(points, deeds, strict=True):
            wait_for(lambda point=point: written() >= point, 120, f"no record {point}")
            deed()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_five_thousand_events_survive_kills_of_everything(deployment, tmp_path):
    rng = seeded()
    events = make_events(rng, 5000, 50)
    entries = deployment.add(events)
    words = ("--target", deployment.server.address, "--from", deployment.stream("events"))
    words += ("--to", deployment.stream("records"), "--until-empty", *ASKED)
    pipe = PipeProcess(tmp_path / "log", *words)
    deeds = [lambda: pipe.send(signal.SIGKILL)] * 6
    deeds += [lambda what=what: deployment.kill(what) for what in ("server", "store", "streams")] * 2
    thread = disturb(rng, deeds, len(events), lambda: deployment.streams.client.xlen("records"))
    code = pipe.wait()
    thread.join()
    assert code == 0, (tmp_path / "log").read_text()
    check_records(deployment.records(), events, entries, MODEL)
    assert deployment.streams.client.xpending("events", "holdfast")["pending"] == 0


@pytest.mark.parametrize("layouts", [("csv", "jsonl"), ("jsonl", "csv")], ids="-to-".join)
def test_files_survive_kills(deployment, tmp_path, layouts):
    rng = seeded()
    events = make_events(rng, 1500, 20)
    source, sink = tmp_path / f"events.{layouts[0]}", tmp_path / f"records.{layouts[1]}"
    entries, size = [], 0
    with source.open("wb") as file:
        file.write(b"user,line\n" if layouts[0] == "csv" else b"")
        for session, line in events:
            entries.append(str(file.tell()))
            quoted = line.replace('"', '""')
            record = {"user": session, "line": line}
            text = f'{session},"{quoted}"' if layouts[0] == "csv" else json.dumps(record)
            size += file.write(text.encode() + b"\n")
    words = (
        "--target",
        deployment.server.address,
        "--from",
        f"file:{source}",
        "--to",
        f"file:{sink}",
        *ASKED,
    )
    pipe = PipeProcess(tmp_path / "log", *words)
    deeds = [lambda: pipe.send(signal.SIGKILL)] * 5 + [lambda: deployment.kill("server")] * 2
    thread = disturb(
        rng, deeds, len(events), lambda: sink.read_bytes().count(b"\n") if sink.exists() else 0
    )
    code = pipe.wait()
    thread.join()
    assert code == 0, (tmp_path / "log").read_text()
    read = read_csv if layouts[1] == "csv" else read_jsonl
    check_records(read(sink), events, entries, MODEL)


def test_two_pipes_of_one_group_take_over_from_each_other(deployment, tmp_path):
    """They are killed, and held up for longer than the lease lasts, which it does not survive."""
    rng = seeded()
    events = make_events(rng, 2000, 30)
    entries = deployment.add(events)
    words = ("--target", deployment.server.address, "--from", deployment.stream("events"))
    words += ("--to", deployment.stream("records"), "--until-empty", *ASKED)
    pipes = [PipeProcess(tmp_path / "log", *words, "--consumer", name) for name in "ab"]

    def hold_up(pipe, other):
        pipe.send(signal.SIGSTOP)
        deployment.streams.client.delete("{events}:holdfast:reader")  # as when its time is over
        before = deployment.streams.client.xlen("records")
        with contextlib.suppress(AssertionError):  # the other one may be killed meanwhile, or stand by
            wait_for(lambda: deployment.streams.client.xlen("records") > before + 50, 4)
        pipe.send(signal.SIGCONT)

    deeds = [lambda: hold_up(*pipes), lambda: hold_up(*reversed(pipes))] * 2
    deeds += [lambda: pipes[0].send(signal.SIGKILL), lambda: pipes[1].send(signal.SIGKILL)]
    thread = disturb(rng, deeds, len(events), lambda: deployment.streams.client.xlen("records"))
    codes = [pipe.wait() for pipe in pipes]
    thread.join()
    assert codes == [0, 0], (tmp_path / "log").read_text()
    check_records(deployment.records(), events, entries, MODEL)
    assert deployment.streams.client.xpending("events", "holdfast")["pending"] == 0


def test_a_pipe_drains_on_sigterm_and_goes_on_when_it_is_started_again(deployment, tmp_path):
    rng = seeded()
    events = make_events(rng, 1000, 30)
    entries = deployment.add(events)
    words = ("--target", deployment.server.address, "--from", deployment.stream("events"))
    words += ("--to", deployment.stream("records"), *ASKED)
    pipe = PipeProcess(tmp_path / "log", *words)
    wait_for(lambda: deployment.streams.client.xlen("records") >= 100, 60)
    pipe.send(signal.SIGTERM)
    assert pipe.wait() == 0, (tmp_path / "log").read_text()
    written = len(deployment.records())
    assert written < len(events)
    assert deployment.streams.client.xinfo_groups("events")[0]["lag"] is not None
    assert not deployment.streams.client.exists("{events}:holdfast:reader")
    assert PipeProcess(tmp_path / "log", *words, "--until-empty").wait() == 0
    assert f"{len(events) - written:,} events applied, 0 done before" in (tmp_path / "log").read_text()
    check_records(deployment.records(), events, entries, MODEL)
