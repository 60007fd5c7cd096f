"""What the core does where something in it breaks, as no transcript can have it."""

import numpy as np
import pytest

from service.engine.asked import Asked
from service.engine.effects import Commit, Load, Run, Settle
from service.engine.limits import EngineLimits
from service.engine.plan import MANY_COLD
from service.engine.rows import NOT_GIVEN, Chunk, Message, Reply, Rows, to_tokens, token_sums
from service.store.protocol import AckLevel
from tests.scenarios.world import Replica, World


class Breaks(Exception):
    """Raised where nobody foresaw it."""


def breaks_at(function, count):
    """Returns the function as it is until it is called for the n-th time, which raises."""
    calls = []

    def broken(*arguments, **options):
        calls.append(arguments)
        if len(calls) == count:
            raise Breaks
        return function(*arguments, **options)

    return broken


@pytest.fixture
def world():
    world = World()
    world.now_s = 1000.0
    return world


def submit(core, session, answers, level=None, tokens=(1,)):
    asked = Asked("ids", len(tokens), model_name="sum", ack_level=level)
    raw = np.array(tokens, np.int64).tobytes()

    def reply(chunk, outcome):
        said = outcome.position if isinstance(outcome, Reply) else outcome.reason
        answers.append((chunk.key.decode(), said))

    core.submit(Chunk(session.encode(), asked, raw, reply), 1000.0)


def play(world, replica, effects):
    """Performs effects, and all that come of them, as the driver does; what raises is broken."""
    core = replica.core
    names = {Load: world.load, Run: world.run, Commit: world.commit}
    left = list(effects)
    while left or core.is_ready or core.due_s is not None:
        if not left:
            left += next_of(world, replica)
            continue
        effect = left.pop(0)
        if isinstance(effect, Settle):
            effect.rows.settle(effect.error)
            continue
        perform = names.get(type(effect), world.confirm)
        try:
            left += perform(replica, effect, [])
        except Breaks:
            left += core.broke(effect, world.now_s)


def next_of(world, replica):
    core = replica.core
    try:
        if core.is_ready:
            return core.next(world.now_s, replica.epoch)
        world.now_s = max(world.now_s, core.due_s)
        return core.due(world.now_s)
    except Breaks:
        return core.broke(None, world.now_s)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["put", "keep", "gather", "look_up", "discard", "tail"])
@pytest.mark.parametrize("poison", [1, 254])
def test_whatever_breaks_each_chunk_is_answered_once_and_the_next_ones_run(world, name, at, poison):
    """Chunks of different lengths and levels, so that a batch has several parts; one of them may poison."""
    replica = Replica(world.model)
    core, answers, names = replica.core, [], "abcdef"
    world.command(["open", *names])
    kept = getattr(core.cache, name)
    setattr(core.cache, name, breaks_at(kept, at))
    for turn in range(3):
        for place, session in enumerate(names):
            tokens = [poison if place == 3 and turn == 1 else 1] * (1 + place % 2)
            submit(core, session, answers, AckLevel.REPLICATED if place % 3 else None, tokens)
    play(world, replica, [])
    assert sorted(session for session, _ in answers) == sorted(names * 3)
    setattr(core.cache, name, kept)
    answers.clear()
    for session in names:
        submit(core, session, answers)
    play(world, replica, [])
    assert all(isinstance(said, int) for _, said in answers)
    assert core.unanswered_count == 0


@pytest.mark.parametrize("at", range(1, 8))
def test_what_breaks_while_rows_that_run_apart_begin_is_answered(world, at):
    replica = Replica(world.model)
    core, answers, names = replica.core, [], "bhij"
    world.command(["open", *names])
    submit(core, "b", answers, tokens=(254,))  # from now on it is a suspect
    play(world, replica, [])
    answers.clear()
    gather = core.cache.gather
    core.cache.gather = breaks_at(gather, at)
    for _ in range(2):
        for session in names:
            submit(core, session, answers)
        play(world, replica, [])
        core.cache.gather = gather
    assert sorted(session for session, _ in answers) == sorted(names * 2)
    assert core.unanswered_count == 0


def test_rows_of_a_message_that_were_answered_when_a_stage_broke_do_not_run_again(world):
    replica = Replica(world.model)
    core, answers, names = replica.core, [], "bchij"
    world.command(["open", *names])
    submit(core, "b", answers, tokens=(254,))  # from now on it is a suspect
    submit(core, "c", answers)
    play(world, replica, [])
    rows = message("hbc", answers)
    gather = core.cache.gather
    core.cache.gather = breaks_at(gather, 1)
    core.submit_rows(rows, world.now_s)
    play(world, replica, [])
    core.cache.gather = gather
    assert sorted(session for session, _ in answers[2:]) == sorted("hbc")
    answers.clear()
    for session in names:
        submit(core, session, answers)
    play(world, replica, [])
    assert sorted(session for session, _ in answers) == sorted(names)
    assert core.unanswered_count == 0


@pytest.mark.parametrize(("token_count", "together"), [(1, 4), (2, 2), (16, 1)])
def test_messages_that_are_ready_run_together_as_long_as_they_have_few_tokens(world, token_count, together):
    replica, answers = Replica(world.model), []
    core, limit = replica.core, EngineLimits().max_batch
    messages = [[f"{number}-{row}" for row in range(limit)] for number in range(5)]
    world.command(["open", *(session for sessions in messages for session in sessions)])
    for sessions in messages:
        core.submit_rows(message(sessions, answers), world.now_s)
    play(world, replica, [])  # they are in memory now
    for sessions in messages:
        core.submit_rows(message(sessions, answers, token_count), world.now_s)
    [run] = core.next(world.now_s, replica.epoch)
    assert [[len(rows) for rows in group] for group in run.groups] == [[limit] * together]
    play(world, replica, [run])
    assert len(answers) == 2 * 5 * limit
    assert all(error is None for _, error in answers)


def test_single_chunks_do_not_join_a_batch_that_is_full(world):
    replica, answers = Replica(world.model), []
    core, limit = replica.core, EngineLimits().max_batch
    sessions = [str(number) for number in range(limit + 1)]
    world.command(["open", *sessions])
    for session in sessions:
        submit(core, session, answers)
    [load] = core.next(world.now_s, replica.epoch)
    assert len(load.keys) == limit


def message(sessions, answers, token_count=1):
    """Returns the rows of a message."""
    asked, count = Asked("ids", token_count, model_name="sum"), len(sessions)
    tokens = to_tokens(asked, np.ones(count * token_count, np.int64).tobytes(), count)

    def reply(rows, error):
        said = error.reason if error is not None else None
        answers.extend((key.decode(), said) for key in rows.keys)

    return Rows(
        asked,
        [session.encode() for session in sessions],
        tokens,
        token_sums(tokens),
        np.full(count, NOT_GIVEN, np.int64),
        message=Message(reply, count),
        numbers=np.arange(count),
    )


@pytest.mark.parametrize(
    ("hot_count", "cold_count", "waits"),
    [(3, MANY_COLD - 1, False), (3, MANY_COLD, True), (MANY_COLD, MANY_COLD, True), (11, MANY_COLD, False)],
)
def test_sessions_in_memory_wait_for_many_that_are_not(world, hot_count, cold_count, waits):
    replica, answers = Replica(world.model), []
    hot, cold = ([f"{name}{number}" for number in range(20)] for name in ("hot", "cold"))
    world.command(["open", *hot, *cold])
    for session in hot:
        submit(replica.core, session, answers)
    play(world, replica, [])
    answers.clear()
    for session in hot[:hot_count] + cold[:cold_count]:
        submit(replica.core, session, answers)
    effects = replica.core.next(world.now_s, replica.epoch)
    assert [type(effect) for effect in effects] == ([Load] if waits else [Load, Run])
    assert len(effects[0].keys) == cold_count
    play(world, replica, effects)
    assert len(answers) == hot_count + cold_count
    assert dict(answers) == dict.fromkeys(hot[:hot_count], 2) | dict.fromkeys(cold[:cold_count], 1)
