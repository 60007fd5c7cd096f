"""What becomes of chunks when a call fails for good, over every error there is."""

import pytest

from holdfast import errors
from holdfast.client.fate import NOT_NOW, NOT_THERE, UNKNOWING, leaves_unsure, tell_fate, tell_rows
from holdfast.errors import HoldfastError, ServiceError
from holdfast.errors.reference import all_errors
from tests.unit.test_ledger import ASKED, open_ledger, reply_to

KINDS = [*ServiceError.__subclasses__(), *HoldfastError.__subclasses__()]
RETRYABLE = ("UNAVAILABLE", "DEADLINE_EXCEEDED")

MAYBE_APPLIED = (
    errors.AckLevelNotReached, errors.DeadlinePassed, errors.Draining, errors.ServerUnavailable,
    errors.StoreUnavailable,
)  # fmt: skip
"""Errors worth another attempt after which this one may have been applied."""

NOT_THIS_TIME = (
    errors.AckLevelUnsupported, errors.CheckpointNotFound, errors.ChunkPending, errors.ClientForked,
    errors.HistoryConflict, errors.TooManyCheckpoints,
    errors.InvalidRequest, errors.MessageTooLarge, errors.ModelMismatch, errors.ModelNotFound,
    errors.PermissionDenied, errors.PositionConflict, errors.RecordCorrupt, errors.SessionBusy,
    errors.SessionDeleted, errors.SessionExists, errors.Unauthenticated, errors.WrongEventLoop,
)  # fmt: skip
"""Refusals that say of this attempt that it changed nothing, and nothing of earlier ones."""


def test_every_error_has_one_place():
    """Of a new one say what it tells of its chunk: in a tuple of `fate` or in one of these."""
    placed = [*NOT_NOW, *NOT_THERE, *UNKNOWING, *MAYBE_APPLIED, *NOT_THIS_TIME]
    assert sorted(kind.__name__ for kind in placed) == sorted(kind.__name__ for kind in all_errors())


def ledger_with(is_unsure, answered=0):
    ledger = open_ledger()
    for entry in ledger.take([b"ab", b"cd", b"ef"], ASKED):
        if answered:
            ledger.answer(entry, reply_to(entry))
            answered -= 1
        else:
            entry.is_unsure = is_unsure
    return ledger


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", ["ABORTED", "UNAVAILABLE"])
@pytest.mark.parametrize("is_unsure", [False, True])
def test_every_token_is_pending_or_known_not_to_be_applied(kind, code, is_unsure):
    ledger = ledger_with(is_unsure)
    error = kind("it failed", code=code)
    tell_fate(error, ledger)
    chunks = error.pending + error.not_applied
    assert chunks == ((0, b"ab"), (2, b"cd"), (4, b"ef"))
    assert ledger.pending == error.pending
    assert bool(error.pending) != bool(error.not_applied)
    assert str(error).startswith("it failed; 3 chunks of 6 tokens from position 0 on")
    if code in RETRYABLE:
        assert error.pending


@pytest.mark.parametrize("kind", NOT_THIS_TIME)
def test_a_refusal_that_is_not_the_stored_sessions_says_nothing_of_earlier_attempts(kind):
    error = kind("no")
    tell_fate(error, ledger_with(is_unsure=True))
    assert error.pending
    assert "may or may not have been applied" in str(error)
    error = kind("no")
    tell_fate(error, ledger_with(is_unsure=False))
    assert error.not_applied


def test_replies_that_had_come_before_a_refusal_are_not_lost():
    ledger = ledger_with(is_unsure=False, answered=1)
    error = errors.ModelFailed("it raised", code="INTERNAL")
    tell_fate(error, ledger)
    assert (error.pending, error.not_applied) == (((0, b"ab"),), ((2, b"cd"), (4, b"ef")))
    assert "settle() returns the replies to what came before" in str(error)


@pytest.mark.parametrize("kind", [*all_errors(), HoldfastError])
def test_what_an_attempt_says_of_itself(kind):
    unsure = (*MAYBE_APPLIED, errors.InternalFailure, errors.ClientClosed, HoldfastError)
    error = kind("x", retry_after_s=1.0 if kind in NOT_NOW else None)
    assert leaves_unsure(error) == (kind in unsure)


@pytest.mark.parametrize("has_positions", [True, False])
def test_a_batch_of_unknown_fate_says_what_to_do(has_positions):
    error = errors.ServerUnavailable("cut", code="UNAVAILABLE")
    tell_rows(error, has_positions=has_positions)
    assert ("may apply them twice" in str(error)) != has_positions
    refused = errors.InvalidRequest("no", code="INVALID_ARGUMENT")
    tell_rows(refused, has_positions=has_positions)
    assert str(refused) == "no"
