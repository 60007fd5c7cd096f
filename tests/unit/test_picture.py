"""Strip charts: well-formed, and every point lies in its lane."""

import re
from xml.etree import ElementTree

from model_export.picture import Curve, Lane, Span, draw


def test_a_picture_is_xml_with_all_its_names():
    lanes = [Lane("a < b", "unit", [Curve([0.0, 1.0, 9.0], "#000")], 0.0, 1.0, threshold=0.5)]
    text = draw("Title & all", lanes, [Span(1, 2, "fault", "#eee")], end=3, unit="hours")
    found = [node.text for node in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
    assert {"Title & all", "a < b", "unit", "fault", "hours", "0", "0.5", "3"} <= set(found)


def test_values_beyond_a_lane_stay_at_its_edge():
    lane = Lane("x", "", [Curve([-5.0, 0.0, 1.0, 7.0], "#000")], 0.0, 1.0)
    points = re.search(r'points="([^"]+)"', draw("", [lane], [], end=1, unit="")).group(1)
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert heights[0] == heights[1] > heights[2] == heights[3]


def test_names_that_would_run_into_each_other_stand_on_two_heights():
    spans = [Span(0, 1, "a long name", "#eee"), Span(1, 2, "another", "#eee"), Span(90, 99, "far", "#eee")]
    text = draw("", [Lane("x", "", [], 0.0, 1.0)], spans, end=100, unit="")
    heights = dict(re.findall(r'y="([\d.]+)"[^>]*>(a long name|another|far)<', text))
    assert len(heights) == 2
    assert heights == {"57.0": "far", "44.0": "another"}
