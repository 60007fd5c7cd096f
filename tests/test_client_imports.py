"""What a client loads: nothing that only a server has, which a client need not have installed."""

import subprocess
import sys

import pytest

from holdfast import __version__
from tests.release import CLIENT


@pytest.mark.process
def test_a_client_loads_nothing_of_the_servers():
    done = subprocess.run([sys.executable, "-c", CLIENT, __version__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
