"""docs/guides/pipes.md: its example, as it stands, killed and repeated."""

import json
import shlex
import signal
import subprocess
import sys

import numpy as np

from holdfast.demo.processes import ServerProcess
from tests.docs.pages import blocks
from tests.support.waiting import wait_for

PAGE = "docs/guides/pipes.md"
READINGS, SCORES = [block.text for block in blocks("text") if block.page == PAGE]
[COMMAND] = [block.text for block in blocks("sh") if block.page == PAGE]


def records_of(text):
    return sorted(map(json.loads, text.splitlines()), key=lambda record: int(record["entry"]))


def test_the_example_gives_what_the_page_shows_however_often_it_is_killed(tmp_path):
    with ServerProcess(tmp_path / "data") as server:
        run_the_example(server, tmp_path)


def run_the_example(server, tmp_path):
    (tmp_path / "readings.csv").write_text(READINGS)
    scores = tmp_path / "scores.jsonl"
    words = shlex.split(COMMAND.replace("\\\n", " ").replace("localhost:50051", server.address))[1:]
    line = [sys.executable, "-c", "from service.command import main; main()", *words]
    with subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.DEVNULL) as killed:
        wait_for(lambda: scores.exists() and scores.stat().st_size)
        killed.send_signal(signal.SIGKILL)
    for _ in range(2):
        ended = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stderr
    assert ended.stderr == "holdfast pipe: 0 events applied, 6 done before\n"
    found, shown = records_of(scores.read_text()), records_of(SCORES)
    np.testing.assert_allclose(
        [record.pop("score") for record in found], [record.pop("score") for record in shown], atol=1e-4
    )
    assert found == shown
