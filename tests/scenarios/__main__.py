"""Prints transcripts with the effects as they come out: `python -m tests.scenarios FILE...`."""

import sys
from pathlib import Path

from tests.scenarios.world import World

for name in sys.argv[1:]:
    sys.stdout.write(World().play(Path(name).read_text()))
