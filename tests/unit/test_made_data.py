"""What the shipped networks learn from: the same for the same seed, and what it says of itself is so."""

import json

import numpy as np
import pytest

from model_export.corpus import SourceFile
from model_export.data import machine, sound, sources


@pytest.fixture(scope="module")
def readings():
    return machine.make_readings(6000, 3, seed=5)


@pytest.fixture(scope="module")
def scene():
    return sound.make_scene(6, seed=5)


def of_kind(readings, name):
    kind = machine.KINDS.index(name)
    events = [event for event in readings.events if event.kind == kind]
    assert events
    for event in events:
        yield event, readings.values[event.start - 1 : event.stop, event.machine, event.channel]


def test_readings_are_the_same_for_the_same_seed(readings):
    again = machine.make_readings(6000, 3, seed=5)
    np.testing.assert_array_equal(again.values, readings.values)
    assert again.events == readings.events
    assert not np.array_equal(machine.make_readings(6000, 3, seed=6).values, readings.values)


def test_every_reading_is_labelled_by_the_event_it_lies_in(readings):
    kinds = np.zeros_like(readings.kinds)
    for event in readings.events:
        kinds[event.start : event.stop, event.machine] = event.kind
    np.testing.assert_array_equal(kinds, readings.kinds)
    assert set(np.unique(kinds)) == set(range(len(machine.KINDS)))


def test_a_stuck_sensor_shows_what_it_showed(readings):
    assert all(len(set(values.tolist())) == 1 for _, values in of_kind(readings, "stuck"))


def test_a_spike_is_short(readings):
    assert all(1 <= event.stop - event.start < 6 for event, _ in of_kind(readings, "spike"))


@pytest.mark.parametrize("name", ["oscillation", "noisy"])
def test_a_shaking_sensor_moves_more_than_its_noise(readings, name):
    for event, values in of_kind(readings, name):
        jumps = np.diff(values) / machine.NOISE[event.channel]
        assert np.sqrt(np.mean(jumps**2)) > 1.2


def test_a_healthy_machine_grows_warm_under_load_and_only_slowly(readings):
    healthy = readings.kinds == 0
    speed, temperature = readings.values[..., 0], readings.values[..., 2]
    running = healthy & (speed > 2400)
    still = healthy & (speed < 100)
    assert temperature[running].mean() > temperature[still].mean() + 8
    quiet = healthy[1:] & healthy[:-1]
    assert np.abs(np.diff(temperature, axis=0)[quiet]).max() < 6


def test_a_scene_is_the_same_for_the_same_seed(scene):
    again = sound.make_scene(6, seed=5)
    np.testing.assert_array_equal(again.samples, scene.samples)
    np.testing.assert_array_equal(again.speech, scene.speech)


def test_a_scene_has_speech_and_pauses_within_bounds(scene):
    assert len(scene.samples) == len(scene.speech) * sound.FRAME == 6 * sound.SAMPLE_RATE
    assert 0.1 < scene.speech.mean() < 0.9
    assert np.abs(scene.samples).max() <= 1
    assert len(scene.noises) == 6
    assert set(scene.noises) <= set(sound.NOISES)


def test_windows_overlap_by_the_context(scene):
    windows = sound.windows(scene.samples)
    assert windows.shape == (len(scene.speech), sound.CONTEXT + sound.FRAME)
    assert not windows[0, : sound.CONTEXT].any()
    np.testing.assert_array_equal(windows[1:, : sound.CONTEXT], windows[:-1, -sound.CONTEXT :])
    np.testing.assert_array_equal(windows[:, sound.CONTEXT :].ravel(), scene.samples)


@pytest.mark.parametrize("language", ["python", "c++", "cython", "protobuf", "rst"])
def test_every_server_has_files_of_the_languages_of_the_demo(language):
    files = sources.held_out_files(language)
    assert files
    assert all(file.path.startswith(f"{language}/") for file in files)
    assert max(len(file.data) for file in files) <= sources.MOST_FILE_BYTES


def test_yaml_says_what_json_says():
    yaml = pytest.importorskip("yaml")
    schema = {"b": [1, {"a": None}], "a": "é"}
    files = [SourceFile("json/x/y.json", json.dumps(schema).encode())]
    (written,) = sources.as_yaml(files)
    assert written.path == "yaml/x/y.json"
    assert yaml.safe_load(written.data) == schema
