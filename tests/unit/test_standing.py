"""Where the sessions of a batch stand: by numbers, or by what the server told."""

import numpy as np
import pytest

from holdfast.client.batch_reply import BatchReply
from holdfast.client.batching import batch_message
from holdfast.client.opened_batch import OpenedBatch
from holdfast.client.standing import Standing, standing_of
from holdfast.errors import SessionDeleted
from holdfast.v1 import holdfast_pb2 as pb
from service.rpc.status import to_status

IDS = ["a", "b"]
COLUMNS = {"positions": [1, 2], "incarnations": [5, 6], "history_digests": [8, 9]}


def test_numbers_are_taken_as_they_are():
    assert standing_of(IDS, [1, 2]) == Standing([1, 2])
    assert standing_of(IDS, np.array([1, 2])) == Standing([1, 2])
    assert standing_of(IDS, None) == Standing(None)


@pytest.mark.parametrize("wrong", [[], [1], [1, 2, 3], np.array([], np.int64)])
def test_another_number_of_positions_is_refused(wrong):
    """An empty list is not `None`: it would be sent as "append", and repeated as if it were safe."""
    with pytest.raises(ValueError, match=r"positions have the shape"):
        standing_of(IDS, wrong)


def test_a_position_that_is_no_integer_is_refused():
    with pytest.raises(TypeError):
        standing_of(IDS, [1.0, 2])


@pytest.mark.parametrize(
    "told",
    [
        OpenedBatch(IDS, pb.OpenBatchResponse(**COLUMNS)),
        BatchReply(pb.BatchResult(**COLUMNS), IDS),
    ],
)
def test_what_a_server_told_names_the_histories_too(told):
    standing = standing_of(IDS, told)
    assert standing == Standing([1, 2], [5, 6], [8, 9])
    batch = batch_message(IDS, b"xy", told, model="m")
    assert list(batch.positions) == [1, 2]
    assert (list(batch.incarnations), list(batch.history_digests)) == ([5, 6], [8, 9])
    for others in (["b", "a"], ["a"], ["a", "c"]):
        with pytest.raises(ValueError, match="of other sessions than these, or in another order"):
            standing_of(others, told)


def test_rows_that_failed_are_named():
    status = to_status(SessionDeleted("over"))
    told = BatchReply(pb.BatchResult(**COLUMNS, errors=[pb.RowError(row=1, status=status)]), IDS)
    with pytest.raises(ValueError, match=r"'b' \(SESSION_DELETED\)"):
        standing_of(IDS, told)
