"""`holdfast pipe` as a process, started again whenever it is killed, and what it should write."""

import csv
import json
import os
import signal
import threading

import numpy as np

from tests.support.command_line import starts
from tests.support.oracle import held_out_text, run


class PipeProcess:
    """A pipe that is started until it comes to its end by itself.

    Args:
        log_path: What it says on standard error.
        words: Of the command, after `holdfast pipe`.
    """

    def __init__(self, log_path, *words):
        self._log_path = log_path
        self._words = words
        self._lock = threading.Lock()
        self._start()

    def wait(self):
        """Waits until a process of it ends by itself; returns its exit code."""
        while True:
            code = self._process.wait()
            if code != -signal.SIGKILL:
                return code
            with self._lock:
                self._start()

    def send(self, number):
        """Sends a signal to its process."""
        with self._lock:
            self._process.send_signal(number)

    def _start(self):
        with self._log_path.open("ab") as log, open(os.devnull, "wb") as out:
            self._process = starts().start("pipe", *self._words, out=out, err=log)


def make_events(rng, count, session_count):
    """Returns events of texts that no network has learned from: (session, text) by turns that are drawn."""
    text, at = held_out_text(), {}
    events = []
    for _ in range(count):
        session = f"s{rng.randrange(session_count)}"
        start = at.setdefault(session, rng.randrange(len(text) - 20_000))
        size = rng.randint(1, 6)
        at[session] = start + size
        events.append(
            (session, text[start : start + size].decode("ascii", "replace").replace("\ufffd", "?"))
        )
    return events


def check_records(records, events, entries, model):
    """Compares records with an uninterrupted run: order of each session, positions and values.

    Args:
        records: As written, with texts or numbers as values.
        events: (session, text).
        entries: Of the events, in their order.
        model: That ran.
    """
    by_session, expected = {}, {}
    for record in records:
        by_session.setdefault(record["session"], []).append(record)
    for (session, text), entry in zip(events, entries, strict=True):
        expected.setdefault(session, []).append((entry, text.encode()))
    assert len(records) == len(events)
    assert by_session.keys() == expected.keys()
    for session, chunks in expected.items():
        found = by_session[session]
        assert [record["entry"] for record in found] == [entry for entry, _ in chunks], session
        ends = np.cumsum([len(chunk) for _, chunk in chunks])
        assert [int(record["position"]) for record in found] == ends.tolist(), session
        log_probs = np.concatenate([_numbers(record["token_log_probs"]) for record in found])
        whole = run(model, b"".join(chunk for _, chunk in chunks))[1]
        np.testing.assert_allclose(log_probs, whole, atol=1e-5, rtol=0)


def _numbers(value):
    return json.loads(value) if isinstance(value, str) else value


def read_csv(path):
    """Returns the rows of a file by name."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_jsonl(path):
    """Returns the objects of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
