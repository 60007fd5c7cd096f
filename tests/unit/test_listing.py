"""Lists: their patterns and tokens, and pages of a store that is looked through bit by bit."""

import base64
import itertools
from types import SimpleNamespace

import pytest

from holdfast.errors import InvalidRequest, ModelNotFound
from holdfast.v1 import holdfast_pb2 as pb
from service.engine.listing import MAX_SCANS, MOST_LEFT, SCAN_COUNT, PagePlace, SessionList, Wanted
from service.rpc.lists import DEFAULT_PAGE, MAX_PAGE, page_size, to_wanted
from service.rpc.page_token import decode_token, encode_token
from service.store.head import HEAD_BYTES, decode_head, decode_reason
from service.store.keys import KeySpace, session_id_of, session_key, session_pattern
from service.store.protocol import KeyedHead, ScanPlace
from service.store.record import Record, encode
from service.store.replies import scanned_of
from tests.support.fakes import AccumulatorModel, FakeModels

LAYOUT = b"8 bytes."
EVERYTHING = Wanted("acme", "", "sum")
WANTED = Wanted("acme", "a*", "sum", 1, 2.5)
PLACE = PagePlace(ScanPlace(LAYOUT, 2, 2**64 - 1), ("a*1", "a*é"))


class ScannedStore:
    """A store whose SCAN goes through its sessions in order, some of them of other tenants."""

    def __init__(self, sessions):
        self.sessions = sessions  # (id, idle seconds) or None for another tenant's
        self.scans = []

    def first_place(self):
        return ScanPlace(LAYOUT)

    async def scan(self, pattern, place, count):
        self.scans.append(count)
        end = place.cursor + count
        found = [
            session_key("acme", one[0]) for one in self.sessions[place.cursor : end] if one is not None
        ]
        return found, place._replace(cursor=end) if end < len(self.sessions) else None

    async def heads(self, keys, *, with_idle):
        idle = dict(filter(None, self.sessions))
        heads = []
        for key in keys:
            record = Record(7, 3, AccumulatorModel.fingerprint, b"", digest=1)
            head = decode_head(encode(record)[:HEAD_BYTES])
            heads.append(KeyedHead(key, head, 60.0 - idle[session_id_of(key)], None))
        return heads


async def pages(sessions, size, wanted=EVERYTHING):
    """Returns the ids of each page, and the store."""
    store, found = ScannedStore(sessions), []
    listing = SessionList(FakeModels(AccumulatorModel()), store, ttl_s=60)
    place = listing.beginning()
    while place is not None:
        page, place = await listing.page(wanted, place, size)
        assert len(page) <= size
        assert place is None or len(place.found) <= MOST_LEFT, "a token stays short"
        found.append([one.session_id for one in page])
    return found, store


@pytest.mark.parametrize("size", [1, 3, 100, 1000])
@pytest.mark.parametrize("gap", [0, 40])
async def test_every_session_is_on_one_page(size, gap):
    """Also where more are found than fit on a page, and where few are among many others."""
    sessions = []
    for number in range(500):
        sessions += [(f"s{number}", 0.0), *[None] * gap]
    found, store = await pages(sessions, size)
    assert [*itertools.chain(*found)] == [f"s{number}" for number in range(500)]
    assert max(store.scans) <= max(SCAN_COUNT, size)
    assert len(store.scans) < 40 + 3 * len(sessions) / min(SCAN_COUNT, MOST_LEFT)


async def test_a_page_looks_through_a_bounded_number_of_keys():
    found, store = await pages([None] * (SCAN_COUNT * MAX_SCANS + 1), 10)
    assert found == [[], []]
    assert len(store.scans) == MAX_SCANS + 1


async def test_idle_time_and_model_choose_among_what_is_found():
    sessions = [(f"s{number}", float(number)) for number in range(50)]
    found, _ = await pages(sessions, 7, WANTED._replace(min_idle_s=45.0))
    assert [*itertools.chain(*found)] == ["s45", "s46", "s47", "s48", "s49"]
    assert max(map(len, found)) <= 7
    assert await pages(sessions, 7, WANTED._replace(model_version=2)) != []
    with pytest.raises(ModelNotFound):
        await pages(sessions, 7, WANTED._replace(model_name="other"))


def test_a_pattern_means_a_prefix_and_a_key_gives_its_id():
    assert session_pattern("acme", "a[b]*?\\x") == b"holdfast:v1:{acme:a\\[b\\]\\*\\?\\\\x*}"
    for session_id in ("plain", "a:b", "}", "{}", "é", "}:set-aside"):
        key = session_key("acme", session_id)
        assert session_id_of(key) == session_id
        other = KeySpace("team.b")
        assert list(other.original(other.placed([key]))) == [key]


def test_a_token_leads_to_where_its_page_begins():
    token = encode_token(PLACE, WANTED, LAYOUT)
    assert decode_token(token, WANTED, LAYOUT) == PLACE
    for place in (
        PagePlace(None, ("a",)),
        PagePlace(ScanPlace(LAYOUT, 0, 5)),
        PagePlace(ScanPlace(LAYOUT)),
    ):
        assert decode_token(encode_token(place, WANTED, LAYOUT), WANTED, LAYOUT) == place


TOKEN = encode_token(PLACE, WANTED, LAYOUT)
RAW = base64.urlsafe_b64decode(TOKEN + "=" * (-len(TOKEN) % 4))


def test_every_flipped_bit_of_a_token_is_refused():
    for place in range(len(RAW)):
        for bit in range(8):
            damaged = bytearray(RAW)
            damaged[place] ^= 1 << bit
            with pytest.raises(InvalidRequest, match="page_token"):
                decode_token(base64.urlsafe_b64encode(damaged).decode().rstrip("="), WANTED, LAYOUT)


@pytest.mark.parametrize(
    "token", ["", "x", "é", "=", TOKEN[:-1], TOKEN + "A", TOKEN + "=", " " + TOKEN, "AAAA" * 9]
)
def test_another_text_is_no_token(token):
    with pytest.raises(InvalidRequest) as caught:
        decode_token(token, WANTED, LAYOUT)
    assert caught.value.field == "page_token"


@pytest.mark.parametrize(
    "wanted",
    [
        WANTED._replace(tenant="other"),
        WANTED._replace(prefix="a"),
        WANTED._replace(model_name=""),
        WANTED._replace(model_version=2),
        WANTED._replace(min_idle_s=2.0),
        Wanted("acm", "ea*", "sum", 1, 2.5),
    ],
)
def test_a_token_of_another_list_or_other_servers_is_refused(wanted):
    with pytest.raises(InvalidRequest, match="another list"):
        decode_token(TOKEN, wanted, LAYOUT)
    with pytest.raises(InvalidRequest, match="started anew"):
        decode_token(TOKEN, WANTED, b"8 others")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ListSessionsRequest(prefix="a" * 129), "prefix"),
        (pb.ListSessionsRequest(model=pb.ModelRef(version=1)), "model.name"),
        (pb.ListSessionsRequest(model=pb.ModelRef(name="m", version=-1)), "model.version"),
        (pb.ListSessionsRequest(min_idle_s=-1), "min_idle_s"),
        (pb.ListSessionsRequest(min_idle_s=float("nan")), "min_idle_s"),
        (pb.ListSessionsRequest(min_idle_s=float("inf")), "min_idle_s"),
        (pb.ListSessionsRequest(page_size=-1), "page_size"),
        (pb.ListSessionsRequest(page_size=MAX_PAGE + 1), "page_size"),
    ],
)
def test_a_list_that_could_not_be_is_refused(request_, field):
    with pytest.raises(InvalidRequest) as caught:
        page_size(request_), to_wanted(request_, "acme")
    assert caught.value.field == field
    assert page_size(pb.ListSessionsRequest()) == DEFAULT_PAGE


def test_the_head_of_a_record_is_that_of_a_live_session_or_nothing():
    record = Record(7, 3, bytes(32), b"state", digest=9)
    head = decode_head(encode(record)[:HEAD_BYTES])
    assert head[:4] == (7, 3, 9, bytes(32))
    held = encode(record._replace(quarantine_reason="it fails"))
    start = decode_head(held[:HEAD_BYTES]).reason_start
    assert decode_reason(held[start:]) == "it fails"
    assert decode_reason(held[start : start + 6]) == "it"
    assert decode_reason(b"") == ""
    for other in (record._replace(deleted=True), record._replace(position=2**53)):
        assert decode_head(encode(other)[:HEAD_BYTES]) is None
    assert decode_head(b"HFR2") is decode_head(bytes(HEAD_BYTES)) is None


def test_a_reply_to_scan_that_cannot_be_one():
    assert scanned_of([b"7", [b"a"]]) == (7, [b"a"])
    for reply in (
        None,
        b"",
        [],
        [b"7"],
        [7, []],
        [b"x", []],
        [b"7", [None]],
        [b"7", b"a"],
        SimpleNamespace(),
    ):
        with pytest.raises((ValueError, TypeError)):
            scanned_of(reply)
