"""The report of `make bench-scale`."""

import json

from benchmarks.scale import FailOver, Found, Moves, Node, Turn, document, markdown
from holdfast.verify.findings import Findings
from holdfast.verify.judge import Verdict

FOUND = Found(
    nodes=[Node(300, 2**20), Node(100, 2**20)],
    moves=Moves(8, 1.5, 0.5),
    turns={
        ("64 streams", count): [Turn(speed, 1, 2, 90, 20, 30) for speed in (8, 1, 9)] for count in (2, 1)
    },
    fail_over=FailOver(2.5, 3.0, 77, {"STORE_UNAVAILABLE": 2}, Verdict(Findings(tokens=5, lost=1))),
)


def test_the_report_shows_medians_shares_and_the_verdict():
    text = markdown(FOUND, {"cores": 2})
    assert "| 64 streams | 1 | 8 | 1.0 | 2.0 | 90.0 | 20.0 | 30.0 |\n| 64 streams | 2 | 8 |" in text
    assert "| 1 | 300 | 75.0% | 1.0 |" in text
    assert "STORE_UNAVAILABLE 2" in text
    assert "`lost 1  twice 0" in text


def test_all_of_it_is_json():
    data = json.loads(json.dumps(document(FOUND)))
    assert [turn["replicas"] for turn in data["turns"]] == [2, 1]
    assert data["fail_over"]["verdict"]["is_good"] is False
