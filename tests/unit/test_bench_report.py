"""The report of `make bench`: judging, dividing, writing, drawing."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks import report, speed
from benchmarks.results import (
    ECHO,
    HOLDFAST,
    ONE_COMMIT,
    ONE_COMMIT_IDLE,
    ONE_RUN,
    ONE_RUN_IDLE,
    ONNXRUNTIME,
    STORE,
    TRITON,
    Label,
    Results,
    Round,
)
from benchmarks.section import Ratio, Section
from benchmarks.targets import ratios
from holdfast.bench.scrape import mean, parse

RESULTS = Results(
    {
        Label("1 stream", HOLDFAST): [Round(1.0, 0.8, 1.0, 1.0, 5.0, 1.0)],
        Label("1 stream", ECHO): [Round(1.0, 0.3, 1.0, 1.0, 5.0)],
        Label("64 streams", HOLDFAST): [Round(speed, 1.0, 3.0, 4.0, 100.0, 1.0) for speed in (90, 10, 60)],
        Label("64 streams", ECHO): [Round(120.0, 1.0, 2.0, 3.0, 50.0)],
        Label("64 streams", TRITON): [],
        Label(ONE_RUN, ONNXRUNTIME): [Round(1.0, 0.1, 1.0, 1.0)],
        Label(ONE_COMMIT, STORE): [Round(1.0, 0.2, 1.0, 1.0)],
        Label(ONE_RUN_IDLE, ONNXRUNTIME): [Round(1.0, 0.2, 1.0, 1.0)],
        Label(ONE_COMMIT_IDLE, STORE): [Round(1.0, 0.3, 1.0, 1.0)],
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
    idle = "1 stream: p50 over echo + one run + one commit, each on an idle machine"
    assert measured[idle] == pytest.approx(0.8 / 0.8)
    back_to_back = "the same, runs and commits back to back, so that caches are warm"
    assert measured[back_to_back] == pytest.approx(0.8 / 0.6)
    assert measured["64 streams: steps/s over Triton's"] is None
    assert measured["batches of 64 rows x 16: steps/s over Triton's best"] is None


def test_the_report_holds_every_section_and_every_failure():
    sections = [
        speed.section(RESULTS, {HOLDFAST: 150.0}),
        Section("Growth", "text", [Ratio("a", 1.0, 0.85), Ratio("b", None, note="left out")], {"keys": 1}),
    ]
    text = report.markdown({"cores": 2}, sections)
    assert "| 64 streams | holdfast | 60 | 10..90 | 1.00 | 3.00 | 4.00 | 100.0 | 1.0 |" in text
    assert "| a | 1.00 | >= 0.85 | yes |  |" in text
    assert "| b | not measured |  |  | left out |" in text
    assert "triton, 64 streams: 2 turns failed and 0 did not. it died of SIGSEGV." in text
    document = json.loads(json.dumps(report.document({"cores": 2}, sections)))
    assert document["sections"]["Growth"] == {"keys": 1}
    assert document["ratios"][0]["is_met"] is False


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
