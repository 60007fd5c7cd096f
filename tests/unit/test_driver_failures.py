"""What makes a model fail takes nothing else with it, and is held once it does so again and again."""

import asyncio
import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import RecordCorrupt, SessionQuarantined
from service.engine import runner
from service.engine.cache import ENTRY_BYTES
from service.engine.driver import Driver
from service.engine.failures import LONG_COUNT
from service.engine.limits import EngineLimits
from service.engine.runner import NEW_PATIENCE_S, PATIENCE_S, WatchedRun
from service.engine.sessions import Opening, Sessions
from service.engine.suspects import ALARM_S, BARS, CLEAN_RUNS, CULPRIT_AFTER, MAX_SUSPECTS, RISE_S, Suspects
from service.store.record import decode, encode
from tests.support.fakes import (
    CountingObserver,
    FakeModels,
    MemoryStore,
    PoisonModel,
    encode_totals,
    open_session,
)
from tests.unit.test_driver import send, submit
from tests.unit.test_engine_rows import send_rows

RAISE, STALL, NO_STATE = 254, 253, 252


@pytest.fixture
def model():
    return PoisonModel()


async def send_all(engine, tokens, position=0):
    """Sends one token to each session, all in one batch; returns the answers by session."""
    answers = await asyncio.gather(
        *(send(engine, name, [token], position) for name, token in tokens.items())
    )
    return dict(zip(tokens, answers, strict=True))


@pytest.mark.parametrize("count", [2, 3, 64])
@pytest.mark.parametrize("poison", [RAISE, NO_STATE])
async def test_what_raises_fails_alone_wherever_it_stands(start, store, observer, count, poison):
    engine = start()
    for place in {0, count // 2, count - 1}:
        tokens = {f"{place}-{n}": poison if n == place else 1 for n in range(count)}
        for name in tokens:
            open_session(store, name)
        answers = await send_all(engine, tokens)
        assert answers.pop(f"{place}-{place}") == "MODEL_FAILED"
        assert set(map(str, answers.values())) == {"(1, [1.0], False)"}
    assert observer.counts["rerun_count"] <= 3 * 2 * 7


@pytest.mark.parametrize("poison", [RAISE, NO_STATE, 255])
async def test_a_row_of_a_message_fails_alone(start, poison):
    names, tokens = [f"s{n}" for n in range(200)], [1] * 200
    tokens[77] = poison
    outcomes = await send_rows(start(names), names, tokens, [0] * 200)
    assert outcomes.pop(77) == ("STATE_NOT_FINITE" if poison == 255 else "MODEL_FAILED")
    assert outcomes == [(1, [1], False)] * 199


async def test_a_result_that_is_missing_is_named(start):
    engine = start("s")
    outcome = await submit(engine, "s", [NO_STATE], 0)
    assert "state 'sum' is missing" in outcome.message


@pytest.mark.parametrize(
    ("tensor", "spoil", "said"),
    [
        (
            "total",
            lambda array: array[:, :-1],
            "output 'total' is float32 (1, 1), the contract says float32 (1, 2)",
        ),
        ("total", lambda array: array.astype(np.float64), "output 'total' is float64 (1, 2)"),
        (
            "sum",
            lambda array: array[:, :1],
            "state 'sum' is float32 (2, 1), the contract says float32 (2, 2)",
        ),
        ("sum", lambda array: array.astype(np.float16), "state 'sum' is float16 (2, 2)"),
    ],
)
async def test_a_result_that_the_contract_does_not_say_is_named(start, model, tensor, spoil, said):
    run = model.run

    def run_and_spoil(tokens, states, needed=None, halt=None):
        outputs, after = run(tokens, states, needed, halt)
        if tokens.shape[1] == 2:
            outputs, after = (
                {k: spoil(v) if k == tensor else v for k, v in part.items()} for part in (outputs, after)
            )
        return outputs, after

    model.run = run_and_spoil
    engine = start("ab")
    seen = []
    unseen_run = engine._runner.run

    async def run_and_see(*arguments, **options):
        result = await unseen_run(*arguments, **options)
        seen.append(result)
        return result

    engine._runner.run = run_and_see
    assert await send_all(engine, {"a": 1, "b": 2}) == {"a": (1, [1], False), "b": (1, [2], False)}
    assert said in seen[0].error.message


async def test_what_stalls_is_ended_and_others_go_on_meanwhile(start, observer, monkeypatch):
    monkeypatch.setattr(runner, "PATIENCE", 0)  # however slow this machine is now
    names = [f"s{n}" for n in range(5)]
    engine = start(["other", *names], run_timeout_s=1.0)
    limits_s = see_limits(engine)
    await send(engine, "other", [1], 0)
    futures = [submit(engine, name, [STALL if name == "s2" else 1], 0) for name in names]
    stalled = futures.pop(2)
    answers = await asyncio.wait_for(asyncio.gather(*futures), 30)
    assert [answer.position for answer in answers] == [1] * 4
    assert not stalled.done()
    assert await send(engine, "other", [1], 1) == (2, [2], False)
    assert not stalled.done()
    outcome = await asyncio.wait_for(stalled, 30)
    assert outcome.reason == "MODEL_FAILED"
    assert "did not end within 1 s" in outcome.message
    assert observer.counts["halt_count"] == 3
    # the first of a model nobody knows; the batch, its five rows, and one after it; what has all its time
    assert sorted(limits_s) == [PATIENCE_S] * 7 + [NEW_PATIENCE_S, 1.0]


def see_limits(engine):
    watchdog, limits_s = engine._runner._watchdog, []
    begin = watchdog.begin

    def begin_and_note(halt, limit_s):
        limits_s.append(limit_s)
        return begin(halt, limit_s)

    watchdog.begin = begin_and_note
    return limits_s


async def test_a_model_that_held_up_the_loop_runs_in_a_thread_for_a_while(start, model, monkeypatch):
    monkeypatch.setattr(runner, "THREAD_PAYS_S", 60)  # however slow this machine is now
    engine = start(["s", "bad"], run_timeout_s=0.1)
    await send(engine, "s", [1], 0)
    await send(engine, "bad", [STALL], 0)
    await send(engine, "s", [1], 1)
    is_loop = [thread is threading.current_thread() for thread in model.threads]
    assert is_loop == [True, True, False, False]  # the third is the row apart


async def test_a_suspect_runs_alone_until_it_has_run_for_a_while(start, model):
    engine = start(["good", "bad"])
    await send_all(engine, {"bad": 1, "good": 1})
    await send_all(engine, {"bad": RAISE, "good": 1}, position=1)
    model.tried.clear()
    for turn in range(CLEAN_RUNS + 1):
        answers = await asyncio.gather(
            send(engine, "good", [1], 2 + turn), send(engine, "bad", [1], 1 + turn)
        )
        assert answers == [(3 + turn, [3 + turn], False), (2 + turn, [2 + turn], False)]
    assert model.tried == [1, 1] * CLEAN_RUNS + [2]


async def fail(engine, session, count, position=0):
    return [await send(engine, session, [RAISE], position) for _ in range(count)]


async def test_a_session_that_fails_again_and_again_is_held_on_every_replica(start, store, observer):
    engine, other = start("s"), start()
    await send(engine, "s", [5], 0)
    assert await send(other, "s", [6], 1) == (2, [11], False)  # hot there
    assert await fail(engine, "s", 3, position=2) == ["MODEL_FAILED", "MODEL_FAILED", "SESSION_QUARANTINED"]
    assert observer.counts["quarantine_count"] == 1
    for replica in (engine, other, start()):
        assert await send(replica, "s", [1], 2) == "SESSION_QUARANTINED"
        assert await send(replica, "s", [1]) == "SESSION_QUARANTINED"
        assert await send(replica, "s", [6], 1) == (2, [11], True)
    outcome = await submit(other, "s", [1], 2)
    assert (outcome.expected_position, "token 254" in outcome.message) == (2, True)


async def test_a_model_that_never_ran_is_not_believed_against_a_session(start, store):
    engine = start(["s", "other"])
    assert await fail(engine, "s", 5) == ["MODEL_FAILED"] * 5
    assert not decode(store.records[b"s"]).quarantine_reason
    await send(engine, "other", [1], 0)
    assert await fail(engine, "s", 3) == ["MODEL_FAILED"] * 2 + ["SESSION_QUARANTINED"]


async def test_a_session_that_runs_in_between_is_not_held(start):
    engine = start("s")
    await send(engine, "s", [1], 0)
    for position in range(1, 5):
        assert await fail(engine, "s", 2, position) == ["MODEL_FAILED"] * 2
        assert (await send(engine, "s", [1], position))[0] == position + 1


async def test_a_session_that_never_ran_is_held_at_position_0(start, store):
    engine = start(["s", "other"])
    await send(engine, "other", [1], 0)
    assert (await fail(engine, "s", 3))[-1] == "SESSION_QUARANTINED"
    record = decode(store.records[b"s"])
    assert (record.position, set(record.state)) == (0, {0})
    assert await send(start(), "s", [1], 0) == "SESSION_QUARANTINED"


@pytest.mark.parametrize("limit", [0, 5])
async def test_the_number_of_failures_is_a_setting(start, limit):
    engine = start("s", quarantine_after=limit)
    await send(engine, "s", [1], 0)
    assert await fail(engine, "s", 4, position=1) == ["MODEL_FAILED"] * 4
    assert await fail(engine, "s", 1, position=1) == ["SESSION_QUARANTINED" if limit else "MODEL_FAILED"]


async def test_a_record_that_moved_on_meanwhile_is_not_held(start, store):
    engine, other = start("s"), start()
    await send(engine, "s", [1], 0)
    await fail(engine, "s", 2, position=1)
    await send(other, "s", [2], 1)
    assert await fail(engine, "s", 1, position=1) == ["MODEL_FAILED"]
    assert await send(engine, "s", [3], 2) == (3, [6], False)


async def test_a_store_that_is_down_leaves_the_session_to_the_next_failure(start, store):
    engine = start("s")
    await send(engine, "s", [1], 0)
    await fail(engine, "s", 2, position=1)
    store.is_available = False
    assert await fail(engine, "s", 1, position=1) == ["MODEL_FAILED"]
    store.is_available = True
    assert await fail(engine, "s", 1, position=1) == ["SESSION_QUARANTINED"]


async def test_rows_of_a_message_are_held_one_by_one(start):
    engine = start(["a", "held", "b"])
    await send_all(engine, {"a": 1, "held": 1, "b": 1})
    await fail(engine, "held", 3, position=1)
    for replica in (engine, start()):
        position = 1 if replica is engine else 2
        outcomes = await send_rows(replica, ["a", "held", "b"], [2, 2, 2], [position] * 3)
        assert [outcome[0] for outcome in outcomes[::2]] == [position + 1] * 2
        assert outcomes[1] == "SESSION_QUARANTINED"


async def test_who_waits_to_run_apart_is_answered_when_the_server_leaves(start, model):
    names = [f"s{n}" for n in range(LONG_COUNT + 2)]
    engine = start(["other", *names], run_timeout_s=0.5)
    await send(engine, "other", [1], 0)
    await asyncio.gather(*(send(engine, name, [STALL], 0) for name in names))  # all are suspects now
    model.stalled = threading.Semaphore(0)
    futures = [submit(engine, name, [STALL], 0) for name in names]
    for _ in range(LONG_COUNT):
        assert await asyncio.to_thread(model.stalled.acquire, timeout=10)
    await asyncio.wait_for(engine.stop(), 30)
    reasons = sorted(future.result().reason for future in futures)
    assert reasons == ["DRAINING"] * 2 + ["MODEL_FAILED"] * LONG_COUNT


def test_a_run_is_ended_after_as_many_rounds_as_its_limit_has(model):
    halt = model.new_halt()
    run = WatchedRun(halt, ticks_left=3)
    for _ in range(3):
        run.tick()
        assert not halt.terminate
    run.tick()
    assert halt.terminate
    assert run.was_halted


@pytest.fixture
def sessions_of(model, store):
    return lambda engine: Sessions(FakeModels(model), store, engine, ttl_s=60)


async def test_release_puts_the_session_back_where_it_stood(start, store, sessions_of):
    engine, other = start("s"), start()
    await send(engine, "s", [5], 0)
    await send(other, "s", [1], 1)
    await send(engine, "s", [1], 2)
    live = store.records[b"s"]
    await fail(engine, "s", 3, position=3)
    assert store.records[b"s"] != live
    released = await sessions_of(other).release(b"s", discard=False)
    assert ("token 254" in released.reason, released.position) == (True, 3)
    assert store.records[b"s"] == live
    assert (await sessions_of(other).release(b"s", discard=False)).reason == ""
    assert await send(engine, "s", [1], 2) == (3, [7], True)
    assert await send(engine, "s", [1], 3) == (4, [8], False)


async def test_a_replica_that_missed_quarantine_and_release_is_right_or_refused(start, store, sessions_of):
    slept, engine = start(["s", "other"]), start()
    await send(slept, "s", [5], 0)  # hot there at position 1, which is where it will be released
    await send(engine, "other", [1], 0)
    await fail(engine, "s", 3, position=1)
    await sessions_of(engine).release(b"s", discard=False)
    assert await send(slept, "s", [2], 1) == (2, [7], False)
    await fail(engine, "s", 3, position=2)
    await sessions_of(engine).release(b"s", discard=False)
    await send(engine, "s", [3], 2)
    assert await send(slept, "s", [4], 2) == "POSITION_CONFLICT"
    assert await send(slept, "s", [4], 3) == (4, [14], False)


async def test_a_held_session_can_be_deleted_and_opened_anew(start, store, sessions_of):
    engine = start("s")
    await send(engine, "s", [5], 0)
    await fail(engine, "s", 3, position=1)
    sessions = sessions_of(engine)
    with pytest.raises(SessionQuarantined, match="token 254"):
        await sessions.open(b"s", Opening("sum"))
    assert (await sessions.read(b"s")).record.quarantine_reason
    assert await sessions.delete(b"s", 0) == 1
    await sessions.open(b"s", Opening("sum"))
    assert await send(engine, "s", [2], 0) == (1, [2], False)


def damage(data):
    return data[:-1] + bytes([data[-1] ^ 1])


def resize(data):
    record = decode(data)
    return encode(record._replace(state=record.state + b"more"))


@pytest.mark.parametrize("spoil", [damage, resize, lambda _: b"", lambda _: b"not ours"])
async def test_a_damaged_record_is_kept_aside_and_its_id_free(start, store, sessions_of, spoil):
    engine = start("s")
    await send(engine, "s", [5], 0)
    store.records[b"s"] = found = spoil(store.records[b"s"])
    sessions = sessions_of(start())
    with pytest.raises(RecordCorrupt):
        await sessions.release(b"s", discard=False)
    assert store.records == {b"s": found}
    assert (await sessions.release(b"s", discard=True)).reason
    assert store.records == {b"s:set-aside": found}
    await sessions.open(b"s", Opening("sum"))
    assert await send(engine, "s", [2], 0) == (1, [2], False)


async def test_discard_leaves_alone_what_is_not_held(start, store, sessions_of):
    engine = start("s")
    await send(engine, "s", [5], 0)
    before = dict(store.records)
    assert (await sessions_of(engine).release(b"s", discard=True)) == ("", 1)
    assert store.records == before


async def test_a_record_of_an_unknown_model_is_not_damaged(start, store, sessions_of):
    engine = start("s")
    await send(engine, "s", [5], 0)
    store.records[b"s"] = encode(decode(store.records[b"s"])._replace(fingerprint=b"?" * 32))
    before = dict(store.records)
    assert (await sessions_of(engine).release(b"s", discard=True)) == ("", 1)
    assert store.records == before
    assert await send(start(), "s", [1], 1) == "MODEL_MISMATCH"


async def test_a_broken_model_costs_one_run_per_chunk_quarantines_nobody_and_recovers(start, model, store):
    names = [f"s{n}" for n in range(64)]
    engine = start(names)
    await send_all(engine, dict.fromkeys(names, 1))
    records = dict(store.records)
    tried = len(model.tried)
    for _ in range(5):
        answers = await send_all(engine, dict.fromkeys(names, RAISE), position=1)
        assert set(answers.values()) == {"MODEL_FAILED"}
    assert len(model.tried) - tried <= 64 * (5 + 2)
    assert store.records == records
    answers = await send_all(engine, dict.fromkeys(names, 1), position=1)
    assert set(map(str, answers.values())) == {"(2, [2.0], False)"}
    assert await fail(engine, "s0", 1, position=2) == ["MODEL_FAILED"]


@pytest.mark.parametrize("poison", [RAISE, NO_STATE])
@pytest.mark.parametrize("count", [1, 12, 200])
async def test_however_many_rows_fail_no_other_does(start, count, poison):
    """Not even where most of them fail, as if the model were at fault."""
    good, bad = [f"good{n}" for n in range(64)], [f"bad{n}" for n in range(count)]
    engine = start([*good, *bad])
    for position in range(3):
        answers = await send_all(engine, dict.fromkeys(bad, poison) | dict.fromkeys(good, 1), position)
        failed = {name for name, answer in answers.items() if answer == "MODEL_FAILED"}
        assert failed <= {*bad}
        assert {str(answers[name]) for name in good} == {f"({position + 1}, [{position + 1}.0], False)"}
        bad = [f"bad{position}-{n}" for n in range(count)]
        for name in bad:
            open_session(engine._store, name)


async def test_a_tenant_that_poisons_shares_no_batch_with_others(start, model):
    """Its newcomers run by themselves, its other sessions by themselves, and those of others too."""
    names = {kind: [f"{{{kind[0]}:{kind}-{n}" for n in range(2)] for kind in ("other", "bad", "bad-new")}
    poison, late = "{b:poison", "{b:late"
    engine = start([*itertools.chain(*names.values()), poison, late])
    await send_all(engine, dict.fromkeys([*names["other"], *names["bad"], late], 1))
    for name in names["bad-new"]:
        assert await send(engine, name, [1], 5) == "POSITION_GAP"  # it is in memory now, as the others are
    assert await send(engine, poison, [RAISE], 0) == "MODEL_FAILED"
    model.tried.clear()
    standing = dict.fromkeys([*names["other"], *names["bad"], late], 1) | dict.fromkeys(names["bad-new"], 0)
    tokens = dict.fromkeys(standing, 1) | {late: RAISE}
    answers = dict(
        zip(
            tokens,
            await asyncio.gather(*(send(engine, name, [tokens[name]], standing[name]) for name in tokens)),
            strict=True,
        )
    )
    assert [name for name, answer in answers.items() if answer == "MODEL_FAILED"] == [late]
    # two of others, two newcomers, and three with a history, one of whom is looked for
    assert sorted(model.tried) == sorted([2, 2, 3, 1, 2, 1, 1])


async def test_rows_of_a_message_beside_many_that_fail_get_their_results(start):
    names = [f"s{n}" for n in range(256)]
    tokens = [RAISE if n % 3 == 0 else STALL if n == 100 else 1 for n in range(256)]
    outcomes = await send_rows(start(names, run_timeout_s=0.1), names, tokens, [0] * 256)
    wrong = [place for place, outcome in enumerate(outcomes) if outcome == "MODEL_FAILED"]
    assert wrong == [place for place, token in enumerate(tokens) if token != 1]


async def test_what_cannot_be_encoded_fails_alone_and_is_said(model, store, observer, caplog):
    """Memory that is missing, or a fault of ours, in what a row gave: no reason to fail its neighbours."""

    def encode(outputs):
        if outputs.row_count > 4:
            raise MemoryError
        if (outputs.tensors["total"] == 3).any():
            raise ZeroDivisionError
        return encode_totals(outputs)

    engine = Driver(FakeModels(model), store, observer.count, EngineLimits(), encode)
    engine.start()
    for n in range(64):
        open_session(store, f"s{n}")
    answers = await send_all(engine, {f"s{n}": 3 if n == 5 else 1 for n in range(64)})
    assert answers.pop("s5") == "MODEL_FAILED"
    assert set(map(str, answers.values())) == {"(1, [1.0], False)"}
    await engine.stop()
    assert {record.getMessage() for record in caplog.records} == {
        "bug: what a model gave could not be taken"
    }
    assert all(record.exc_info for record in caplog.records)


def test_a_model_is_the_culprit_when_it_fails_for_everybody_until_it_runs():
    suspects = Suspects(CULPRIT_AFTER)
    suspects.ran(b"m")
    for n in range(CULPRIT_AFTER - 1):
        assert not suspects.failed_alone(b"m", b"t", b"%d" % n, 0.0)
    for _ in range(2 * CULPRIT_AFTER):
        assert not suspects.failed_alone(b"m", b"t", b"last", 0.0)
    suspects.ran(b"m")
    for _ in range(CULPRIT_AFTER - 1):
        assert not suspects.failed_alone(b"m", b"t", b"last", 6.0)
    assert suspects.failed_alone(b"m", b"t", b"last", 6.0)


def test_memory_of_suspects_is_bounded():
    suspects = Suspects(3)
    for n in range(MAX_SUSPECTS + 9):
        suspects.failed_alone(b"m", b"t", b"%d" % n, 0.0)
        suspects.ran(b"m")
    assert suspects.places([b"8", b"9"]) == [1]
    assert len(suspects.sessions) == MAX_SUSPECTS


def test_an_alarm_is_about_one_tenant_rises_while_sessions_above_it_fail_and_falls_again():
    suspects = Suspects(0)
    for second in range(9):
        position = BARS[min(second, len(BARS) - 1)]  # as much as it takes
        suspects.failed_alone(b"m", b"t", b"%d" % second, second * RISE_S, position=position)
        suspects.failed_alone(b"m", b"t", b"%d" % second, second * RISE_S, position=position)
        assert suspects.bar(b"m", b"t") == BARS[min(second, len(BARS) - 1)]
    suspects.failed_alone(b"m", b"u", b"other", 8 * RISE_S, position=10**6)
    suspects.failed_alone(b"m", b"u", b"other", 9 * RISE_S, position=0)
    assert suspects.bar(b"m", b"u") == BARS[0]
    assert suspects.bar(b"m", b"v") is None
    assert suspects.bar(b"n", b"t") is None
    for falls in range(len(BARS)):
        assert suspects.is_alarmed(8 * RISE_S + falls * ALARM_S)
        assert suspects.bar(b"m", b"t") == BARS[len(BARS) - 1 - falls]
    assert not suspects.is_alarmed(8 * RISE_S + len(BARS) * ALARM_S)


good = st.lists(st.integers(1, 9), min_size=1, max_size=6)
poisoned = st.lists(st.sampled_from([1, 2, RAISE, NO_STATE, 255]), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(good, min_size=1, max_size=9),
    st.lists(poisoned, max_size=3 * CULPRIT_AFTER),
    st.randoms(use_true_random=False),
)
def test_any_poison_leaves_its_neighbours_as_they_would_be_without(goods, poison, random):
    """Each session sends one token after the other; all send in rounds, so they share batches."""

    async def play(streams):
        store = MemoryStore()
        for name in streams:
            open_session(store, name)
        engine = Driver(
            FakeModels(PoisonModel()), store, CountingObserver().count, EngineLimits(), encode_totals
        )
        engine.start()
        replies = {name: [] for name in streams}
        position = dict.fromkeys(streams, 0)
        names = list(streams)
        for turn in range(6):
            random.shuffle(names)
            asked = [name for name in names if turn < len(streams[name])]
            answers = await asyncio.gather(
                *(send(engine, name, [streams[name][turn]], position[name]) for name in asked)
            )
            for name, answer in zip(asked, answers, strict=True):
                replies[name].append(answer)
                position[name] += isinstance(answer, tuple)
        await engine.stop()
        return replies

    without = {f"good{n}": tokens for n, tokens in enumerate(goods)}
    mixed = without | {f"bad{n}": tokens for n, tokens in enumerate(poison)}
    alone, together = asyncio.run(play(without)), asyncio.run(play(mixed))
    assert {name: together[name] for name in without} == alone
    for tokens, replies in zip(poison, [together[f"bad{n}"] for n in range(len(poison))], strict=True):
        for token, reply in zip(tokens, replies, strict=True):
            assert isinstance(reply, tuple) == (token < NO_STATE and reply != "SESSION_QUARANTINED")


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False))
def test_quarantine_and_release_on_any_replica_lose_and_double_nothing(random):
    """Clients move between replicas, poison now and then, and have their sessions released."""

    async def play():
        model, store = PoisonModel(), MemoryStore()
        names = [f"s{n}" for n in range(5)]
        for name in ["warm", *names]:
            open_session(store, name)
        limits = EngineLimits(quarantine_after=1, hot_state_bytes=4 * (ENTRY_BYTES + 40))
        count = CountingObserver().count
        engines = [Driver(FakeModels(model), store, count, limits, encode_totals) for _ in range(3)]
        for engine in engines:
            engine.start()
            await send(engine, "warm", [1])

        async def client(name):
            position = total = 0
            while position < 12:
                token = random.choice([1, 2, 3, RAISE, NO_STATE])
                answer = await send(random.choice(engines), name, [token], position)
                if isinstance(answer, tuple):
                    position, total = position + 1, total + token
                    assert answer[:2] == (position, [total])
                elif answer == "SESSION_QUARANTINED":
                    sessions = Sessions(FakeModels(model), store, random.choice(engines), ttl_s=60)
                    await sessions.release(name.encode(), discard=False)
                else:
                    assert answer == "MODEL_FAILED"

        await asyncio.gather(*map(client, names))
        for engine in engines:
            await engine.stop()

    asyncio.run(play())
