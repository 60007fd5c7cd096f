"""`holdfast pipe` on a real server: what it reads, what it writes, and what it says of what is wrong."""

import csv
import io
import json
import os
import sys

import numpy as np
import pytest

import holdfast
from tests.rpc.conftest import MODEL
from tests.support.command_line import Said, call, starts
from tests.support.oracle import run
from tests.support.pipe_process import read_csv, read_jsonl
from tests.support.store_process import StoreProcess

TEXTS = [("a", "import"), ("b", "def "), ("a", " num"), ("b", "f(x)"), ("a", "py\n")]


def pipe(server, source, sink, *words, given=b"", source_id="", model=MODEL):
    """Calls the command with standard input in a process of its own."""
    name = ("--source-id", source_id) if source_id else ()
    line = [
        "holdfast",
        "pipe",
        "--target",
        server.address,
        "--model",
        model,
        "--from",
        source,
        "--to",
        sink,
    ]
    paths = [os.memfd_create(part) for part in ("in", "out", "err")]
    files = [open(path, "r+b") for path in paths]  # noqa: SIM115 -- closed below
    files[0].write(given)
    files[0].seek(0)
    process = starts().fork("service.command", [*line, *name, *words], files, limit_s=60)
    code = process.wait()
    for file in files:
        file.seek(0)
    said = Said(code, files[1].read().decode(), files[2].read().decode())
    for file in files:
        file.close()
    return said


def log_probs_of(records):
    found = {}
    for record in records:
        value = record["token_log_probs"]
        found.setdefault(record["session"], []).extend(
            json.loads(value) if isinstance(value, str) else value
        )
    return found


def check_texts(records, prefix):
    found = log_probs_of(records)
    for session in "ab":
        whole = "".join(text for name, text in TEXTS if name == session).encode()
        np.testing.assert_allclose(found[prefix + session], run(MODEL, whole)[1], atol=1e-5, rtol=0)


def jsonl(events):
    return "".join(json.dumps(event) + "\n" for event in events).encode()


def test_json_lines_become_csv(server, tmp_path):
    events = [{"user": f"j{name}", "line": text, "ts": n / 2} for n, (name, text) in enumerate(TEXTS)]
    (tmp_path / "in.jsonl").write_bytes(jsonl(events))
    out = tmp_path / "out.csv"
    words = ("--session-field", "user", "--token-field", "text:line", "--time-field", "ts")
    words += ("--top-k", "2", "--token-log-prob")
    said = pipe(server, f"file:{tmp_path}/in.jsonl", f"file:{out}", *words)
    assert said == (0, "", "holdfast pipe: 5 events applied, 0 done before\n")
    records = read_csv(out)
    assert list(records[0]) == ["session", "position", "source", "entry", "ts", "top", "token_log_probs"]
    assert sorted(record["ts"] for record in records) == ["0.0", "0.5", "1.0", "1.5", "2.0"]
    assert np.shape(json.loads(records[0]["top"]))[1:] == (2, 2)
    check_texts(records, "j")
    said = pipe(server, f"file:{tmp_path}/in.jsonl", f"file:{out}", *words)
    assert said == (0, "", "holdfast pipe: 0 events applied, 5 done before\n")
    assert read_csv(out) == records


def test_csv_becomes_json_lines_between_standard_streams(server):
    text = io.StringIO()
    csv.writer(text).writerows([("session", "text"), *((f"c{name}", text) for name, text in TEXTS)])
    words = ("--format", "csv", "--token-log-prob", "--quiet")
    said = pipe(server, "-", "-", *words, given=text.getvalue().encode(), source_id="monday")
    assert (said.code, said.err) == (0, "")
    records = [json.loads(line) for line in said.out.splitlines()]
    assert {record["source"] for record in records} == {"monday"}
    check_texts(records, "c")
    with holdfast.Client(server.address) as client:
        session = client.open_session("ca")
        assert session.cursor.startswith(b"monday ")
        assert session.position == len("import numpy\n")


def test_another_source_goes_on_where_the_last_one_ended(server):
    for number, source_id in enumerate(("monday", "tuesday", "tuesday")):
        events = jsonl([{"session": "days", "text": "ab"}])
        said = pipe(server, "-", "-", "--top-k", "1", given=events, source_id=source_id)
        [record] = map(json.loads, said.out.splitlines())  # standard output may get the last record again
        assert record["position"] == min(2 * (number + 1), 4)


def test_readings_become_scores(server, tmp_path):
    rng = np.random.default_rng(3)
    with holdfast.Client(server.address) as client:
        width = client.get_model("sensor-anomaly").input.width
        readings = rng.normal(size=(6, width)).astype(np.float32)
        session = client.open_session("alone", model="sensor-anomaly")
        expected = [session.step(row[None], outputs="score").outputs["score"].item() for row in readings]
    names = [f"x{number}" for number in range(width)]
    with open(tmp_path / "in.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["machine", *names])
        writer.writerows([["m", *map(repr, row.tolist())] for row in readings])
    words = ("--session-field", "machine", "--token-field", f"features:{','.join(names)}", "--score")
    said = pipe(
        server, f"file:{tmp_path}/in.csv", f"file:{tmp_path}/out.jsonl", *words, model="sensor-anomaly"
    )
    assert said.code == 0, said.err
    found = [record["score"] for record in read_jsonl(tmp_path / "out.jsonl")]
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    said = pipe(server, "-", "-", "--score", source_id="s")
    assert said.code == 2
    assert "--score: python-source has 0 outputs of the role score; it has logits (logits)" in said.err


BAD = [
    {"session": "bad", "text": "a"},
    {"session": "bad"},
    {"session": "bad", "text": "b" * 300},
    {"session": "bad\x00", "text": "c"},
    {"session": "bad", "text": "d"},
]
WHY = {
    1: "field 'text' is missing; the event has 'session'",
    2: "session 'bad': INVALID_REQUEST: ",
    3: "session 'bad\\x00': INVALID_REQUEST: ",
}


def starts_of(events):
    lines = jsonl(events).splitlines(keepends=True)
    return [sum(map(len, lines[:number])) for number in range(len(lines))]


def test_a_bad_event_ends_the_pipe_with_its_place_and_its_field(server, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(jsonl(BAD))
    said = pipe(server, f"file:{tmp_path}/in.jsonl", f"file:{tmp_path}/out.jsonl", source_id="stops")
    entry = starts_of(BAD)[1]
    assert said.code == 1
    assert f"holdfast pipe: stops, entry {entry}: {WHY[1]}\n" in said.err
    assert [record["entry"] for record in read_jsonl(tmp_path / "out.jsonl")] == ["0"]


def test_bad_events_become_dead_letters_once(server, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(jsonl(BAD))
    out, dead = tmp_path / "out.jsonl", tmp_path / "dead.jsonl"
    entries = list(map(str, starts_of(BAD)))
    for told in (3, 2):  # the one of the session that has gone on is done
        words = ("--on-error", f"dead-letter:file:{dead}")
        said = pipe(server, f"file:{tmp_path}/in.jsonl", f"file:{out}", *words, source_id="letters")
        assert said.code == 0
        assert said.err.count("left out: letters, entry") == told
        records = read_jsonl(out)
        assert [record["entry"] for record in records] == [entries[0], entries[4]]
        letters = {letter["entry"]: letter for letter in read_jsonl(dead)}
        assert letters.keys() == {entries[number] for number in WHY}
        assert len(read_jsonl(dead)) == 3
        for number, why in WHY.items():
            assert letters[entries[number]]["error"].startswith(why)
            assert letters[entries[number]]["event"] == BAD[number]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--model", "nothing"), 1, "MODEL_NOT_FOUND"),
        (("--outputs", "hidden"), 2, "--outputs: python-source has no 'hidden', it has logits"),
        (("--from", "kafka://h/t"), 2, "is not a source or sink, expected redis-stream://HOST:PORT/STREAM"),
        (("--from", "file:/nowhere.csv"), 2, "/nowhere.csv: no such file or directory"),
        (("--from", "-"), 2, "standard input has no name"),
        (("--token-field", "words"), 2, "--token-field is 'words', expected text"),
        (("--on-error", "ignore"), 2, "--on-error is 'ignore', expected stop, skip or dead-letter:SINK"),
        (("--concurrency", "0"), 2, "--concurrency is 0, expected at least 1"),
        (("--top-k", "-1"), 2, "--top-k is -1"),
        (("--ack-level", "forever"), 2, "forever"),
    ],
)
def test_what_is_wrong_with_the_command_is_said(server, tmp_path, words, code, said):
    (tmp_path / "in.jsonl").touch()
    usual = ("--target", server.address, "--model", MODEL, "--from", f"file:{tmp_path}/in.jsonl")
    result = call("pipe", *usual, "--to", f"file:{tmp_path}/out.jsonl", *words)
    assert result.code == code, result.err
    assert said in result.err
    assert "Traceback" not in result.err


def test_streams_say_what_they_need(server, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("redis", "holdfast.pipe"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "holdfast.cli.pipe", raising=False)
    monkeypatch.setitem(sys.modules, "redis", None)
    usual = ("--target", server.address, "--model", MODEL, "--to", "-")
    result = call("pipe", *usual, "--from", "redis-stream://127.0.0.1:1/in")
    assert (result.code, result.err) == (
        2,
        "holdfast pipe: streams need redis: pip install 'holdfast[pipe]'\n",
    )


def test_a_stream_feeds_a_stream(server, tmp_path):
    with StoreProcess(tmp_path / "streams") as streams:
        url = f"redis-stream://127.0.0.1:{streams.port}"
        for name, text in TEXTS:
            streams.client.xadd("in", {"session": f"x{name}", "text": text})
        streams.client.xadd("in", {"session": "xa"})
        words = ("--until-empty", "--token-log-prob", "--on-error", f"dead-letter:{url}/dead")
        said = pipe(server, f"{url}/in", f"{url}/out", *words)
        assert said.code == 0, said.err
        records = [
            {name.decode(): value.decode() for name, value in fields.items()}
            for _, fields in streams.client.xrange("out")
        ]
        check_texts(records, "x")
        [(_, letter)] = streams.client.xrange("dead")
        assert b"field 'text' is missing" in letter[b"error"]
        assert json.loads(letter[b"event"]) == {"session": "xa"}
        assert streams.client.xpending("in", "holdfast")["pending"] == 0
