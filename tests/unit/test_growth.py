"""The pure parts of the measurements of growth and nuisances."""

import numpy as np

from benchmarks.growth import Cold, Stage
from benchmarks.nuisances import Outcome, Watch
from benchmarks.population import Population, SpreadBatches, SpreadStreams
from benchmarks.results import Round


def test_callers_share_the_sessions_and_none_has_two_of_them():
    load = SpreadStreams(Population("net", 100), np.arange(10, 60), 4)
    assert sorted(number for share in load._shares for number in share) == list(range(10, 60))


def test_a_filling_takes_in_every_session_once():
    load = SpreadBatches(Population("net", 10), np.arange(10), 1, rows=4, once=True)
    messages = list(load._messages(np.arange(10)))
    assert [len(numbers) for numbers in messages] == [4, 4, 2]
    assert sorted(np.concatenate(messages)) == list(range(10))


def test_a_load_of_batches_goes_round_in_full_messages():
    load = SpreadBatches(Population("net", 10), np.arange(10), 1, rows=4)
    messages = iter(load._messages(np.arange(10)))
    assert [next(messages).tolist() for _ in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]


def test_messages_name_sessions_and_where_they_stand():
    population = Population("net", 300)
    population.positions[255] = 7
    batch = population.batch(np.array([1, 255]))
    assert list(batch.session_ids) == ["1", "ff"]
    assert list(batch.positions) == [0, 7]
    chunk = population.chunk(255)
    assert (chunk.session_id, chunk.position) == ("ff", 7)


def test_a_stage_is_compared_with_few_sessions_by_medians():
    def rounds(*speeds):
        return [Round(speed, 0, 0, 0, 10.0, 1.0) for speed in speeds]

    on_many = {"load, all in use": rounds(80, 90, 1), "load, 7 in use": rounds(50, 60, 40)}
    stage = Stage(1000, 1.0, 0, 0, 0.0, on_many, {"load": rounds(100, 100, 7)})
    assert stage.over_few("load, all in use", "steps_per_s") == 0.8
    assert stage.over_few("load, 7 in use", "steps_per_s") == 0.5


def test_being_cold_is_counted_in_round_trips():
    assert Cold(hot_ms=1.0, cold_ms=1.75, round_trip_ms=0.5).extra_round_trips == 1.5


def test_a_nuisance_is_judged_by_what_the_others_saw_in_quiet():
    quiet = [Watch(1.0, 4.0), Watch(1.0, 6.0)]
    outcome = Outcome(quiet, [Watch(2.0, 10.0)], [], [])
    assert outcome.over_quiet("p50_ms") == 2.0
    assert outcome.over_quiet("p99_ms") == 2.0
