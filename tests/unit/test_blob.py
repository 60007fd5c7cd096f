"""The blob of an exported session: what is damaged or made up is refused, and the message says why."""

import dataclasses
import random

import numpy as np
import pytest
import xxhash

from holdfast.errors import InvalidRequest, ModelMismatch, StateNotFinite
from holdfast.v1 import holdfast_pb2 as pb
from service.engine.imported import check_imported
from service.engine.rules import MAX_KEPT_REPLIES, MAX_KEPT_REPLY_BYTES
from service.engine.sampling import NOTHING
from service.model.contract import OutputSpec
from service.rpc.request_size import largest_request_bytes
from service.store.beside import MAX_CURSOR_BYTES
from service.store.blob import FORMAT, BlobError, Exported, decode_blob, encode_blob
from service.store.outputs import DTYPE_NUMBERS, Outputs, encode_outputs
from service.store.record import KeptReply, Record
from tests.support.fakes import SUM_CONTRACT, AccumulatorModel, FakeModels

MODELS = FakeModels(AccumulatorModel())
STATE = np.array([7, 3], np.float32).tobytes()


def outputs(token_count, *, state=False):
    """Returns outputs as they are stored, with a field of every kind."""
    ids = np.arange(2 * token_count, dtype=np.int32).reshape(token_count, 2)
    log_probs = -np.ones((token_count, 2), np.float32)
    total = np.arange(token_count, dtype=np.float32)
    after = {"sum": np.ones((1, 2), np.float32)} if state else {}
    return encode_outputs(Outputs(1, token_count, ids, log_probs, total, {"total": total}, after))[
        0
    ].tobytes()


REPLIES = (
    KeptReply(1, 1, 11, 12, outputs(1)),
    KeptReply(3, 2, 12, 13, outputs(2, state=True)),
)
RECORD = Record(9, 3, AccumulatorModel.fingerprint, STATE, REPLIES, digest=13, nonce=4)
EXPORTED = Exported("sum", 1, RECORD, b"line 7")
BLOB = encode_blob(EXPORTED)


def with_checksum(data):
    return data + xxhash.xxh3_64_intdigest(data).to_bytes(8, "little")


def test_what_was_encoded_is_decoded_without_what_belongs_to_its_place():
    decoded = decode_blob(BLOB)
    assert decoded == EXPORTED._replace(record=RECORD._replace(incarnation=1, nonce=0))
    assert encode_blob(decoded) == BLOB
    assert check_imported(decoded, MODELS) is MODELS.model


def test_every_flipped_bit_is_refused():
    for place in range(len(BLOB)):
        for bit in range(8):
            damaged = bytearray(BLOB)
            damaged[place] ^= 1 << bit
            with pytest.raises(BlobError):
                decode_blob(bytes(damaged))


def test_every_cut_and_every_appendix_is_refused():
    for end in range(len(BLOB)):
        with pytest.raises(BlobError):
            decode_blob(BLOB[:end])
    for more in (b"\0", b"\n", BLOB):
        with pytest.raises(BlobError):
            decode_blob(BLOB + more)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "starts with b''"),
        (b"PK\x03\x04" + bytes(80), "starts with b'PK"),
        (BLOB[:20], "was cut off"),
        (BLOB[:-1], "does not match|do not match their checksum"),
        (
            with_checksum(BLOB[:4] + (FORMAT + 1).to_bytes(2, "little") + BLOB[6:-8]),
            "has format 2, this server",
        ),
        (with_checksum(BLOB[:6] + b"\xff\xff" + BLOB[8:-8]), "its record would begin at 65"),
        (with_checksum(BLOB[:18] + b"\xff" + BLOB[19:-8]), "not UTF-8"),
        (with_checksum(BLOB[:27] + BLOB[28:-8]), "in it, record starts with"),
    ],
)
def test_the_message_says_what_is_wrong(data, why):
    with pytest.raises(BlobError, match=why):
        decode_blob(data)


def imported(**fields):
    """Checks what is in a blob whose checksums are right, but for some fields of its record."""
    blob = encode_blob(EXPORTED._replace(record=RECORD._replace(**fields)))
    return check_imported(decode_blob(blob), MODELS)


def with_reply(number, **fields):
    replies = list(REPLIES)
    replies[number] = replies[number]._replace(**fields)
    return tuple(replies)


INFINITE = np.array([7, np.inf], np.float32).tobytes()
MANY = tuple(KeptReply(place + 1, 1, 100 + place, 101 + place, outputs(1)) for place in range(65))
MADE_UP = {
    "a model that nobody has": ({"fingerprint": bytes(32)}, ModelMismatch, "'sum' version 1"),
    "a state of another size": ({"state": STATE[:4]}, InvalidRequest, "4 bytes of state, sum"),
    "a state that is not finite": ({"state": INFINITE}, StateNotFinite, "state 'sum' of the blob"),
    "a tombstone": ({"deleted": True}, InvalidRequest, "deleted"),
    "a session in quarantine": ({"quarantine_reason": "it fails"}, InvalidRequest, "in quarantine"),
    "no digest": ({"digest": 0, "replies": ()}, InvalidRequest, "without a history digest"),
    "too many replies": ({"replies": MANY, "position": 65, "digest": 165}, InvalidRequest, "keeps 65"),
    "a reply that is too large": (
        {"replies": with_reply(1, outputs=bytes(65 << 10))}, InvalidRequest, "expected at most 64 of 65536",
    ),
    "a reply to another position": ({"replies": with_reply(1, position=4)}, InvalidRequest, "not lead to"),
    "a reply with another history": ({"replies": with_reply(1, digest=14)}, InvalidRequest, "not lead to"),
    "a gap between replies": ({"replies": with_reply(0, position=2)}, InvalidRequest, "not lead to"),
    "replies of two histories": ({"replies": with_reply(0, digest=99)}, InvalidRequest, "not lead to"),
    "a reply without tokens": ({"replies": with_reply(1, token_count=0)}, InvalidRequest, "not lead to"),
    "a reply from before 0": ({"replies": with_reply(1, token_count=4)}, InvalidRequest, "not lead to"),
    "a reply that is no message": ({"replies": with_reply(1, outputs=b"\xff")}, InvalidRequest, "cannot"),
    "a reply to other tokens": ({"replies": with_reply(1, outputs=outputs(1))}, InvalidRequest, "cannot"),
    "a reply with a field more": (
        {"replies": with_reply(1, outputs=outputs(2) + b"\xfd\x7f\1\2\3\4")}, InvalidRequest, "cannot",
    ),
    "a reply in another order": (
        {"replies": with_reply(0, outputs=outputs(1)[2:] + outputs(1)[:2])}, InvalidRequest, "cannot",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "kind", "why"), MADE_UP.values(), ids=MADE_UP)
def test_a_blob_that_was_made_up_is_refused(fields, kind, why):
    with pytest.raises(kind, match=why) as caught:
        imported(**fields)
    assert caught.value.field == "blob"


LOGITS = OutputSpec("logits", np.dtype("<f4"), (4,), "logits")
TOTAL = SUM_CONTRACT.outputs[0]


def generated(contract, *, ids=(), top_k=0, tensors=()):
    """Checks a blob for a model with this contract, whose last reply is the one to a generated token."""
    reply = pb.Outputs(token_count=2, top_k=top_k, tensors=tensors)
    reply.sampled_ids.extend(ids)
    reply.sampled_log_probs.extend([-1.0] * len(ids))
    model = AccumulatorModel()
    model.contract = contract
    replies = with_reply(1, outputs=reply.SerializeToString())
    check_imported(EXPORTED._replace(record=RECORD._replace(replies=replies)), FakeModels(model))


@pytest.mark.parametrize("number", [4, -2, 2**31 - 1, -(2**31)])
def test_a_token_that_the_model_does_not_have_was_not_drawn(number):
    contract = dataclasses.replace(SUM_CONTRACT, outputs=(TOTAL, LOGITS))
    for right in (0, 3, NOTHING):
        generated(contract, ids=[right])
    with pytest.raises(InvalidRequest, match="a reply to position 3 that this server cannot read"):
        generated(contract, ids=[number])
    with pytest.raises(InvalidRequest, match="cannot read"):
        generated(SUM_CONTRACT, ids=[0])


@pytest.mark.parametrize("top_k", [1, -1])
def test_a_reply_has_as_many_candidates_as_it_says(top_k):
    generated(SUM_CONTRACT)
    with pytest.raises(InvalidRequest, match="cannot read"):
        generated(SUM_CONTRACT, top_k=top_k)


@pytest.mark.parametrize(
    ("dtype", "shape"), [("float32", (2, 2)), ("float32", (2, 1)), ("bool", (2,)), ("float64", (2,))]
)
def test_what_is_the_next_input_has_the_form_of_the_output(dtype, shape):
    contract = dataclasses.replace(SUM_CONTRACT, feedback=TOTAL)

    def named(dtype, shape):
        data = np.zeros(shape, dtype).tobytes()
        tensor = pb.Tensor(dtype=DTYPE_NUMBERS[dtype], shape=shape, data=data)
        return [pb.NamedTensor(name=TOTAL.name, tensor=tensor)]

    generated(contract, tensors=named("float32", (2,)))
    with pytest.raises(InvalidRequest, match="cannot read"):
        generated(contract, tensors=named(dtype, shape))


def test_a_server_takes_a_message_with_the_largest_session_of_its_models():
    state = dataclasses.replace(SUM_CONTRACT.states[0], shape=(1 << 20,))
    contract = dataclasses.replace(SUM_CONTRACT, states=(state,))
    replies = tuple(KeptReply(place, 1, place, place, bytes(1024)) for place in range(MAX_KEPT_REPLIES))
    assert sum(len(reply.outputs) for reply in replies) == MAX_KEPT_REPLY_BYTES
    record = RECORD._replace(state=bytes(contract.state_bytes), replies=replies)
    blob = encode_blob(Exported("m" * 128, 1, record, bytes(MAX_CURSOR_BYTES)))
    message = pb.ImportSessionRequest(session_id="\U0001f600" * 128, blob=blob, nonce=2**53 - 1)
    assert message.ByteSize() <= largest_request_bytes([contract], max_chunk_tokens=1, max_rows=1)


def test_a_cursor_that_is_too_long_is_refused():
    with pytest.raises(InvalidRequest, match="its cursor has 257 bytes, expected at most 256"):
        check_imported(EXPORTED._replace(cursor=bytes(257)), MODELS)


def test_outputs_with_tensors_that_lie_are_refused():
    """One byte of a tensor's shape or type is another, and the checksums are right."""
    good, refused = outputs(2, state=True), 0
    rng = random.Random(1)
    for _ in range(2000):
        data = bytearray(good)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            imported(replies=with_reply(1, outputs=bytes(data)))
        except InvalidRequest:
            refused += 1
        else:  # only numbers may differ: as long, and laid out alike
            assert len(data) == len(good)
    assert refused > 200
