"""What the demo shows of each kind of network, and how it compares replies with the uninterrupted run."""

import io

import numpy as np
import pytest
from rich.console import Console, Group

from holdfast.client.reply import StepReply
from holdfast.demo.language_screen import LanguageScreen
from holdfast.demo.live import sparkline
from holdfast.demo.sensor_screen import SensorScreen
from holdfast.demo.shown import difference
from holdfast.demo.sound_screen import SoundScreen
from holdfast.demo.words_screen import WordsScreen
from holdfast.v1 import holdfast_pb2 as pb
from model_export.data.machine import KINDS
from model_export.data.sources import LANGUAGES


def rendered(screen):
    console = Console(width=120, file=io.StringIO(), color_system=None)
    console.print(Group(*screen.body()))
    return console.file.getvalue()


def one_hot(labels, label, rows=1):
    return np.eye(len(labels), dtype=np.float32)[[labels.index(label)] * rows] * 10


def test_a_sparkline_goes_from_empty_to_full():
    assert sparkline([-1, 0, 4, 8, 9], 0, 8) == "  ▄██"
    assert sparkline([1.0, 1.0], 1.0, 1.0) == "  "


def test_sensors_are_lines_with_the_score_and_the_fault_below():
    screen = SensorScreen(100, None)
    assert screen.tokens.shape == (100, 6)
    screen.show({"score": np.array([0.0]), "kind": one_hot(KINDS, "normal")}, 1)
    screen.show({"score": np.array([1.0]), "kind": one_hot(KINDS, "spike")}, 1)
    text = rendered(screen)
    assert all(word in text for word in ("temperature", "degC", "spike", "truth", "·"))
    assert screen.figures() == "named rightly 50%"


def test_bytes_stand_above_a_bar_for_each_language():
    screen = LanguageScreen(16, None)
    screen.show({"language": one_hot(LANGUAGES, "python")}, 8)
    assert screen.figures() == "right after 100% of the chunks"
    screen.show({"language": one_hot(LANGUAGES, "rst")}, 8)
    text = rendered(screen)
    assert screen.figures() == "right after 50% of the chunks"
    assert screen.tokens.decode()[:4] in text
    assert "100%" in next(line for line in text.splitlines() if line.startswith("rst"))


def test_of_a_file_nobody_knows_the_language(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"SELECT 1;")
    screen = LanguageScreen(None, tmp_path / "a.txt")
    assert screen.tokens == b"SELECT 1;"
    screen.show({"language": one_hot(LANGUAGES, "c++")}, 9)
    assert screen.figures() == "now c++"


def test_words_are_coloured_once_they_have_ended_above_what_may_come_next(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"the list")
    screen = WordsScreen(None, tmp_path / "a.txt")
    screen.labels = (" of", " list", "\n")
    logits = np.log(np.array([[0.2, 0.7, 0.1]] * 6, np.float32))
    screen.show({"logits": logits, "token_log_prob": np.array([0, 0, 0, -2, 0, 0], np.float32)}, 6)
    assert screen.figures() == "0.48 bits/byte"
    text = rendered(screen)
    assert "the li" in text
    first, second, third = (line for line in text.splitlines() if line.startswith("'"))
    assert first.startswith("' list'")
    assert first.rstrip().endswith("70%")
    assert (second[:5], third[:4]) == ("' of'", "'\\n'")


def test_sound_is_its_envelope_with_the_probability_below():
    screen = SoundScreen(10, None)
    assert screen.tokens.shape == (10, 256)
    screen.show({"speech": np.array([[0.1, 0.9]] * 10, np.float32)}, 10)
    text = rendered(screen)
    assert "noise: clicks" in text
    assert "90%" in text
    assert screen.figures().startswith("wrong frames ")


def reply(position, values):
    array = np.array(values, np.float32)
    tensor = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=array.shape, data=array.tobytes())
    outputs = pb.Outputs(token_count=2, tensors=[pb.NamedTensor(name="y", tensor=tensor)])
    return StepReply(pb.ChunkResult(position=position, outputs=outputs))


@pytest.mark.parametrize(
    ("values", "expected"), [([[2], [3]], 0.0), ([[2], [3.5]], 0.5), ([[3]], 0.0), ([[2]], 1.0)]
)
def test_an_output_of_the_last_token_is_compared_there(values, expected):
    run = {"y": np.array([[0], [1], [2], [3]], np.float32)}
    assert difference(reply(4, values), run) == pytest.approx(expected)
