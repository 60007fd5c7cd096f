"""What callers may pass, and what it is taken for, with examples: the table of docs/guides/inputs.md."""

import array
import asyncio
import collections
import decimal
import enum
import math
import uuid
from typing import Any, NamedTuple

import numpy as np

from holdfast.client.aio import AsyncClient
from holdfast.client.batching import batch_message
from holdfast.client.opening import session_opening
from holdfast.client.options import (
    flag,
    positions_list,
    seconds,
    selection,
    session_id_text,
    session_ids_text,
    whole_number,
)
from holdfast.client.rows import normalise_rows
from holdfast.client.tokens import normalise, state_message, to_arrays
from tests.support.foreign_arrays import FakeColumn, FakeTable, FakeTensor, OnlyElsewhere
from tests.support.pieces import pieces

NAN, INF = float("nan"), float("inf")


class Refused(NamedTuple):
    """An error, and what it says."""

    kind: type
    says: str


def type_error(says):
    return Refused(TypeError, says)


def value_error(says):
    return Refused(ValueError, says)


class Row(NamedTuple):
    """A row of the table: what is passed, what it is taken for, where; and examples as (call, outcome)."""

    passed: str
    taken: str
    where: str
    examples: list[tuple[Any, Any]]


def step(tokens):
    return lambda: normalise(tokens)


def stream(tokens, chunk=1):
    async def collect():
        return [piece async for piece in pieces(tokens(), chunk)]

    return lambda: asyncio.run(collect())


def batch(tokens, rows=2):
    return lambda: normalise_rows(tokens, rows)


def state(value):
    return lambda: to_arrays(state_message({"h": value}))["h"]


def states(value):
    return lambda: state_message(value)


def opened(session_id):
    return lambda: session_id_text(session_id)


def opened_all(session_ids):
    return lambda: session_ids_text(session_ids)


def at(positions, rows=2):
    return lambda: positions_list(positions, rows)


def outputs(value):
    def names():
        found = selection(None, False, value, False)
        return None if found is None else list(found.tensors)

    return names


def top(value):
    def count():
        found = selection(value, False, None, False)
        return None if found is None else found.top_k

    return count


def ids(*values):
    return np.array(values, np.int64)


def features(*rows):
    return np.array(rows, np.float32)


class Name(enum.StrEnum):
    LOGITS = "logits"


class Kind(str, enum.Enum):  # noqa: UP042 -- str() of its members is not their text
    READER = "reader"


class Number(enum.IntEnum):
    SEVEN = 7


def generator(*items):
    yield from items


async def agenerator(*items):
    for item in items:
        yield item


FLOATS = np.array([[1, 2], [3, 4]], np.float32)
TURNED = np.arange(6).reshape(3, 2)
ROWS_OF_TWO = np.arange(6, dtype=np.float32).reshape(2, 3)

TABLE = [
    # -- tokens
    Row(
        "`str`, `numpy.str_`", "text, as UTF-8; line ends as they are", "step, stream",
        [
            (step("a\nb"), b"a\nb"), (step("é"), "é".encode()), (step(np.str_("ab")), b"ab"),
            (stream(lambda: "a\nb", 2), [b"a\n", b"b"]), (stream(lambda: np.str_("ab")), [b"a", b"b"]),
            (step("\r\n\0"), b"\r\n\0"), (step("a\ud800"), value_error("surrogates")),
        ],
    ),
    Row(
        "`bytes`, `bytearray`, `memoryview` of bytes, `numpy.bytes_`", "text", "step, stream",
        [
            (step(b"a\nb\0"), b"a\nb\0"), (step(bytearray(b"ab")), b"ab"),
            (step(memoryview(b"abcd")[::2]), b"ac"), (step(np.bytes_(b"ab")), b"ab"),
            (step(memoryview(b"ab").cast("c")), b"ab"),
            (stream(lambda: memoryview(b"abc"), 2), [b"ab", b"c"]),
            (step(memoryview(b"abcd").cast("B", (2, 2))), value_error(r"text has the shape \(2, 2\)")),
        ],
    ),
    Row(
        "an integer, of Python or numpy, or an array of no axis", "one id", "step, stream",
        [
            (step(5), ids(5)), (step(np.uint8(5)), ids(5)), (step(np.array(5)), ids(5)),
            (step(Number.SEVEN), ids(7)), (stream(lambda: 5), [ids(5)]),
            (stream(lambda: np.array(5)), [ids(5)]),
        ],
    ),
    Row(
        "`list`, `tuple`, `range`, `deque`, `array.array`, `memoryview` of integers, integer array (k,)",
        "k ids", "step, stream",
        [
            (step([1, 2]), ids(1, 2)), (step((1, np.int8(2))), ids(1, 2)), (step(range(2)), ids(0, 1)),
            (step(collections.deque([1, 2])), ids(1, 2)), (step(array.array("i", [1, 2])), ids(1, 2)),
            (step(memoryview(array.array("i", [1, 2]))), ids(1, 2)),
            (step(np.array([1, 2], np.uint8)), ids(1, 2)), (step(np.array([1, 2], ">i4")), ids(1, 2)),
            (step(np.arange(4)[::-2]), ids(3, 1)), (step([np.uint64(1), 2]), ids(1, 2)),
            (step(np.array([1, 2], object)), ids(1, 2)), (step([np.array(1), np.array(2)]), ids(1, 2)),
            (step(np.uint64([1, 2])), ids(1, 2)), (step(collections.UserList([1, 2])), ids(1, 2)),
            (stream(lambda: range(3), 2), [ids(0, 1), ids(2)]),
            (stream(lambda: [1, np.int64(2)]), [ids(1), ids(2)]), (stream(lambda: (1, 2), 2), [ids(1, 2)]),
            (stream(lambda: array.array("B", [1, 2]), 2), [ids(1, 2)]),
            (stream(lambda: np.arange(3), 2), [ids(0, 1), ids(2)]),
            (stream(lambda: memoryview(array.array("i", [1, 2])), 2), [ids(1, 2)]),
        ],
    ),
    Row(
        "integer array (k, n)", "refused: ids have one axis, features are floats", "step, stream",
        [
            (step(np.ones((1, 2), int)), value_error(r"shape \(1, 2\), expected \(k,\); features are")),
            (step([[1, 2], [3, 4]]), value_error("features are floats")),
            (stream(lambda: np.ones((2, 2), int)), value_error("features are floats")),
        ],
    ),
    Row(
        "an id that is negative or above 2147483647", "refused", "step, stream, batch",
        [
            (step([1, -1]), value_error(r"id -1 at 1 is not within 0\.\.2147483647")),
            (step([2**31]), value_error("id 2147483648 at 0")), (step([2**70, 1]), value_error("64 bits")),
            (step([2**63, -1]), value_error("64 bits")), (step(-1), value_error("id -1")),
            (step(2**64), value_error("64")),
            (step(np.array([2**63], np.uint64)), value_error("id 9223372036854775808 at 0")),
            (step([np.uint64(2**63), 1]), value_error("int64")),
            (step(np.int8([-1])), value_error("id -1")),
            (batch([[1, 2], [3, -4]]), value_error(r"id -4 at \[1, 1\]")),
            (stream(lambda: [-1]), value_error("id -1")),
        ],
    ),
    Row(
        "array of floats (k, width): float16, float32, float64, longer ones",
        "k rows of features, rounded to float32", "step, stream",
        [
            (step(FLOATS), FLOATS), (step(FLOATS.astype(np.float64)), FLOATS),
            (step(FLOATS.astype(np.float16)), FLOATS), (step(FLOATS.astype(np.longdouble)), FLOATS),
            (step(FLOATS.astype(">f4")), FLOATS), (step(np.asfortranarray(FLOATS)), FLOATS),
            (step(FLOATS.T), FLOATS.T.copy()), (step([[0.1]]), features([0.1])),
            (step([[1.0, 2], [3, 4]]), FLOATS), (step([FLOATS[0], FLOATS[1]]), FLOATS),
            (stream(lambda: FLOATS), [FLOATS[:1], FLOATS[1:]]), (stream(lambda: FLOATS, 9), [FLOATS]),
        ],
    ),
    Row(
        "array of floats (width,), a list of floats", "one row of features", "step, stream",
        [
            (step(FLOATS[0]), FLOATS[:1]), (step([1.0, 2.0]), FLOATS[:1]),
            (step(array.array("d", [1, 2])), FLOATS[:1]), (step([1, 2.0]), FLOATS[:1]),
            (stream(lambda: FLOATS[0]), [FLOATS[:1]]), (stream(lambda: [1.0, 2]), [FLOATS[:1]]),
        ],
    ),
    Row(
        "one float; floats with more than two axes, or of width 0", "refused", "step, stream",
        [
            (step(1.5), value_error(r"features have the shape \(\)")),
            (step(np.float32(1)), value_error("shape")),
            (step(np.ones((1, 1, 1))), value_error(r"\(1, 1, 1\), expected \(width,\) or \(k, width\)")),
            (step(np.ones((2, 0))), value_error("shape")),
            (stream(lambda: generator(0.5)), value_error("shape")),
        ],
    ),
    Row(
        "NaN, infinity, what float32 cannot hold", "refused", "step, stream, batch",
        [
            (step([[1.0, NAN]]), value_error(r"features have nan at \[0, 1\], expected finite float32")),
            (step(np.array([[1e39]])), value_error("1e\\+39")),
            (step(np.float32([[INF]])), value_error("inf")),
            (stream(lambda: [NAN, 1.0]), value_error("nan")),
            (batch([[1.0], [-INF]]), value_error("-inf")),
        ],
    ),
    Row(
        "a DataFrame, of pandas or polars; a table of pyarrow",
        "its values, as an array of floats (k, width)", "step, stream, batch",
        [
            (step(FakeTable({"a": [1.0, 3], "b": [2.0, 4]})), FLOATS),
            (stream(lambda: FakeTable({"a": [1.0, 3], "b": [2.0, 4]})), [FLOATS[:1], FLOATS[1:]]),
            (step(FakeTable({"a": [1, 3], "b": [2, 4]})), value_error("features are floats")),
            (batch(FakeTable({"a": [1.0, 3], "b": [2.0, 4]})), FLOATS[:, None]),
        ],
    ),
    Row(
        "a Series, other arrays that numpy reads", "its values, as an array", "step, stream, batch",
        [
            (step(FakeColumn([1, 2])), ids(1, 2)), (stream(lambda: FakeColumn([1, 2])), [ids(1), ids(2)]),
            (batch(FakeColumn([1, 2])), ids(1, 2)[:, None]),
            (step(OnlyElsewhere()), type_error("call .get()")),
        ],
    ),
    Row(
        "a tensor of torch on the CPU, with a gradient or without",
        "its values, as an array; bfloat16 as float32", "step, stream, batch, state",
        [
            (step(FakeTensor([1, 2])), ids(1, 2)), (step(FakeTensor(FLOATS, has_gradient=True)), FLOATS),
            (step(FakeTensor(FLOATS, dtype="torch.bfloat16")), FLOATS),
            (step([FakeTensor(FLOATS[0], has_gradient=True)]), FLOATS[:1]),
            (stream(lambda: FakeTensor([1, 2])), [ids(1), ids(2)]),
            (batch(FakeTensor([1, 2])), ids(1, 2)[:, None]),
            (state(FakeTensor(FLOATS, has_gradient=True)), FLOATS),
            (step(FakeTensor([1], dtype="torch.sparse")), type_error("gives no numbers")),
        ],
    ),
    Row(
        "a tensor on another device", "refused: `tensor.cpu()`", "step, stream, batch, state",
        [
            (step(FakeTensor([1], device="cuda")), type_error(r"on cuda:0, .*: tensor.cpu\(\)")),
            (stream(lambda: FakeTensor([1], device="cuda")), type_error("cuda:0")),
            (batch([FakeTensor([1], device="cuda")] * 2), type_error("cuda:0")),
            (state(FakeTensor([1], device="mps")), type_error("mps")),
        ],
    ),
    Row(
        "a masked array", "its values; refused if anything is masked", "step, stream, batch, state",
        [
            (step(np.ma.array([1, 2])), ids(1, 2)),
            (step(np.ma.array([1, 2], mask=[0, 1])), value_error("masked in 1 places")),
            (step([np.ma.array([1.0, 2], mask=[0, 1])]), value_error("masked")),
            (step([1, np.ma.masked]), value_error("masked")),
            (stream(lambda: np.ma.array([1, 2], mask=True)), value_error("masked in 2")),
            (batch(np.ma.array([1, 2], mask=[1, 0])), value_error("masked")),
            (state(np.ma.array([1.0], mask=True)), value_error("masked")),
        ],
    ),
    Row(
        "bools", "refused, also among numbers", "step, stream, batch",
        [
            (step([True, False]), type_error("tokens are bools")),
            (step(np.array([True])), type_error("bools")), (step(True), type_error("bools")),
            (step([1, True]), type_error("bools among numbers")), (step(np.bool_(1)), type_error("bools")),
            (step([1.0, np.bool_(1)]), type_error("bools")), (stream(lambda: [True]), type_error("bools")),
            (stream(lambda: generator(True)), type_error("bools")),
            (batch([True, False]), type_error("bools")), (batch([1, True]), type_error("bools")),
        ],
    ),
    Row(
        "lists and arrays of text", "refused: a stream takes a list of texts piece by piece", "step",
        [
            (step(["a", "b"]), type_error("text")), (step(np.array(["a"])), type_error("text")),
            (step([b"a"]), type_error("text")), (step(np.array([b"a\0"])), type_error("text")),

            (step(FakeColumn(["a"])), type_error("text")),
            (stream(lambda: np.array(["a"])), type_error("text")), (step(["1", 2]), type_error("text")),
        ],
    ),
    Row(
        "lists of unequal length in a list", "refused", "step, batch, state",
        [
            (step([[1.0], [1.0, 2.0]]), value_error(r"parts of unequal shape: \(1,\), \(2,\)")),
            (step([1.0, [2.0]]), value_error("unequal")), (batch([[1, 2], [3]]), value_error("unequal")),
            (state([[1.0], [1.0, 2.0]]), value_error("unequal")),
        ],
    ),
    Row(
        "`None`, nulls, `dict`, `set`, complex numbers, times, `Decimal`, other objects", "refused",
        "step, stream, batch, state",
        [
            (step(None), type_error("None")), (step({1: 2}), type_error("dict")),
            (step({1, 2}), type_error("no order")), (step(frozenset([1])), type_error("no order")),
            (step([1, None]), type_error("None")), (step(object()), type_error("object")),
            (step(1j), type_error("complex")), (step(np.array(["2020"], "M8")), type_error("times")),
            (step(decimal.Decimal(1)), type_error("Decimal")),
            (step([decimal.Decimal(1)]), type_error("Decimal")),
            (step({1: 2}.values()), type_error("dict_values")),
            (step(np.zeros(1, [("a", int)])), type_error("records")),
            (step(FakeColumn([1, None])), type_error("None")),
            (step(np.array(None)), type_error("objects")), (step(int), type_error("type")),
            (stream(lambda: None), type_error("None")), (stream(lambda: {"a": b"x"}), type_error("dict")),
            (stream(lambda: {1}), type_error("no order")),
            (stream(lambda: [b"a", None]), type_error("None")),
            (stream(lambda: object()), type_error("object")), (batch(None), type_error("None")),
            (batch({1: 2}), type_error("dict")), (state(None), type_error("None")),
            (state({"a": 1}), type_error("dict")),
        ],
    ),
    Row(
        "an iterator, a generator, an asynchronous one", "refused: `stream()` takes it", "step, batch",
        [
            (step(generator(1)), type_error(r"generator: stream\(\) takes it")),
            (step(agenerator(1)), type_error(r"stream\(\)")), (step(iter([1])), type_error(r"stream\(\)")),
            (step(map(int, "1")), type_error(r"stream\(\)")),
            (batch(generator(1, 2)), type_error("stream")),
        ],
    ),
    Row(
        "the same", "pieces, each as in a step, or longer than `chunk` and cut up; never joined", "stream",
        [
            (stream(lambda: generator(1, 2), 9), [ids(1), ids(2)]),
            (stream(lambda: agenerator(1, "ab"), 9), [ids(1), b"ab"]),
            (stream(lambda: iter(b"ab")), [ids(97), ids(98)]),
            (stream(lambda: generator(np.int64(1)), 9), [ids(1)]),
            (stream(lambda: generator(*FLOATS), 9), [FLOATS[:1], FLOATS[1:]]),
            (stream(lambda: generator("abc"), 2), [b"ab", b"c"]),
            (stream(lambda: agenerator(np.array([1, 2, 3])), 2), [ids(1, 2), ids(3)]),
            (stream(lambda: map(str, [1, 2])), [b"1", b"2"]),
            (stream(lambda: {1: 2, 3: 4}.values()), [ids(2), ids(4)]),
            (stream(lambda: generator(generator(1))), type_error("generator")),
        ],
    ),
    Row(
        "a list, a tuple of pieces", "the same", "stream",
        [
            (stream(lambda: ["ab", b"c"], 9), [b"ab", b"c"]),
            (stream(lambda: list(FLOATS), 9), [FLOATS[:1], FLOATS[1:]]),
            (stream(lambda: ([1, 2], [3]), 9), [ids(1, 2), ids(3)]),
            (stream(lambda: [[1.0, 2.0]]), [FLOATS[:1]]),
            (stream(lambda: ["ab", [1]]), [b"a", b"b", ids(1)]),
        ],
    ),
    Row(
        "nothing: `\"\"`, `b\"\"`, `[]`, an empty array", "refused", "step, batch",
        [
            (step(""), value_error("there are no tokens")), (step(b""), value_error("no tokens")),
            (step([]), value_error("no tokens")), (step(np.zeros((0, 2))), value_error("no tokens")),
            (step(np.zeros(0)), value_error("no tokens")), (step(range(0)), value_error("no tokens")),
            (batch(b""), value_error("0 bytes for 2")), (batch([]), value_error("shape")),
            (batch(np.zeros((2, 0), int)), value_error("shape")),
            (batch(["", ""]), value_error("0 bytes")),
        ],
    ),
    Row(
        "the same", "no piece", "stream",
        [
            (stream(lambda: ""), []), (stream(list), []), (stream(lambda: generator("", "a", [])), [b"a"]),
            (stream(lambda: np.zeros((0, 2))), []),
        ],
    ),
    # -- rows of a batch
    Row(
        "`bytes`, `bytearray`, `memoryview` of B * T bytes", "T bytes of text for each, row after row",
        "batch",
        [
            (batch(b"abcd"), b"abcd"), (batch(bytearray(b"ab")), b"ab"), (batch(memoryview(b"ab")), b"ab"),
            (batch(b"abc"), value_error("3 bytes for 2 sessions, expected as many for each")),
        ],
    ),
    Row(
        "list or tuple of B texts of T bytes", "one text for each", "batch",
        [
            (batch(["ab", b"cd"]), b"abcd"), (batch(("a", "b")), b"ab"),
            (batch(["ab", "c"]), value_error("2 texts of 1, 2 bytes for 2")),
            (batch(["é", "a"]), value_error("texts of 1, 2 bytes")),
            (batch(["ab"]), value_error("1 texts")), (batch(["a", 1]), type_error("text")),
        ],
    ),
    Row(
        "one `str`", "refused: of bytes it is plain which are whose", "batch",
        [
            (batch("ab"), type_error("one str, expected bytes, or a str for each")),
            (batch("a", 1), type_error("str")),
        ],
    ),
    Row(
        "integers (B,) or (B, T)", "ids", "batch",
        [
            (batch([1, 2]), ids(1, 2)[:, None]), (batch(TURNED[:2]), TURNED[:2]),
            (batch(range(2)), ids(0, 1)[:, None]),
            (batch([np.array([1, 2]), np.array([3, 4])]), np.array([[1, 2], [3, 4]])),
            (batch(np.asfortranarray(TURNED[:2])), TURNED[:2]),
            (batch(np.array([[1, 2]]), 1), np.array([[1, 2]])), (batch(TURNED.T), TURNED.T.copy()),
        ],
    ),
    Row(
        "integers of another shape: (T, B), (B * T,), (1, B)", "refused, unless T is B", "batch",
        [
            (batch(TURNED), value_error(r"ids have the shape \(3, 2\), expected \(2,\) or \(2, T\)")),
            (batch([1, 2, 3, 4]), value_error(r"\(4,\), expected \(2,\) or \(2, T\)")),
            (batch([[1, 2]]), value_error(r"\(1, 2\)")), (batch(5), value_error(r"shape \(\)")),
            (batch(5, 1), value_error(r"shape \(\), expected \(1,\)")),
            (batch([1, 2], 1), value_error(r"expected \(1,\) or \(1, T\)")),
            (batch(np.ones((2, 1, 1), int)), value_error("shape")),
        ],
    ),
    Row(
        "floats (B, width) or (B, T, width)", "features; another shape is refused", "batch",
        [
            (batch(ROWS_OF_TWO), ROWS_OF_TWO[:, None]),
            (batch(ROWS_OF_TWO[:, None].astype(float)), ROWS_OF_TWO[:, None]),
            (batch(ROWS_OF_TWO.reshape(2, 3, 1)), ROWS_OF_TWO[..., None]),
            (batch(list(ROWS_OF_TWO)), ROWS_OF_TWO[:, None]),
            (batch(ROWS_OF_TWO.reshape(3, 2)), value_error(r"expected \(2, width\) or \(2, T, width\)")),
            (batch([1.0, 2.0]), value_error("shape")),
            (batch(np.ones((1, 1, 2, 1))), value_error("shape")),
            (batch(np.ones((2, 0, 1))), value_error("shape")),
        ],
    ),
    # -- states
    Row(
        "an array, also big-endian or not contiguous", "it, in its dtype, which must be the model's",
        "state",
        [
            (state(FLOATS), FLOATS), (state(FLOATS.astype(">f4")), FLOATS),
            (state(FLOATS.T), FLOATS.T.copy()), (state(np.ones(2)), np.ones(2)),
            (state(np.array([True])), np.array([True])), (state(np.float16([1])), np.float16([1])),
            (state(np.array([1], ">i8")), ids(1)), (state(np.asfortranarray(FLOATS)), FLOATS),
            (state(np.float32(1)), np.array(1, np.float32)), (state(np.int32([1])), np.int32([1])),
        ],
    ),
    Row(
        "lists and numbers of Python", "float32 for floats, int64 for integers, bool for bools", "state",
        [
            (state([1.0, 2.0]), features(1, 2)), (state(([1, 2],)), ids([1, 2])),
            (state([True]), np.array([True])), (state(1.0), np.array(1, np.float32)),
            (state(1), np.array(1)), (state(array.array("f", [1])), features(1)),
            (state([1e39]), value_error("1e\\+39")),
        ],
    ),
    Row(
        "an array of a dtype that states do not have; text", "refused", "state",
        [
            (state(np.uint16([1])), type_error("values of the state 'h': the dtype is uint16, expected")),
            (state("ab"), type_error("text")), (state(b"ab"), type_error("text")),
            (state(np.array(["a"])), type_error("text")), (state(np.longdouble([1])), type_error("dtype")),
            (state(1j), type_error("complex")),
        ],
    ),
    Row(
        "`None`, `{}`", "the model's own initial state", "initial_state",
        [
            (states(None), []), (states({}), []),
        ],
    ),
    Row(
        "no mapping from names", "refused", "initial_state",
        [
            (states([1.0]), type_error("initial_state is a list")),
            (states({1: FLOATS}), type_error("by name")), (states(FLOATS), type_error("ndarray")),
            (states("h"), type_error("str")), (states([("h", 1)]), type_error("list")),
        ],
    ),
    # -- session ids and positions
    Row(
        "`str`, a member of an enum of them", "its text", "session id",
        [
            (opened("a"), "a"), (opened(np.str_("a")), "a"), (opened(Kind.READER), "reader"),
            (opened("é\u200d"), "é\u200d"),
            (opened("\ud800"), value_error("surrogates")), (opened_all(np.array(["a", "b"])), ["a", "b"]),
        ],
    ),
    Row(
        "an integer, a `UUID`", "its text: 7 is the session `\"7\"`", "session id",
        [
            (opened(7), "7"), (opened(np.int64(7)), "7"), (opened(Number.SEVEN), "7"), (opened(-1), "-1"),
            (opened(uuid.UUID(int=1)), "00000000-0000-0000-0000-000000000001"),
            (opened_all([1, "a"]), ["1", "a"]), (opened_all(np.arange(2)), ["0", "1"]),
        ],
    ),
    Row(
        "`bytes`, `None`, bools, floats, other objects; `\"\"`", "refused", "session id",
        [
            (lambda: session_opening(""), value_error("expected 1 to 128 characters")),
            (opened(b"a"), type_error("expected str, int or UUID: decode it")),
            (opened(None), type_error("None")), (opened(True), type_error("True")),
            (opened(1.0), type_error("1.0")), (opened(["a"]), type_error("expected str")),
            (opened(np.bool_(1)), type_error("session id")),
            (opened(np.bytes_(b"a")), type_error("decode")), (opened_all(["a", None]), type_error("None")),
            (opened_all([b"a"]), type_error("decode")),
        ],
    ),
    Row(
        "any iterable of one axis", "the ids of the rows", "session_ids",
        [
            (opened_all(["a", "b"]), ["a", "b"]), (opened_all(generator("a", 1)), ["a", "1"]),
            (opened_all(FakeColumn(["a"])), ["a"]), (opened_all(range(2)), ["0", "1"]),
        ],
    ),
    Row(
        "one `str`, `dict`, `set`, a DataFrame; nothing", "refused", "session_ids",
        [
            (opened_all("ab"), type_error("session_ids are a str")),
            (opened_all(b"ab"), type_error("bytes")), (opened_all({"a": 1}), type_error("dict")),
            (opened_all({"a"}), type_error("set")),
            (opened_all(FakeTable({"id": [1]})), type_error(r"the shape \(1, 1\)")),
            (opened_all(None), type_error("None")), (opened_all([]), value_error("no session_ids")),
            (opened_all(np.array([["a"]])), type_error("shape")), (opened_all(7), type_error("int")),
        ],
    ),
    Row(
        "B integers from 0 to 2^53 - 1", "a position for each row; `None` appends", "positions",
        [
            (at([0, 1]), [0, 1]), (at(np.uint8([0, 1])), [0, 1]), (at(range(2)), [0, 1]), (at(None), None),
            (at(FakeColumn([0, 1])), [0, 1]),
        ],
    ),
    Row(
        "anything else; also `[]`", "refused", "positions",
        [
            (at([]), value_error(r"positions have the shape \(0,\), expected \(2,\)")),
            (at([0]), value_error("shape")), (at(0), value_error("shape")),
            (at([0, -1]), value_error("-1")),
            (at([0, 2**53]), value_error("expected 0..9007199254740991")),
            (at([0.0, 1.0]), type_error("float")), (at([True, False]), type_error("bool")),
            (at([0, True]), type_error("bools")), (at([[0], [1]]), value_error("shape")),
            (at(["0", "1"]), type_error("text")),
        ],
    ),
    # -- choices
    Row(
        "one name, several, `True`", "these outputs; all of them", "outputs",
        [
            (outputs("logits"), ["logits"]), (outputs(["a", "b"]), ["a", "b"]),
            (outputs(("a", "b")), ["a", "b"]), (outputs({"b", "a"}), ["a", "b"]), (outputs(True), ["*"]),
            (outputs(np.array(["a"])), ["a"]), (outputs(generator("a")), ["a"]),
            (outputs(Name.LOGITS), ["logits"]), (outputs(np.str_("a")), ["a"]),
            (outputs({"a": 1}.keys()), ["a"]), (outputs(np.True_), ["*"]),
        ],
    ),
    Row(
        "`None`, `False`, `[]`",
        "none, or what the server gives without a choice if nothing else is chosen", "outputs",
        [
            (outputs(None), None), (outputs(False), None), (outputs([]), None),
            (outputs(np.array([])), None),
        ],
    ),
    Row(
        "bytes, numbers, `dict`, lists of other things", "refused", "outputs",
        [
            (outputs(b"a"), type_error("outputs is b'a'")), (outputs(1), type_error("outputs is 1")),
            (outputs({"a": 1}), type_error("expected names")),
            (outputs(["a", 1]), type_error("outputs has 1")), (outputs([b"a"]), type_error("outputs has")),
            (outputs([["a"]]), type_error("outputs has")),
        ],
    ),
    Row(
        "an integer, of Python or numpy, in range", "so many",
        "top_k, chunk, version, max_in_flight, connections, replay_tokens",
        [
            (top(3), 3), (top(np.int64(3)), 3), (top(0), 0), (top(None), None),
            (stream(lambda: "abc", np.int8(2)), [b"ab", b"c"]),
            (lambda: whole_number("chunk", np.array(5), at_least=1), 5),
        ],
    ),
    Row(
        "bools, floats, text, out of range: `chunk=0`, `top_k=-1`", "refused",
        "top_k, chunk, version, max_in_flight, connections, replay_tokens",
        [
            (top(True), type_error("top_k is True, expected an integer")), (top(3.0), type_error("3.0")),
            (top("3"), type_error("'3'")), (top(-1), value_error("top_k is -1, expected at least 0")),
            (top(2**31), value_error("expected at most 2147483647")), (top([3]), type_error("top_k")),
            (stream(lambda: "abc", 0), value_error("chunk is 0, expected at least 1")),
            (stream(lambda: "abc", -1), value_error("chunk is -1")),
            (stream(lambda: "abc", True), type_error("chunk is True")),
            (stream(lambda: generator(), 0), value_error("chunk")),
            (stream(lambda: "a", None), type_error("None")), (top(np.bool_(1)), type_error("top_k")),
            (lambda: AsyncClient("127.0.0.1:1", connections=True), type_error("connections")),
            (lambda: AsyncClient("127.0.0.1:1", connections=0), value_error("connections is 0")),
            (lambda: AsyncClient("127.0.0.1:1", replay_tokens=-1), value_error("replay_tokens")),
            (lambda: batch_message(["a"], b"a", None, model="m", version=-1), value_error("version")),
        ],
    ),
    Row(
        "`True`, `False`, numpy's", "these; anything else is refused",
        "token_log_prob, state, must_be_new, take_over, discard",
        [
            (lambda: flag("state", np.True_), True), (lambda: flag("state", False), False),
            (lambda: selection(None, 1, None, False), type_error("token_log_prob is 1")),
            (lambda: selection(None, False, None, "no"), type_error("state is 'no', expected True")),
        ],
    ),
    Row(
        "a number that is not negative", "seconds; anything else is refused", "timeout_s",
        [
            (lambda: seconds("timeout_s", 1), 1.0), (lambda: seconds("timeout_s", np.float32(0.5)), 0.5),
            (lambda: seconds("timeout_s", -1), value_error("timeout_s is -1")),
            (lambda: seconds("timeout_s", math.nan), value_error("nan")),
            (lambda: seconds("timeout_s", "1"), type_error("'1', expected seconds")),
            (lambda: seconds("timeout_s", True), type_error("True")),
            (lambda: AsyncClient("127.0.0.1:1", timeout_s=-1), value_error("timeout_s")),
        ],
    ),
]  # fmt: skip
