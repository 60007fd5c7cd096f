"""Which files have come to rest: plain calls."""

from pathlib import Path

from service.model.files import ModelFile, Stamp
from service.model.looks import SETTLE_S, Looks

FILE = ModelFile("sum", 2, Path("sum/2/model.onnx"))
OTHER = ModelFile("sum", 3, Path("sum/3/model.onnx"))
PART = Stamp(100, 1, 1, 7)
WHOLE = Stamp(200, 2, 2, 7)


def test_a_file_is_tried_once_two_looks_have_found_the_same_of_it():
    looks = Looks()
    assert looks.rested({FILE: WHOLE}, 0.0) == []
    assert looks.restless() == [FILE]
    assert looks.rested({FILE: WHOLE}, SETTLE_S) == [FILE]
    looks.note_tried(FILE)
    assert looks.restless() == []
    assert looks.rested({FILE: WHOLE}, 100.0) == []


def test_a_file_that_changes_between_looks_is_not_tried():
    looks = Looks()
    for second in range(5):
        assert looks.rested({FILE: PART._replace(size_bytes=second)}, float(second)) == []
    assert looks.rested({FILE: PART._replace(size_bytes=4)}, 5.0) == [FILE]


def test_two_looks_in_one_moment_prove_nothing():
    looks = Looks()
    looks.rested({FILE: PART}, 0.0)
    assert looks.rested({FILE: PART}, SETTLE_S / 2) == []
    assert looks.rested({FILE: PART}, SETTLE_S) == [FILE]


def test_each_part_of_a_stamp_makes_a_file_another():
    for change in ({"size_bytes": 201}, {"mtime_ns": 3}, {"ctime_ns": 3}, {"inode": 8}):
        looks = Looks()
        looks.rested({FILE: WHOLE}, 0.0)
        looks.rested({FILE: WHOLE}, 1.0)
        looks.note_tried(FILE)
        changed = WHOLE._replace(**change)
        assert looks.rested({FILE: changed}, 2.0) == []
        assert looks.rested({FILE: changed}, 3.0) == [FILE]


def test_a_file_that_cannot_be_looked_at_is_tried_too():
    looks = Looks()
    looks.rested({FILE: None}, 0.0)
    assert looks.rested({FILE: None}, 1.0) == [FILE]


def test_what_is_gone_is_forgotten_and_what_is_asked_for_is_tried_again():
    looks = Looks()
    looks.rested({FILE: WHOLE, OTHER: WHOLE}, 0.0)
    assert looks.rested({FILE: WHOLE, OTHER: WHOLE}, 1.0) == [FILE, OTHER]
    for file in (FILE, OTHER):
        looks.note_tried(file)
    looks.rested({FILE: WHOLE}, 2.0)
    looks.forget_tried([FILE, OTHER])
    assert looks.rested({FILE: WHOLE}, 3.0) == [FILE]
    looks.note_tried(FILE)
    assert looks.rested({FILE: WHOLE, OTHER: WHOLE}, 4.0) == []
    assert looks.rested({FILE: WHOLE, OTHER: WHOLE}, 5.0) == [OTHER]
