"""`holdfast demo` as a user runs it, and its judge."""

import subprocess
import sys

import numpy as np
import pytest

from holdfast.cli.demo import main
from holdfast.client.reply import StepReply
from holdfast.demo.judgement import judge
from holdfast.demo.oracle import Uninterrupted
from holdfast.demo.text_stream import difference as text_difference
from holdfast.v1 import holdfast_pb2 as pb

pytestmark = pytest.mark.e2e


def test_the_demo_survives_the_kill_and_says_so(tmp_path):
    text = tmp_path / "text.py"
    text.write_text("def memory(tokens):\n    return sum(tokens)\n" * 8)
    command = [
        sys.executable,
        "-c",
        "from service.command import main; main()",
        "demo",
        "--file",
        str(text),
    ]
    command += ["--picture", str(tmp_path / "demo.svg")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert result.returncode == 0, result.stderr
    assert "killed with SIGKILL" in result.stdout
    assert "lost 0  applied twice 0  max difference" in result.stdout.splitlines()[-1]
    assert "SIGKILL" in (tmp_path / "demo.svg").read_text()


def test_another_kind_of_network_is_shown_in_the_same_way():
    command = [sys.executable, "-c", "from service.command import main; main()", "demo"]
    command += ["--model", "sound-events", "--tokens", "40"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert result.returncode == 0, result.stderr
    assert "killed with SIGKILL after token 20" in result.stdout
    assert "40/40 frames" in result.stdout
    assert "lost 0  applied twice 0  max difference" in result.stdout.splitlines()[-1]


def test_what_a_network_cannot_take_is_refused(capsys):
    for flags in (["--type", "--model", "code-language"], ["--file", "x", "--model", "sensor-anomaly"]):
        with pytest.raises(SystemExit):
            main(flags)
        assert flags[-1] in capsys.readouterr().err


def reply(position, log_prob):
    outputs = pb.Outputs(token_count=1, token_log_probs=[log_prob])
    logits = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[1, 1], data=np.float32(0).tobytes())
    outputs.tensors.append(pb.NamedTensor(name="logits", tensor=logits))
    return StepReply(pb.ChunkResult(position=position, outputs=outputs))


@pytest.mark.parametrize(
    ("replies", "lost", "twice", "difference"),
    [
        ([(1, -1.0), (2, -2.0)], 0, 0, 0.0),
        ([(1, -1.0)], 1, 0, 0.0),
        ([(1, -1.0), (2, -2.0), (2, -2.0)], 0, 1, 0.0),
        ([(1, -1.0), (2, -2.5)], 0, 0, 0.5),
    ],
)
def test_the_judge_counts_losses_doubles_and_differences(replies, lost, twice, difference):
    expected = Uninterrupted(np.zeros((2, 1), np.float32), np.array([-1.0, -2.0], np.float32))
    judged = judge([reply(*entry) for entry in replies], 2, lambda given: text_difference(given, expected))
    assert judged == (lost, twice, difference)
    assert judged.is_good == (lost == twice == difference == 0)
