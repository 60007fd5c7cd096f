"""The report of `make bench`: judging, dividing, writing, drawing."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks import report, speed
from benchmarks.results import (
    CLIENT,
    ECHO,
    HOLDFAST,
    ONE_COMMIT,
    ONE_RUN,
    ONNXRUNTIME,
    PLAIN,
    STORE,
    TRITON,
    TRITON_CLIENT,
    Label,
    Results,
    Round,
)
from benchmarks.section import Ratio, Section
from benchmarks.targets import goals, ratios
from holdfast.bench.scrape import mean, parse

RESULTS = Results(
    {
        Label("1 stream", HOLDFAST): [Round(1.0, 0.8, 1.0, 1.0, 5.0, 1.0)],
        Label("1 stream", ECHO): [Round(1.0, 0.3, 1.0, 1.0, 5.0)],
        Label("64 streams", HOLDFAST): [
            Round(speed, 1.0, 3.0, 4.0, 100.0, 1.0, 7.0) for speed in (90, 10, 60)
        ],
        Label("64 streams", ECHO): [Round(120.0, 1.0, 2.0, 3.0, 50.0)],
        Label("64 streams", TRITON): [],
        Label(ONE_RUN, ONNXRUNTIME): [Round(1.0, 0.2, 1.0, 1.0)],
        Label(ONE_COMMIT, STORE): [Round(1.0, 0.3, 1.0, 1.0)],
    },
    {Label("64 streams", TRITON): ["it died of SIGSEGV"] * 2},
)


@pytest.mark.parametrize(
    ("value", "at_least", "at_most", "is_met"),
    [
        (1.0, 0.9, None, True),
        (0.8, 0.9, None, False),
        (1.0, None, 1.4, True),
        (1.5, None, 1.4, False),
        (None, 0.9, None, None),
        (1.0, None, None, None),
    ],
)
def test_a_ratio_is_judged_by_its_bounds(value, at_least, at_most, is_met):
    assert Ratio("x", value, at_least, at_most).is_met is is_met


def test_ratios_are_of_medians_and_say_what_is_missing():
    measured = {ratio.name: ratio.value for ratio in ratios(RESULTS)}
    assert measured["64 streams: steps/s over the echo's"] == 60 / 120
    assert measured["64 streams: server CPU per step over the echo's"] == 100 / 50
    assert measured["64 streams: steps/s over Triton's"] is None
    assert measured["batches of 64 rows x 16: steps/s over Triton's best"] is None


def test_goals_are_ratios_of_what_they_name():
    def at(steps_per_s, p99_ms=1.0, server_us=1.0, p50_ms=1.0):
        return [Round(steps_per_s, p50_ms, p99_ms, 1.0, server_us)]

    results = Results(
        {
            **RESULTS.rounds,
            Label("1 caller", CLIENT): at(1, p50_ms=0.88),
            Label("64 callers", CLIENT): at(9000, p99_ms=3),
            Label("64 callers", HOLDFAST): at(1, server_us=240),
            Label("64 callers", ECHO): at(2000, server_us=200),
            Label("64 callers", PLAIN): at(1000),
            Label("64 callers", TRITON): at(1500, p99_ms=10),
            Label("64 callers", TRITON_CLIENT): at(1000, p99_ms=5),
            Label("64 streams", CLIENT): at(8000),
            Label("64 streams", TRITON): at(2500),
            Label("64 streams", TRITON_CLIENT): at(2000),
            Label("256 callers", CLIENT): at(10000),
            Label("256 callers", PLAIN): at(500),
            Label("256 callers", TRITON): at(1800),
            Label("256 streams", TRITON): at(4000),
            Label("1,024 callers", CLIENT): at(30000),
            Label("256 rows x 1", HOLDFAST): at(60000, server_us=12),
            Label("256 rows x 1", ONNXRUNTIME): at(100000, server_us=6),
        },
        {},
    )
    judged = goals(results)
    measured = {goal.name.partition(": ")[0]: goal.value for goal in judged}
    assert measured == {
        "64 callers of session.step over the unary no-op echo": 4.5,
        "64 callers of session.step over Triton's unary at its best": 5,
        "256 callers of session.step over plain's unary at its best": 10,
        "256 callers of session.step over Triton's best, unary or streams": 2.5,
        "1,024 callers of session.step over messages of 256 rows": 0.5,
        "64 callers of session.step over 64 of Triton's unary": 0.3,
        "1 caller of session.step over one token on a stream": pytest.approx(1.1),
        "64 plain unary callers over the echo": 1.2,
        "64 session.streams over Triton's streams at their best": 2,
        "messages of 256 rows x 1 over onnxruntime on 256 rows alone": 2,
        "1 stream over echo + one run + one commit, each on an idle machine": pytest.approx(1),
    }
    assert {goal.at_least or goal.at_most for goal in judged if goal.is_met is False} == {
        *(18, 4.5, 0.7, 1.05, 1.7),
    }
    assert all(goal.value is None for goal in goals(Results({}, {})))


def test_the_report_holds_every_section_and_every_failure():
    sections = [
        speed.section(RESULTS, {HOLDFAST: 150.0}),
        Section(
            "Growth",
            "text",
            [Ratio("a", 1.0, 0.85), Ratio("b", None, note="left out")],
            {"keys": 1},
            goals=[Ratio("c", 0.5, 0.7)],
        ),
    ]
    text = report.markdown({"cores": 2}, sections)
    assert "| 64 streams | holdfast | 60 | 10..90 | 1.00 | 3.00 | 4.00 | 100.0 | 1.0 | 7.0 |" in text
    assert "| a | 1.00 | >= 0.85 | yes |  |" in text
    assert "| b | not measured |  |  | left out |" in text
    assert "triton, 64 streams: 2 turns failed and 0 did not. it died of SIGSEGV." in text
    *_, last = text.partition("## Goals")
    assert "| c | 0.50 | >= 0.7 | no |  |" in last
    assert "1 stream over echo + one run + one commit" in last
    document = json.loads(json.dumps(report.document({"cores": 2}, sections)))
    assert document["sections"]["Growth"] == {"keys": 1}
    assert document["ratios"][0]["is_met"] is False
    assert document["goals"][-1] == {
        "name": "c",
        "value": 0.5,
        "at_least": 0.7,
        "at_most": None,
        "note": "",
        "is_met": False,
    }


def test_the_picture_is_well_formed_and_leaves_out_who_has_no_figures():
    picture = speed.picture(RESULTS)
    shown = [element.text for element in ElementTree.fromstring(picture).iter() if element.text]
    assert "64 streams" in shown
    assert "triton" not in shown


def test_a_scrape_gives_the_mean_of_what_lies_between():
    before = parse("# HELP x\nx_sum 1.0\nx_count 2.0\n")
    after = parse('x_sum 4.0\nx_count 4.0\nx_bucket{le="1"} 3\n')
    assert mean(before, after, "x") == 1.5
    assert mean(after, after, "x") is None
