"""Every transcript in this folder comes out as written; `python -m tests.scenarios FILE` plays one."""

from pathlib import Path

import pytest

from tests.scenarios.world import World

SCENARIOS = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path):
    written = path.read_text()
    assert World().play(written) == written


def test_there_are_scenarios():
    assert len(SCENARIOS) >= 10
