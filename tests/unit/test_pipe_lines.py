"""Sources of lines, and sinks that are files, of `holdfast pipe`."""

import asyncio
import os

import pytest

from holdfast.pipe.ends import open_sink, open_source
from holdfast.pipe.events import Raw
from holdfast.pipe.failures import EndFailed
from holdfast.pipe.file_sink import FileSink
from holdfast.pipe.lines import LineSource
from holdfast.pipe.places import Place
from holdfast.pipe.records import DEAD_LETTER_COLUMNS, Written, dead_letter
from holdfast.pipe.sinks import Together

COLUMNS = ("session", "position", "source", "entry", "value")


async def all_of(source, most=3):
    found = []
    while (events := await source.read(most)) is not None:
        assert 0 < len(events) <= most
        found += events
    await source.close()
    return found


def source_of(tmp_path, data, layout):
    path = tmp_path / f"events.{layout}"
    path.write_bytes(data)
    return LineSource(os.open(path, os.O_RDONLY), "events", layout)


async def test_lines_of_json_have_the_places_of_their_bytes(tmp_path):
    data = b'\xef\xbb\xbf{"a": "\xc3\xa9"}\n\n{"a": 2}\r\n[1]\nnot json\n{"a": "\xff"}\n{"a": 3}'
    found = await all_of(source_of(tmp_path, data, "jsonl"))
    assert [event.fields for event in found] == [
        {"a": "é"},
        {"a": 2},
        None,
        None,
        {"a": "\udcff"},
        {"a": 3},
    ]
    starts = [0, *(data.index(line) for line in (b'{"a": 2}', b"[1]", b"not", b'{"a": "\xff', b'{"a": 3}'))]
    assert [(event.place, event.entry) for event in found] == [((start, 0), str(start)) for start in starts]
    assert "the line is [1], expected an object" in found[2].problem
    assert "the line is not JSON" in found[3].problem
    assert [event.content for event in found] == [None, None, "[1]", "not json", None, None]


async def test_records_of_csv_may_have_several_lines(tmp_path):
    data = b'\xef\xbb\xbfuser,text\nu,"two\nlines"\r\n\nv\nw,"a"b\nx,"say ""y"""\n'
    found = await all_of(source_of(tmp_path, data, "csv"))
    fields = [event.fields for event in found]
    assert fields == [{"user": "u", "text": "two\nlines"}, None, None, {"user": "x", "text": 'say "y"'}]
    assert "the line has 1 fields, expected 2" in found[1].problem
    assert "the line is not CSV" in found[2].problem
    assert [event.content for event in found] == [None, ["v"], None, None]
    assert data[found[0].place.first :].startswith(b'u,"two')
    assert data[found[3].place.first :].startswith(b"x,")


async def test_a_file_may_be_empty(tmp_path):
    assert await all_of(source_of(tmp_path, b"", "jsonl")) == []
    assert await all_of(source_of(tmp_path, b"", "csv")) == []
    assert await all_of(source_of(tmp_path, b"a,b\n", "csv")) == []


async def test_lines_of_a_pipe_are_given_as_they_come():
    reads, writes = os.pipe()
    source = LineSource(reads, "events", "jsonl")
    os.write(writes, b'{"a": 1}\n{"a"')
    assert [event.fields for event in await source.read(10)] == [{"a": 1}]
    waiting = asyncio.create_task(source.read(10))
    await asyncio.sleep(0)
    os.write(writes, b": 2}\n")
    assert [event.fields for event in await waiting] == [{"a": 2}]
    os.close(writes)
    assert await source.read(10) is None


async def test_a_read_of_a_silent_pipe_ends_with_its_source():
    reads, writes = os.pipe()
    source = LineSource(reads, "events", "jsonl")
    waiting = asyncio.create_task(source.read(1))
    await asyncio.sleep(0)
    await source.close()
    assert await waiting is None
    os.close(writes)


def written(session, place, value="x"):
    record = {"session": session, "position": place, "source": "s", "entry": str(place), "value": value}
    return Written(session, Place(place), record)


@pytest.fixture(params=["jsonl", "csv"])
def layout(request):
    return request.param


def sink_at(path, layout, source_id="s", columns=COLUMNS):
    return FileSink(path, layout, columns, source_id, is_synced=False)


async def test_a_file_remembers_what_was_written(tmp_path, layout):
    path = tmp_path / "out"
    sink = sink_at(path, layout)
    await sink.write([written("a", 1), written("b", 2, "é\n"), written("a", 3)])
    await sink.write([written("a", 3), written("a", 1), written("b", 4)])
    await sink.close()
    whole = path.read_bytes()
    assert whole.count(b"\n") == 4 + (layout == "csv")
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        sink = sink_at(path, layout)
        assert whole.startswith(path.read_bytes())
        assert not path.read_bytes() or path.read_bytes().endswith(b"\n")
        for one in (written("a", 1), written("b", 2, "é\n"), written("a", 3), written("b", 4)):
            await sink.write([one])
        await sink.close()
        assert path.read_bytes() == whole, cut


async def test_records_of_other_sources_are_not_those_of_this_one(tmp_path, layout):
    path = tmp_path / "out"
    sink = sink_at(path, layout)
    await sink.write([written("a", 7)])
    await sink.close()
    sink = sink_at(path, layout, "another")
    assert await sink.last("a") is None
    await sink.close()
    sink = sink_at(path, layout)
    assert await sink.last("a") == Place(7)
    await sink.close()


async def test_dead_letters_are_written_once_in_any_order(tmp_path, layout):
    path = tmp_path / "dead"
    letters = [dead_letter("s", Raw(Place(place), str(place), {"x": 1}), "why") for place in (5, 3, 9)]
    for known in range(1, 4):
        sink = sink_at(path, layout, columns=DEAD_LETTER_COLUMNS)
        await sink.write(letters[:known])
        await sink.close()
    assert path.read_bytes().count(b"\n") == 3 + (layout == "csv")


def test_a_file_that_somebody_else_writes_to_is_refused(tmp_path, layout):
    first = sink_at(tmp_path / "out", layout)
    with pytest.raises(OSError, match="somebody else writes to it"):
        sink_at(tmp_path / "out", layout)
    asyncio.run(first.close())


@pytest.mark.parametrize(
    ("layout", "data", "said"),
    [
        ("jsonl", b"hello\n", "line 1: it is not a record of a pipe"),
        ("jsonl", b'{"source": "s"}\n', "line 1: it is not a record of a pipe"),
        ("csv", b"a,b\n", "the columns are a, b, expected session"),
        ("csv", b"session,position,source,entry,value\na,1\n", "line 2: it is not a record"),
    ],
)
def test_a_file_that_holds_something_else_is_left_alone(tmp_path, layout, data, said):
    path = tmp_path / "out"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=said):
        sink_at(path, layout)
    assert path.read_bytes() == data


async def test_a_full_disk_leaves_whole_lines(tmp_path, layout, monkeypatch):
    sink = sink_at(tmp_path / "out", layout)
    await sink.write([written("a", 1)])
    whole = (tmp_path / "out").read_bytes()
    write = os.write
    room = [5]

    def write_some(descriptor, data):
        if not room[0]:
            raise OSError(28, "No space left on device")
        done = write(descriptor, data[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", write_some)
    with pytest.raises(EndFailed, match="out: no space left on device"):
        await sink.write([written("a", 2)])
    assert (tmp_path / "out").read_bytes() == whole
    await sink.close()


@pytest.mark.parametrize("is_synced", [False, True])
async def test_records_may_be_waited_for_until_they_are_on_the_disk(tmp_path, monkeypatch, is_synced):
    synced = []
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    sink = FileSink(tmp_path / "out", "jsonl", COLUMNS, "s", is_synced=is_synced)
    await sink.write([written("a", 1)])
    await sink.close()
    assert synced == [(tmp_path / "out").stat().st_size] * is_synced


async def test_what_comes_meanwhile_is_taken_together():
    taken, goes_on = [], asyncio.Event()

    async def take(things):
        taken.append(things)
        await goes_on.wait()
        if 5 in things:
            raise OSError("five")

    together = Together(take)
    first = together.put(1)
    await asyncio.sleep(0)
    others = [together.put(number) for number in (2, 3)]
    goes_on.set()
    await asyncio.gather(first, *others)
    assert taken == [[1], [2, 3]]
    with pytest.raises(OSError, match="five"):
        await together.put(5)
    await together.put(6)
    together.put(7)
    await together.settled()
    assert taken[2:] == [[5], [6], [7]]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("events.csv", "'events.csv' is not a source or sink, expected redis-stream://"),
        ("kafka://u:secret@host/topic", "'host/topic' is not a source or sink"),
        ("file:", "'file:' is not a source or sink"),
        ("file:events", "events: JSON lines or CSV?"),
        ("-", "standard input has no name"),
        ("redis-stream://host", "'redis-stream://host:6379/' is not a stream"),
        ("redis-stream://host/a/b", "is not a stream"),
        ("redis-stream://u:secret@host/a?x=1", "redis-stream://host:6379/a: no parameter 'x'"),
        ("redis-stream://host/a?db=x", "db is 'x', expected a number"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "events").touch()
    with pytest.raises(ValueError, match=r"source|stream|JSON|name") as refusal:
        open_source(
            name, source_id="", layout="", group="g", consumer="c", until_empty=True, say=lambda _: None
        )
    assert said in str(refusal.value)
    assert "secret" not in str(refusal.value)


def test_layouts_go_by_the_names_of_files(tmp_path):
    options = {"source_id": "s", "columns": COLUMNS, "is_synced": False, "say": lambda _: None}
    asyncio.run(open_sink(f"file:{tmp_path}/o.csv", layout="", **options).close())
    assert (tmp_path / "o.csv").read_text() == "session,position,source,entry,value\n"
    asyncio.run(open_sink(f"file:{tmp_path}/o.ndjson", layout="", **options).close())
    assert (tmp_path / "o.ndjson").read_text() == ""
