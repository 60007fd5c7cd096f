"""Generate over a socket: the tokens are those of a loop around onnxruntime that nothing interrupts."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from holdfast.client.generated import events_of
from holdfast.client.status import from_rpc
from holdfast.history_digest import INITIAL, digest_after
from holdfast.v1 import holdfast_pb2 as pb
from tests.rpc.conftest import Rpc
from tests.support.generation_oracle import Loop
from tests.support.models import CONTRACT, write_features_model, write_poison_model
from tests.support.oracle import MODELS
from tests.support.server import ServerProcess, value
from tests.support.waiting import wait_for

MODEL, WORDS = "python-source", "docstring-words"
PROMPT = b"def main("
STOP, MAX, PAUSED = pb.FINISH_REASON_STOP, pb.FINISH_REASON_MAX_TOKENS, pb.FINISH_REASON_PAUSED
OPTIONS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "penalty": 1.2},
    {"temperature": 1.5, "top_p": 0.5},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generating")
    for shipped in (MODEL, WORDS, "sensor-anomaly", "code-language"):
        (folder / "models").mkdir(exist_ok=True)
        (folder / "models" / shipped).symlink_to(MODELS / shipped)
    feedback = {**CONTRACT, "holdfast.feedback": json.dumps("y")}
    write_features_model(folder / "models" / "feedback" / "1" / "model.onnx", metadata=feedback)
    write_poison_model(folder / "models" / "poison" / "1" / "model.onnx")
    flags = ["--models", str(folder / "models"), "--max-chunk-tokens", "256"]
    with ServerProcess(folder / "data", *flags) as server:
        yield server


@pytest.fixture(scope="module")
def rpc(server):
    rpc = Rpc(server)
    yield rpc
    rpc.channel.close()


def sampling(seed=0, penalty=None, **options):
    return pb.Sampling(seed=seed, repetition_penalty=penalty, **options)


def generate(rpc, session_id, **fields):
    """Returns the start, the tokens and the end of a call."""
    call = rpc.stub.Generate(pb.GenerateRequest(session_id=session_id, **fields), timeout=30)
    start, *tokens, end = call
    assert start.HasField("start")
    assert end.HasField("end")
    return start.start, [one.token for one in tokens], end.end


def refused(rpc, session_id, **fields):
    """Returns the error that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        list(rpc.stub.Generate(pb.GenerateRequest(session_id=session_id, **fields), timeout=30))
    return from_rpc(caught.value)


def stands(rpc, session_id):
    session = rpc.call("GetSession", pb.GetSessionRequest(session_id=session_id)).session
    return session.position, session.history_digest


def as_expected(tokens, expected, position):
    assert [(one.id, one.text) for one in tokens] == [(number, text) for number, text, _ in expected]
    np.testing.assert_allclose(
        [one.log_prob for one in tokens], [log_prob for *_, log_prob in expected], atol=1e-4
    )
    for one in tokens:
        position += len(one.text)
        assert one.position == position


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("model", "prompt"), [(MODEL, PROMPT), (WORDS, b"Return the")])
def test_the_tokens_are_those_of_an_uninterrupted_loop(rpc, model, prompt, options):
    name = f"{model}-{OPTIONS.index(options)}"
    rpc.open(name, model=model)
    start, tokens, end = generate(
        rpc,
        name,
        prompt=pb.Tokens(text=prompt),
        position=0,
        max_tokens=50,
        sampling=sampling(7, **options),
        top_k=2,
    )
    assert (start.position, start.replayed, start.model_version) == (len(prompt), False, 1)
    assert end.finish_reason == MAX
    loop = Loop(model)
    as_expected(tokens, loop.generate(50, prompt, seed=7, **options), len(prompt))
    said = prompt + b"".join(one.text for one in tokens)
    assert stands(rpc, name) == (len(said), digest_after(INITIAL, said))
    assert tokens[-1].history_digest == digest_after(INITIAL, said)
    assert not any(one.replayed for one in tokens)


def test_candidates_are_those_in_the_place_of_the_token(rpc):
    rpc.open("candidates")
    _, tokens, _ = generate(
        rpc,
        "candidates",
        prompt=pb.Tokens(text=PROMPT),
        position=0,
        max_tokens=5,
        top_k=3,
        sampling=sampling(3),
    )
    loop = Loop(MODEL)
    loop.apply(PROMPT)
    for one in tokens:
        best = np.argsort(-loop.logits(), kind="stable")[:3]
        assert list(one.top_ids) == best.tolist()
        shifted = loop.logits() - loop.logits().max()
        log_probs = shifted - np.log(np.exp(shifted).sum())
        np.testing.assert_allclose(one.top_log_probs, log_probs[best], atol=1e-4)
        loop.apply(one.text)


def test_the_same_call_again_emits_the_same_again_and_goes_on(rpc):
    rpc.open("again")
    asked = {"prompt": pb.Tokens(text=PROMPT), "position": 0, "sampling": sampling(5), "top_k": 1}
    _, first, _ = generate(rpc, "again", max_tokens=20, **asked)
    start, second, end = generate(rpc, "again", max_tokens=40, **asked)
    assert start.replayed
    assert [one.replayed for one in second] == [True] * 20 + [False] * 20
    for one, other in zip(first, second, strict=False):
        other.replayed = False
        assert one == other
    as_expected(second, Loop(MODEL).generate(40, PROMPT, seed=5), len(PROMPT))
    assert end.finish_reason == MAX


def test_a_call_may_begin_again_wherever_its_replies_are_kept(rpc):
    rpc.open("window")
    _, tokens, _ = generate(
        rpc, "window", prompt=pb.Tokens(text=PROMPT), position=0, max_tokens=150, sampling=sampling(5)
    )
    late = tokens[-60]
    _, again, _ = generate(
        rpc,
        "window",
        prompt=pb.Tokens(text=late.text),
        position=late.position - 1,
        max_tokens=59,
        sampling=sampling(5),
    )
    assert [one.id for one in again] == [one.id for one in tokens[-59:]]
    assert all(one.replayed for one in again)
    error = refused(rpc, "window", prompt=pb.Tokens(text=PROMPT), position=0, max_tokens=1)
    assert (error.reason, error.expected_position) == ("POSITION_CONFLICT", len(PROMPT) + 150)


def test_pauses_change_nothing(rpc):
    options = {"temperature": 0.9, "penalty": 1.3}
    stop, least = b"\n", 30
    rpc.open("paused")
    emitted, text, prompt, position, said = [], b"", PROMPT, 0, []
    while True:
        start, tokens, end = generate(
            rpc,
            "paused",
            prompt=pb.Tokens(text=prompt),
            position=position,
            max_tokens=90,
            min_tokens=least,
            stop_texts=[stop],
            emitted_tokens=len(emitted),
            emitted_text=text[-64:],
            pause_after=7,
            sampling=sampling(11, said_ids=said, **options),
        )
        emitted += tokens
        text += b"".join(one.text for one in tokens)
        if end.finish_reason != PAUSED:
            break
        prompt, position = tokens[-1].text, tokens[-1].position - 1
        said = list(dict.fromkeys([*(said or start.said_ids), *(one.id for one in tokens)]))
    expected = Loop(MODEL).generate(90, PROMPT, seed=11, stop_texts=[stop], min_tokens=least, **options)
    as_expected(emitted, expected, len(PROMPT))
    assert len(emitted) > least
    assert end.finish_reason == (STOP if len(expected) < 90 else MAX)


def test_a_stop_id_is_neither_applied_nor_emitted(rpc):
    rpc.open("stop-id")
    stops = list(b" \n_")
    _, tokens, end = generate(
        rpc,
        "stop-id",
        prompt=pb.Tokens(text=PROMPT),
        position=0,
        max_tokens=100,
        stop_ids=stops,
        sampling=sampling(2),
    )
    as_expected(tokens, Loop(MODEL).generate(100, PROMPT, seed=2, stop_ids=stops), len(PROMPT))
    assert len(tokens) < 100
    assert (end.finish_reason, end.stop_id in stops) == (STOP, True)
    assert stands(rpc, "stop-id")[0] == len(PROMPT) + len(tokens)


def test_a_stop_that_cannot_be_applied_ends_a_call_to_which_it_is_none(rpc):
    """The start mark is a subword without text: drawn as a stop id, and found by a call that names none."""
    mark = 0
    rpc.open("mark", model=WORDS)
    likely = sampling(0, penalty=1e-7, said_ids=[mark])
    asked = {"prompt": pb.Tokens(text=b"x"), "position": 0, "max_tokens": 3, "sampling": likely}
    _, tokens, end = generate(rpc, "mark", stop_ids=[mark], **asked)
    assert (tokens, end.finish_reason, end.stop_id) == ([], STOP, mark)
    for other in ({}, {"stop_ids": [5], "min_tokens": 2}):
        start, tokens, end = generate(rpc, "mark", **asked, **other)
        assert (start.replayed, tokens, end.finish_reason, end.stop_id) == (True, [], STOP, mark)
    assert stands(rpc, "mark")[0] == 1


@pytest.mark.parametrize("least", [0, 40, 100])
def test_no_stop_id_is_drawn_before_min_tokens(rpc, least):
    rpc.open(f"least-{least}")
    stops = list(b" \n_")
    _, tokens, _ = generate(
        rpc,
        f"least-{least}",
        prompt=pb.Tokens(text=PROMPT),
        position=0,
        max_tokens=100,
        min_tokens=least,
        stop_ids=stops,
        sampling=sampling(2),
    )
    expected = Loop(MODEL).generate(100, PROMPT, seed=2, stop_ids=stops, min_tokens=least)
    as_expected(tokens, expected, len(PROMPT))
    assert len(tokens) >= least


def text_across_tokens(tokens):
    """Returns a text that ends where the last token does, begins in one before, and is there once."""
    said = b"".join(text for _, text, _ in tokens)
    sizes = range(len(tokens[-1][1]) + 1, 64)
    return next(said[-size:] for size in sizes if said.count(said[-size:]) == 1)


@pytest.mark.parametrize("model", [MODEL, WORDS])
def test_a_stop_text_may_cross_tokens(rpc, model):
    name = f"stop-{model}"
    rpc.open(name, model=model)
    expected = Loop(model).generate(40, PROMPT, seed=4)
    text = text_across_tokens(expected)
    _, tokens, end = generate(
        rpc,
        name,
        prompt=pb.Tokens(text=PROMPT),
        position=0,
        max_tokens=400,
        stop_texts=[b"never here", text],
        sampling=sampling(4),
    )
    as_expected(tokens, expected, len(PROMPT))
    assert end.finish_reason == STOP
    assert stands(rpc, name)[0] == tokens[-1].position


@pytest.mark.parametrize("model", [MODEL, WORDS])
def test_without_a_prompt_it_follows_the_last_token(rpc, model):
    rpc.open(f"bare-{model}", model=model)
    rpc.step(f"bare-{model}", model=model, text=PROMPT, position=0)
    asked = {"position": len(PROMPT), "sampling": sampling(9, temperature=0.8), "top_k": 2}
    start, tokens, _ = generate(rpc, f"bare-{model}", max_tokens=20, **asked)
    assert (start.position, start.replayed) == (len(PROMPT), False)
    expected = Loop(model).generate(20, PROMPT, seed=9, temperature=0.8)
    as_expected(tokens, expected, len(PROMPT))
    assert len(tokens[0].top_ids) == 2
    # a repetition cannot weigh the first token any more, whose state is gone, but it knows which one it was
    start, again, _ = generate(rpc, f"bare-{model}", max_tokens=20, **asked)
    assert start.replayed
    assert [one.id for one in again] == [one.id for one in tokens]
    assert np.isnan(again[0].log_prob)
    assert [one.log_prob for one in again[1:]] == [one.log_prob for one in tokens[1:]]


def test_a_prompt_that_was_applied_by_a_step_is_followed_all_the_same(rpc):
    rpc.open("stepped")
    rpc.step("stepped", text=PROMPT, position=0)
    start, tokens, _ = generate(
        rpc, "stepped", prompt=pb.Tokens(text=PROMPT), position=0, max_tokens=20, sampling=sampling(9)
    )
    assert start.replayed
    as_expected(tokens, Loop(MODEL).generate(20, PROMPT, seed=9), len(PROMPT))


def test_nothing_is_said_of_a_session_that_went_on(rpc):
    rpc.open("gone-on")
    rpc.step("gone-on", text=PROMPT, position=0)
    rpc.step("gone-on", text=b"xy", position=len(PROMPT))
    error = refused(rpc, "gone-on", position=len(PROMPT), max_tokens=3)
    assert (error.reason, error.expected_position) == ("POSITION_CONFLICT", len(PROMPT) + 2)
    error = refused(rpc, "gone-on", position=len(PROMPT) + 9, max_tokens=3)
    assert (error.reason, error.expected_position) == ("STORE_REGRESSED", len(PROMPT) + 2)
    error = refused(rpc, "gone-on", position=len(PROMPT) + 2, history_digest=5, max_tokens=3)
    assert error.reason == "HISTORY_CONFLICT"
    error = refused(rpc, "gone-on", position=len(PROMPT) + 2, incarnation=5, max_tokens=3)
    assert error.reason == "SESSION_DELETED"
    assert stands(rpc, "gone-on")[0] == len(PROMPT) + 2


@pytest.mark.parametrize("prompt", [PROMPT, None])
def test_a_token_that_was_stepped_is_not_taken_for_one_that_was_drawn(rpc, prompt):
    session_id = f"stepped-by-others-{prompt is None}"
    rpc.open(session_id)
    rpc.step(session_id, text=PROMPT, position=0)
    rpc.step(session_id, text=b"~", position=len(PROMPT), acknowledged_position=0)
    asked = {"prompt": pb.Tokens(text=prompt), "position": 0} if prompt else {"position": len(PROMPT)}
    assert refused(rpc, session_id, max_tokens=3, **asked).reason == "POSITION_CONFLICT"


def test_a_forecast_is_that_of_the_loop(rpc):
    rpc.open("forecast", model="feedback")
    given = np.array([[0.5, -1], [0.25, 3]], np.float32)
    tensor = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=given.shape, data=given.tobytes())
    asked = {"prompt": pb.Tokens(features=tensor), "position": 0}
    for has_been in (False, True):
        start, tokens, end = generate(rpc, "forecast", max_tokens=12, **asked)
        assert (start.position, start.replayed, end.finish_reason) == (2, has_been, MAX)
        state = given.sum(axis=0)
        for number, token in enumerate(tokens):
            assert (token.id, token.text, token.position) == (0, b"", 3 + number)
            np.testing.assert_array_equal(np.frombuffer(token.features.data, "<f4"), state)
            state = state + state
    assert stands(rpc, "forecast")[0] == 14


def test_a_forecast_that_is_no_number_ends_it(rpc):
    rpc.open("endless", model="feedback")
    tensor = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[1, 2], data=np.full(2, 1e38, "<f4").tobytes())
    error = refused(rpc, "endless", prompt=pb.Tokens(features=tensor), position=0, max_tokens=12)
    assert error.reason in ("MODEL_FAILED", "STATE_NOT_FINITE")
    assert stands(rpc, "endless")[0] == 2


def test_a_model_that_rules_out_all_tokens_ends_it(rpc):
    rpc.open("ruled-out", model="poison")
    error = refused(rpc, "ruled-out", prompt=pb.Tokens(text=bytes([205])), position=0, max_tokens=12)
    assert error.reason == "MODEL_FAILED"
    assert "position 1" in error.message
    assert stands(rpc, "ruled-out")[0] == 1


def test_what_came_before_a_failure_is_emitted_before_it(rpc):
    rpc.open("failing", model="poison")
    request = pb.GenerateRequest(
        session_id="failing",
        prompt=pb.Tokens(text=bytes([205])),
        position=0,
        max_tokens=12,
        may_join=True,
    )
    call = rpc.stub.Generate(request, timeout=30)
    message = next(call)  # the start, which was to wait for the first token
    assert (message.start.position, len(message.more)) == (1, 0)
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert from_rpc(caught.value).reason == "MODEL_FAILED"


def test_events_that_share_messages_are_the_same_events(rpc):
    count, length = 16, 40
    names = [f"joined-{number}" for number in range(count)]
    rpc.open(*names)

    def one(name):
        request = pb.GenerateRequest(
            session_id=name,
            prompt=pb.Tokens(text=PROMPT),
            position=0,
            max_tokens=length,
            sampling=sampling(int(name.partition("-")[2])),
            may_join=True,
        )
        return list(rpc.stub.Generate(request, timeout=60))

    with ThreadPoolExecutor(count) as threads:
        given = list(threads.map(one, names))
    for number, messages in enumerate(given):
        assert messages[0].HasField("start")
        assert messages[0].more, "the start comes with the first token"
        assert not messages[-1].HasField("end"), "the end comes with the last token"
        assert len(messages) <= length
        start, *tokens, end = (event for message in messages for event in events_of(message))
        assert (start.start.position, end.end.finish_reason) == (len(PROMPT), MAX)
        expected = Loop(MODEL).generate(length, PROMPT, seed=number)
        as_expected([event.token for event in tokens], expected, len(PROMPT))


def test_a_model_says_which_output_is_its_next_input(rpc):
    described = {
        name: rpc.call("GetModel", pb.GetModelRequest(model=pb.ModelRef(name=name))).model
        for name in ("feedback", MODEL)
    }
    assert described["feedback"].feedback == "y"
    assert described[MODEL].feedback == ""


NAN, INF = float("nan"), float("inf")
RIGHT = {"max_tokens": 3, "prompt": pb.Tokens(text=b"a"), "position": 0}
WRONG = [
    (MODEL, {"max_tokens": 0}, "max_tokens", "1..65536"),
    (MODEL, {"max_tokens": 65537}, "max_tokens", "1..65536"),
    (MODEL, {"min_tokens": 4}, "min_tokens", "0..3"),
    (MODEL, {"min_tokens": -1}, "min_tokens", "0..3"),
    (MODEL, {"emitted_tokens": 3}, "emitted_tokens", "0..2"),
    (MODEL, {"pause_after": -1}, "pause_after", "0.."),
    (MODEL, {"emitted_text": bytes(65)}, "emitted_text", "has 65 bytes, expected 0..64"),
    (MODEL, {"stop_ids": [256]}, "stop_ids[0]", "0..255"),
    (MODEL, {"stop_ids": [1, -1]}, "stop_ids[1]", "0..255"),
    (MODEL, {"stop_ids": range(256), "min_tokens": 1}, "stop_ids", "leave some"),
    (MODEL, {"stop_texts": [bytes(65)]}, "stop_texts[0]", "has 65 bytes, expected 1..64"),
    (MODEL, {"stop_texts": [b"a", b""]}, "stop_texts[1]", "has 0 bytes, expected 1..64"),
    (MODEL, {"stop_texts": [b"a"] * 17}, "stop_texts", "at most 16"),
    (MODEL, {"top_k": 257}, "top_k", "0..256"),
    (MODEL, {"top_k": -1}, "top_k", "0.."),
    (MODEL, {"sampling": sampling(temperature=-1)}, "sampling.temperature", ">= 0"),
    (MODEL, {"sampling": sampling(temperature=NAN)}, "sampling.temperature", ">= 0"),
    (MODEL, {"sampling": sampling(temperature=INF)}, "sampling.temperature", ">= 0"),
    (MODEL, {"sampling": sampling(top_p=0)}, "sampling.top_p", "> 0, at most 1"),
    (MODEL, {"sampling": sampling(top_p=1.5)}, "sampling.top_p", "> 0, at most 1"),
    (MODEL, {"sampling": sampling(min_p=-0.1)}, "sampling.min_p", "0..1"),
    (MODEL, {"sampling": sampling(top_k=-1)}, "sampling.top_k", "0 (all)"),
    (MODEL, {"sampling": sampling(penalty=0)}, "sampling.repetition_penalty", "> 0"),
    (MODEL, {"sampling": sampling(-1)}, "sampling.seed", ">= 0"),
    (MODEL, {"sampling": sampling(said_ids=[300])}, "sampling.said_ids[0]", "0..255"),
    (MODEL, {"sampling": sampling(said_ids=[1] * 1025)}, "sampling.said_ids", "1024"),
    (MODEL, {"prompt": pb.Tokens(text=b"")}, "prompt", "has 0 tokens, expected 1..256"),
    (MODEL, {"prompt": pb.Tokens(text=bytes(257))}, "prompt", "has 257 tokens, expected 1..256"),
    (MODEL, {"prompt": pb.Tokens()}, "prompt", "text, ids or features"),
    (MODEL, {"prompt": pb.Tokens(ids=pb.TokenIds(values=[256]))}, "tokens.ids.values[0]", "0.."),
    (MODEL, {"position": -1}, "position", "0.."),
    (MODEL, {"history_digest": 3, "position": None}, "history_digest", "without"),
    (MODEL, {"ack_level": 9}, "ack_level", "not a level"),
    (MODEL, {"model": pb.ModelRef(name=MODEL, version=-1)}, "model.version", ">= 0"),
    ("poison", {"prompt": None}, "prompt", "send at least the next token"),
    ("feedback", {"prompt": None}, "prompt", "send at least the next token"),
    ("feedback", {"sampling": sampling(1)}, "sampling", "leave sampling out"),
    ("feedback", {"stop_ids": [1]}, "stop_ids", "leave stop_ids out"),
    ("feedback", {"top_k": 1}, "top_k", "leave top_k out"),
    ("feedback", {}, "tokens", "float32 features"),
    ("sensor-anomaly", {}, "model", 'feedback = "OUTPUT"'),
    ("code-language", {}, "model", "classes"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_what_is_wrong_is_said_and_changes_nothing(rpc, number):
    model, fields, field, expected = WRONG[number]
    rpc.open(f"wrong-{number}", model=model)
    asked = {name: given for name, given in {**RIGHT, **fields}.items() if given is not None}
    error = refused(rpc, f"wrong-{number}", **asked)
    assert (error.reason, error.field) == ("INVALID_REQUEST", field)
    assert expected in error.message
    assert stands(rpc, f"wrong-{number}") == (0, INITIAL)


def test_there_is_no_generation_without_a_session(rpc):
    assert refused(rpc, "nobody", max_tokens=3).reason == "SESSION_NOT_FOUND"
    asked = {**RIGHT, "model": pb.ModelRef(name=MODEL, version=1)}
    assert refused(rpc, "nobody", **asked).reason == "SESSION_NOT_FOUND"
    rpc.open("elsewhere", model="poison")
    assert refused(rpc, "elsewhere", **asked).reason == "MODEL_MISMATCH"


def test_a_cancelled_call_leaves_a_committed_position(rpc):
    rpc.open("cancelled")
    call = rpc.stub.Generate(
        pb.GenerateRequest(
            session_id="cancelled",
            prompt=pb.Tokens(text=PROMPT),
            position=0,
            max_tokens=60_000,
            sampling=sampling(6),
        ),
        timeout=30,
    )
    said = PROMPT
    for number, event in enumerate(call):
        said += event.token.text
        if number == 25:
            break
    call.cancel()
    seen = []

    def is_still():
        seen.append(stands(rpc, "cancelled"))
        return len(seen) > 3 and len(set(seen[-3:])) == 1

    wait_for(is_still)
    position, digest = seen[-1]
    assert position >= len(said)
    expected = PROMPT + b"".join(
        text for _, text, _ in Loop(MODEL).generate(position - len(PROMPT), PROMPT, seed=6)
    )
    assert digest == digest_after(INITIAL, expected)
    assert rpc.step("cancelled", text=b"x", position=position).result.position == position + 1


def test_generations_share_batches_and_steps_go_on_between_them(rpc, server):
    count, length = 64, 60
    names = [f"many-{number}" for number in range(count)]
    rpc.open(*names, "steps-between")
    before = [value(server, f"holdfast_batch_size_{part}") for part in ("sum", "count")]
    over = threading.Event()

    def steps():
        position = 0
        while not over.is_set() or position < 20:
            reply = rpc.step("steps-between", text=b"x", position=position)
            assert reply.result.position == position + 1
            position += 1
        return position

    def one(name):
        return generate(
            rpc,
            name,
            prompt=pb.Tokens(text=PROMPT),
            position=0,
            max_tokens=length,
            sampling=sampling(int(name.partition("-")[2])),
        )[1]

    with ThreadPoolExecutor(count + 1) as threads:
        stepping = threads.submit(steps)
        given = list(threads.map(one, names))
        over.set()
        assert stepping.result() >= 20
    for number in (0, 17, 63):
        as_expected(given[number], Loop(MODEL).generate(length, PROMPT, seed=number), len(PROMPT))
    after = [value(server, f"holdfast_batch_size_{part}") for part in ("sum", "count")]
    chunks, batches = (late - early for late, early in zip(after, before, strict=True))
    print(f"{chunks} chunks in {batches} batches")
    assert chunks >= count * length
    assert chunks > 4 * batches
