"""Strip charts: well-formed, and every point lies in its lane."""

import re
from xml.etree import ElementTree

from model_export.picture import Curve, Lane, Span, draw


def test_a_picture_is_xml_with_all_its_names():
    lanes = [Lane("a < b", "unit", [Curve([0.0, 1.0, 9.0], "#000")], 0.0, 1.0, threshold=0.5)]
    text = draw("Title & all", lanes, [Span(1, 2, "fault", "#eee")], end=3, unit="hours")
    found = [node.text for node in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
    assert {"Title & all", "a < b", "unit", "fault", "hours", "0", "3"} <= set(found)


def test_values_beyond_a_lane_stay_at_its_edge():
    lane = Lane("x", "", [Curve([-5.0, 0.0, 1.0, 7.0], "#000")], 0.0, 1.0)
    points = re.search(r'points="([^"]+)"', draw("", [lane], [], end=1, unit="")).group(1)
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert heights[0] == heights[1] > heights[2] == heights[3]
