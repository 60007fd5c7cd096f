"""Events, places and records of `holdfast pipe`."""

import json
import math

import numpy as np
import pytest

from holdfast.client.reply import StepReply
from holdfast.pipe.events import Malformed, Raw, fields_of, read_event
from holdfast.pipe.places import Place, check_source_id, cursor_of, entry_in, place_in, place_of
from holdfast.pipe.records import Asked, Records, dead_letter, score_of, to_csv, to_json, to_texts
from holdfast.v1 import holdfast_pb2 as pb


def event(tokens, time="", **fields):
    return read_event(Raw(Place(7), "7", fields), fields_of("user", tokens, time))


@pytest.mark.parametrize(
    ("tokens", "fields", "expected"),
    [
        ("text", {"text": "né"}, "né".encode()),
        ("text:line", {"line": "a\nb"}, b"a\nb"),
        ("ids", {"ids": [1, 2]}, [1, 2]),
        ("ids", {"ids": 3}, [3]),
        ("ids", {"ids": "4"}, [4]),
        ("ids", {"ids": "4 5,6"}, [4, 5, 6]),
        ("ids:words", {"words": "[7, 8]"}, [7, 8]),
        ("features:a,b", {"a": "1.5", "b": 2}, [[1.5, 2]]),
        ("features:x", {"x": 1}, [[1]]),
        ("features:x", {"x": [1, 2]}, [[1, 2]]),
        ("features:x", {"x": "[[1, 2], [3, 4]]"}, [[1, 2], [3, 4]]),
    ],
)
def test_tokens_are_read_from_text_and_from_json(tokens, fields, expected):
    found = event(tokens, user="u", **fields)
    assert found.session_id == "u"
    if isinstance(expected, bytes):
        assert found.tokens == expected
    else:
        np.testing.assert_array_equal(found.tokens, expected)


@pytest.mark.parametrize(
    ("tokens", "fields", "said"),
    [
        ("text", {"text": "a"}, "field 'user' is missing; the event has 'text'"),
        ("text", {"user": "", "text": "a"}, "field 'user' is '', expected the id of a session"),
        ("text", {"user": True, "text": "a"}, "field 'user' is True"),
        ("text", {"user": "a\udc80", "text": "a"}, "field 'user' is 'a\\udc80'"),
        ("text", {"user": "u"}, "field 'text' is missing; the event has 'user'"),
        ("text", {"user": "u", "text": ""}, "field 'text' is '', expected text"),
        ("text", {"user": "u", "text": 7}, "field 'text' is 7, expected text"),
        ("text", {"user": "u", "text": "\udcff"}, "field 'text' is '\\udcff', which is not UTF-8"),
        ("ids", {"user": "u", "ids": "1 x"}, "field 'ids' is '1 x', expected an id"),
        ("ids", {"user": "u", "ids": []}, "field 'ids' is []"),
        ("ids", {"user": "u", "ids": [1.0]}, "field 'ids' is [1.0]"),
        ("ids", {"user": "u", "ids": [True]}, "field 'ids' is [True]"),
        ("ids", {"user": "u", "ids": 2**70}, "too large for an id"),
        ("features:a,b", {"user": "u", "a": 1}, "field 'b' is missing"),
        ("features:a,b", {"user": "u", "a": 1, "b": "x"}, "field 'b' is 'x', expected a finite number"),
        ("features:a,b", {"user": "u", "a": 1, "b": "nan"}, "field 'b' is 'nan'"),
        ("features:a,b", {"user": "u", "a": 1, "b": True}, "field 'b' is True"),
        ("features:a,b", {"user": "u", "a": 1, "b": 1e39}, "field 'a'"),
        ("features:x", {"user": "u", "x": [[1, 2], [3]]}, "as many in each row"),
        ("features:x", {"user": "u", "x": []}, "field 'x' is []"),
        ("features:x", {"user": "u", "x": "abc"}, "field 'x' is 'abc', expected numbers"),
        ("features:x", {"user": "u", "x": [1, math.nan]}, "expected finite numbers"),
    ],
)
def test_what_is_wrong_with_an_event_is_said_with_its_field(tokens, fields, said):
    with pytest.raises(Malformed) as refusal:
        event(tokens, **fields)
    assert said in str(refusal.value)


def test_a_time_that_is_asked_for_has_to_be_there():
    assert event("text", "ts", user="u", text="a", ts=1.5).time == 1.5
    with pytest.raises(Malformed, match="field 'ts' is missing"):
        event("text", "ts", user="u", text="a")


def test_numbers_are_ids_of_sessions_too():
    assert event("text", user=7, text="a").session_id == "7"


@pytest.mark.parametrize("wrong", ["", "words", "text:a,b", "ids:", "features:a,,b"])
def test_a_wrong_token_field_is_refused(wrong):
    with pytest.raises(ValueError, match="--token-field is"):
        fields_of("user", wrong, "")


def test_places_have_the_order_of_numbers_as_text_too():
    places = [place_of(entry) for entry in ("9", "10", "10-9", "10-10", "1718000000000-0")]
    assert places == sorted(places)
    assert [place.sortable for place in places] == sorted(place.sortable for place in places)
    assert [place_of(place.sortable) for place in places] == places


@pytest.mark.parametrize("wrong", ["", "-", "1-", "-1", "a", "1-b", "1.5", "²"])
def test_what_is_no_place_is_refused(wrong):
    with pytest.raises(ValueError, match="is not an offset in a source"):
        place_of(wrong)


def test_a_cursor_is_of_one_source():
    cursor = cursor_of("my events", "17-3")
    assert place_in(cursor, "my events") == (17, 3)
    assert place_in(cursor, "events") is None
    assert place_in(b"", "events") is None
    assert entry_in(cursor) == "17-3"
    for foreign in (b"17-3", b"page seven", b"\xff\xff"):
        with pytest.raises(ValueError, match=r"was not written by a pipe|is not an offset"):
            place_in(foreign, "events")


@pytest.mark.parametrize("wrong", ["", "a\nb", "n" * 201, "é" * 101])
def test_a_source_needs_a_name_that_fits_into_a_cursor(wrong):
    with pytest.raises(ValueError, match="the source is named"):
        check_source_id(wrong)
    assert len(cursor_of(check_source_id("n" * 200), f"{2**64 - 1}-{2**64 - 1}")) <= 256


def model(*roles):
    outputs = [
        pb.OutputSpec(name=f"{role}_{number}", role=role, shape=[3]) for number, role in enumerate(roles)
    ]
    return pb.Model(name="m", outputs=outputs)


def reply(**outputs):
    return StepReply(pb.ChunkResult(session_id="u", position=9, outputs=pb.Outputs(**outputs)))


def tensor(name, values):
    array = np.asarray(values, np.float32)
    data = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=array.shape, data=array.tobytes())
    return pb.NamedTensor(name=name, tensor=data)


def test_a_record_has_what_was_asked_for():
    asked = Asked(2, True, ("raw_1",))
    records = Records("events", "ts", asked, model("logits", "raw"))
    given = reply(
        token_count=2, top_k=2, top_ids=[1, 2, 3, 4], top_log_probs=[-1, -2, -3, -4],
        token_log_probs=[-0.5, -0.25], tensors=[tensor("raw_1", [[1, 2], [3, 4]])],
    )  # fmt: skip
    key, place, record = records.of(event("text", "ts", user="u", text="ab", ts="noon"), given)
    assert (key, place) == ("u", (7, 0))
    assert record == {
        "session": "u", "position": 9, "source": "events", "entry": "7", "ts": "noon",
        "top": [[(1, -1), (2, -2)], [(3, -3), (4, -4)]], "token_log_probs": [-0.5, -0.25],
        "raw_1": [[1, 2], [3, 4]],
    }  # fmt: skip
    assert records.columns == tuple(record)
    assert records.asked.options == {"top_k": 2, "token_log_prob": True, "outputs": ("raw_1",)}


def test_what_was_not_asked_for_is_what_a_server_gives():
    assert Records("s", "", Asked(), model("raw", "logits")).asked == Asked(top_k=3)
    assert Records("s", "", Asked(), model("score", "raw")).asked == Asked(outputs=("score_0", "raw_1"))
    assert Records("s", "", Asked(top_k=0), model("logits")).columns == (
        "session",
        "position",
        "source",
        "entry",
    )


def test_a_score_is_one_number():
    records = Records("s", "", Asked(outputs=("score_0",)), model("score"))
    given = reply(token_count=1, tensors=[tensor("score_0", [0.5])])
    assert records.of(event("text", user="u", text="a"), given).record["score_0"] == 0.5
    assert score_of(model("raw", "score")) == "score_1"
    with pytest.raises(ValueError, match=r"m has 0 outputs of the role score; it has raw_0 \(raw\)"):
        score_of(model("raw"))


def test_columns_of_one_name_are_refused():
    with pytest.raises(ValueError, match="several columns called position"):
        Records("s", "position", Asked(), model("raw"))


def test_numbers_that_json_does_not_have_are_null():
    record = {"a": [1.0, -math.inf], "b": {"c": math.nan}, "d": "é"}
    assert to_json(record) == '{"a": [1.0, null], "b": {"c": null}, "d": "é"}'
    assert to_texts(record.values()) == ["[1.0, null]", '{"c": null}', "é"]


def test_a_record_is_one_line_of_csv():
    assert (
        to_csv(["a,b", 'say "x"', "two\nlines", 1.5, None, [1]])
        == '"a,b","say ""x""","""two\\nlines""",1.5,null,[1]\n'
    )


def test_a_dead_letter_has_the_event():
    key, place, record = dead_letter("s", Raw(Place(3), "3", {"x": "1"}), "because")
    assert (key, place) == ("entry 3", (3, 0))
    assert json.loads(to_json(record)) == {
        "source": "s",
        "entry": "3",
        "error": "because",
        "event": {"x": "1"},
    }
    for content in (None, "{bad", ["v"]):
        raw = Raw(Place(3), "3", None, "it is bad", content)
        assert dead_letter("s", raw, "because").record["event"] == content
