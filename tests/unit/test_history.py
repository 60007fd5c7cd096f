"""The history file: what is written is read, whoever wrote it and wherever it was cut off."""

import asyncio
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.client.history import FAILURE, REPLY, START, Recorder, read_frames
from holdfast.client.tokens import to_tensor
from holdfast.errors import PositionGap
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.verify.reading import Histories, _rows_of


def chunk(position, text=b"ab"):
    tokens = pb.Tokens(text=text)
    return pb.StepRequest(chunk=pb.Chunk(session_id="s", position=position, tokens=tokens, tag=3))


def reply(position):
    outputs = pb.Outputs(token_count=2, token_log_probs=[-0.1, -1e-7])
    return pb.StepResponse(
        result=pb.ChunkResult(session_id="s", incarnation=9, position=position, tag=3, outputs=outputs)
    )


def write(path):
    recorder = Recorder(path)
    recorder.got(recorder.sent("Step", chunk(0)), reply(2))
    recorder.failed(
        recorder.sent("Step", chunk(8)),
        PositionGap("tokens are missing", expected_position=2),
    )
    recorder.failed(recorder.sent("Step", chunk(2)), asyncio.CancelledError())
    recorder.sent("Step", chunk(2, b"cd"))
    assert recorder.sent("ListModels", pb.ListModelsRequest()) == 0
    recorder.got(0, pb.ListModelsResponse())
    recorder.close()


def test_what_was_recorded_is_read(tmp_path):
    write(tmp_path / "history")
    history = Histories([tmp_path / "history"]).sessions["s"].history
    first, gap, cancelled, unanswered = history.attempts
    assert first.tokens.tolist() == list(b"ab")
    assert (first.reply.position, first.reply.incarnation, first.reply.is_foreign) == (2, 9, False)
    assert first.reply.outputs.token_log_probs.tolist() == list(reply(2).result.outputs.token_log_probs)
    assert first.time_s <= first.reply.time_s <= gap.time_s
    assert (gap.reason, gap.expected_position, gap.reply) == ("POSITION_GAP", 2, None)
    assert (cancelled.reason, cancelled.expected_position) == ("CANCELLEDERROR", None)
    assert (unanswered.reason, unanswered.reply) == ("", None)


def opening(reply=None, *, nonce=0):
    """Returns OpenBatch of three sessions, and its reply: one is new, one was there, one is refused."""
    request = pb.OpenBatchRequest(
        model=pb.ModelRef(name="m"), session_ids=["new", "there", "refused"], nonce=nonce
    )
    reply = pb.OpenBatchResponse(
        positions=[0, 7, 0], incarnations=[5, 6, 0], history_digests=[11, 12, 0], model_versions=[2, 3, 0],
        resumed_rows=[1], errors=[pb.RowError(row=2)],
    )  # fmt: skip
    return request, reply


def test_sessions_opened_together_are_read(tmp_path):
    recorder = Recorder(tmp_path / "history")
    request, answer = opening(nonce=9)
    for error in (asyncio.CancelledError(), PositionGap("any other")):
        recorder.failed(recorder.sent("OpenBatch", request), error)
    recorder.sent("OpenBatch", opening()[0])
    recorder.got(recorder.sent("OpenBatch", request), answer)
    recorder.close()
    sessions = Histories([tmp_path / "history"]).sessions
    new, there, refused = (sessions[name] for name in request.session_ids)
    [sight] = new.history.sights
    assert (sight.incarnation, sight.position, sight.digest, sight.is_opening) == (5, 0, 11, True)
    assert (new.model.name, new.model.version) == ("m", 2)
    [sight] = there.history.sights
    assert (sight.incarnation, sight.position, sight.digest, sight.is_opening) == (6, 7, 12, False)
    assert refused.history.sights == []
    # the reply tells what became of earlier attempts of the same opening, and of no other
    assert [len(session.history.openings) for session in (new, there, refused)] == [1, 1, 4]


def test_a_replay_of_a_request_for_other_outputs_is_read_as_what_it_was(tmp_path):
    recorder = Recorder(tmp_path / "history")
    batch = pb.Batch(session_ids=["s", "t"], text=b"ab", positions=[0, 0])
    outputs = [pb.Outputs(token_count=count, token_log_probs=[-count]) for count in (2, 1)]
    outputs[0].token_log_probs.append(0)
    result = pb.BatchResult(
        positions=[1, 1], incarnations=[3, 4], history_digests=[5, 6], replayed_rows=[1],
        outputs=outputs[0], separate_rows=[pb.SeparateRow(row=1, model_version=7, outputs=outputs[1])],
    )  # fmt: skip
    number = recorder.sent("StepBatch", pb.StepBatchRequest(batch=batch))
    recorder.got(number, pb.StepBatchResponse(result=result))
    recorder.close()
    sessions = Histories([tmp_path / "history"]).sessions
    replies = [sessions[name].history.attempts[0].reply for name in "st"]
    assert [reply.outputs.token_log_probs.tolist() for reply in replies] == [[-2], [-1]]
    assert [reply.digest for reply in replies] == [5, 6]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000))
def test_a_history_may_end_anywhere(tmp_path, cut):
    """The client was killed, or the machine."""
    path, whole = tmp_path / "cut", tmp_path / "whole"
    if not whole.exists():
        write(whole)
    data = whole.read_bytes()
    path.write_bytes(data[: min(cut, len(data))])
    frames = list(read_frames(whole))
    try:
        found = list(read_frames(path))
    except ValueError:
        assert cut < 100  # not even the first frame is there
    else:
        assert found == frames[: len(found)]
        assert [frame.kind for frame in frames] == [START, 19, REPLY, 19, FAILURE, 19, FAILURE, 19]


def test_recorders_share_a_file_and_their_numbers_do_not_clash(tmp_path):
    for _ in range(2):
        write(tmp_path / "history")
    assert len(Histories([tmp_path / "history"]).sessions["s"].history.attempts) == 8


def test_other_files_are_told_apart(tmp_path):
    (tmp_path / "text").write_text("this is no history at all, and long enough to look like one")
    with pytest.raises(ValueError, match="is not a history"):
        list(read_frames(tmp_path / "text"))


def test_only_its_owner_may_read_it(tmp_path):
    Recorder(tmp_path / "history").close()
    assert os.stat(tmp_path / "history").st_mode & 0o777 == 0o600


def test_a_full_disk_is_not_passed_over():
    with pytest.raises(OSError, match="No space left"):
        Recorder("/dev/full")


def test_answers_that_come_once_a_chunk_are_read_as_one_row_each():
    """Two rows of three tokens; `kind` belongs to the last token, as the classes do, `score` to each."""
    arrays = {"kind": np.array([[1, 2], [3, 4]], np.float32), "score": np.arange(6, dtype=np.float32)}
    tensors = [pb.NamedTensor(name=name, tensor=to_tensor(array)) for name, array in arrays.items()]
    outputs = pb.Outputs(
        token_count=6, top_k=2, top_ids=[3, 1, 0, 2], top_log_probs=[-1, -2, -3, -4], tensors=tensors
    )
    first, second = _rows_of(pb.BatchResult(outputs=outputs), 2)
    assert (first.token_count, second.token_count) == (3, 3)
    assert (first.top_ids.tolist(), second.top_ids.tolist()) == ([[3, 1]], [[0, 2]])
    assert second.top_log_probs.tolist() == [[-3, -4]]
    assert second.tensors["kind"].tolist() == [[3, 4]]
    assert second.tensors["score"].tolist() == [3, 4, 5]


def test_what_was_put_back_is_read_with_the_attempts_that_had_no_answer(tmp_path):
    recorder = Recorder(tmp_path / "history")
    for nonce in (5, 5, 6):
        request = pb.RestoreCheckpointRequest(session_id="s", name="here", nonce=nonce)
        last = recorder.sent("RestoreCheckpoint", request)
        if nonce == 5:
            recorder.failed(last, asyncio.CancelledError())
    request = pb.RestoreCheckpointRequest(session_id="s", name="here", nonce=5)
    number = recorder.sent("RestoreCheckpoint", request)
    session = pb.Session(session_id="s", incarnation=8, position=4, history_digest=77)
    recorder.got(number, pb.RestoreCheckpointResponse(session=session))
    recorder.close()
    history = Histories([tmp_path / "history"]).sessions["s"].history
    [sight] = history.sights
    assert (sight.incarnation, sight.position, sight.digest) == (8, 4, 77)
    assert sight.was_put_back
    assert sight.asked_s < history.restores[0] < sight.sent_s
    assert len(history.restores) == 1
