"""Sound that is made: utterances that are speech in all but meaning, among noises that are not.

A voice is a sum of harmonics of a gliding pitch, each as loud as the formants of the moment let it be, in
syllables of an eighth to a third of a second with short closures and hisses between them. The noises are
white, pink, mains hum, clicks, and notes of music, which have harmonics as well: a moment of them looks
like a vowel, and only the rhythm says what it is.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
FRAME = 256
"""Samples per token: 16 ms."""

CONTEXT = 64
"""Samples that a token sees of the ones before it."""

NOISES = ("white", "pink", "hum", "clicks", "music")

_CONTROL = 80  # samples between two points of a slowly changing quantity: 5 ms
_HIGHEST_HZ = 4000.0
_FORMANT_WIDTHS_HZ = np.array([80.0, 110.0, 160.0])
_FORMANT_GAINS = np.array([1.0, 0.6, 0.3])

_Samples = NDArray[np.float64]


class Scene(NamedTuple):
    """A recording that was made.

    Attributes:
        samples: float32 (frames * FRAME,), between -1 and 1.
        speech: bool (frames,): somebody speaks in at least half of the frame.
        noises: The kind of noise in every second.
    """

    samples: NDArray[np.float32]
    speech: NDArray[np.bool_]
    noises: tuple[str, ...]


def make_scene(seconds: int, seed: int) -> Scene:
    """Makes a recording; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    count = seconds * SAMPLE_RATE // FRAME * FRAME
    voice, talking = _conversation(count, rng)
    noise, noises = _background(count, seconds, rng)
    loudness = np.sqrt(np.mean(voice[talking] ** 2)) if talking.any() else 1.0
    mixed = voice / loudness + noise
    mixed *= rng.uniform(0.02, 0.2)
    speech = talking.reshape(-1, FRAME).mean(axis=1) >= 0.5
    return Scene(np.clip(mixed, -1.0, 1.0).astype(np.float32), speech, noises)


def windows(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns what a token sees, (frames, CONTEXT + FRAME): new samples behind the last of those before."""
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), samples])
    every = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + FRAME)
    return np.ascontiguousarray(every[::FRAME])


def _conversation(count: int, rng: np.random.Generator) -> tuple[_Samples, NDArray[np.bool_]]:
    """Returns samples of voices and silence, and when somebody speaks."""
    voice, talking = np.zeros(count), np.zeros(count, bool)
    start = int(rng.uniform(0.2, 1.5) * SAMPLE_RATE)
    while True:
        length = int(rng.uniform(0.6, 3.5) * SAMPLE_RATE)
        if start + length > count:
            return voice, talking
        voice[start : start + length] = _utterance(length, rng)
        talking[start : start + length] = True
        start += length + int(rng.uniform(0.4, 2.5) * SAMPLE_RATE)


def _utterance(count: int, rng: np.random.Generator) -> _Samples:
    """Returns one speaker's syllables without a long pause, (count,)."""
    points = count // _CONTROL + 2
    pitch = rng.uniform(85.0, 255.0) * np.linspace(1.1, 0.85, points)
    pitch *= 1 + 0.06 * np.sin(2 * np.pi * np.arange(points) * rng.uniform(0.006, 0.02))
    pitch *= 1 + 0.01 * rng.standard_normal(points)
    level, hiss, formants = np.zeros(points), np.zeros(points), np.zeros((points, 3))
    point = 0
    while point < points:
        length, gap = int(rng.uniform(24, 64)), int(rng.choice([0, rng.uniform(8, 24)]))
        end = min(point + length, points)
        level[point:end] = np.hanning(length + 2)[1 : end - point + 1] ** 0.5 * rng.uniform(0.6, 1.0)
        formants[point : end + gap] = rng.uniform((280, 800, 2300), (800, 2200, 3000))
        if rng.uniform() < 0.5:
            hiss[max(0, point - 14) : point + 4] = rng.uniform(0.15, 0.5)
        point = end + gap
    formants = np.stack([_smoothed(column, 9) for column in formants.T], axis=1)
    voiced = _harmonics(count, pitch, level, formants, rng)
    breath = np.diff(rng.standard_normal(count + 1))  # a difference lifts the high frequencies
    return voiced + 0.5 * breath * _at_samples(_smoothed(hiss, 5), count)


def _harmonics(
    count: int, pitch: _Samples, level: _Samples, formants: _Samples, rng: np.random.Generator
) -> _Samples:
    phase = 2 * np.pi * np.cumsum(_at_samples(pitch, count)) / SAMPLE_RATE
    total = np.zeros(count)
    for number in range(1, int(_HIGHEST_HZ / pitch.min()) + 1):
        frequency = (number * pitch)[:, np.newaxis]
        resonances = _FORMANT_GAINS / (1 + ((frequency - formants) / _FORMANT_WIDTHS_HZ) ** 2)
        strength = level * (resonances.sum(axis=1) + 0.02) / number**0.5
        strength = np.where(frequency[:, 0] < _HIGHEST_HZ, strength, 0.0)
        total += _at_samples(strength, count) * np.sin(number * phase + rng.uniform(0, 2 * np.pi))
    return total


def _background(count: int, seconds: int, rng: np.random.Generator) -> tuple[_Samples, tuple[str, ...]]:
    """Returns noise at 3 dB above to 20 dB below speech of level 1, another kind every few seconds."""
    noise = np.zeros(count)
    names: list[str] = []
    while len(names) < seconds:
        name = NOISES[int(rng.integers(len(NOISES)))]
        length = int(rng.integers(3, 9))
        start, stop = len(names) * SAMPLE_RATE, min((len(names) + length) * SAMPLE_RATE, count)
        names += [name] * length
        if start < stop:
            made = _MAKERS[name](stop - start, rng)
            level = 10 ** (rng.uniform(-20.0, 3.0) / 20)
            noise[start:stop] = made * level / (np.sqrt(np.mean(made**2)) + 1e-9)
    noise += rng.uniform(0.005, 0.03) * rng.standard_normal(count)
    return noise, tuple(names[:seconds])


def _white(count: int, rng: np.random.Generator) -> _Samples:
    return rng.standard_normal(count)


def _pink(count: int, rng: np.random.Generator) -> _Samples:
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 20 * count / SAMPLE_RATE))
    return np.fft.irfft(spectrum, count)


def _hum(count: int, rng: np.random.Generator) -> _Samples:
    time = np.arange(count) / SAMPLE_RATE
    mains = rng.choice((50.0, 60.0))
    return sum(
        (
            np.sin(2 * np.pi * mains * n * time + rng.uniform(0, 6.3)) / n * rng.uniform(0.2, 1)
            for n in range(1, 13)
        ),
        np.zeros(count),
    )


def _clicks(count: int, rng: np.random.Generator) -> _Samples:
    made = 0.01 * rng.standard_normal(count)
    time = np.arange(400)
    for start in rng.integers(0, count, max(1, int(count / SAMPLE_RATE * rng.uniform(2, 12)))):
        ring = np.exp(-time / rng.uniform(10, 80)) * np.sin(time * rng.uniform(0.2, 2.0))
        part = made[start : start + len(ring)]
        part += ring[: len(part)] * rng.uniform(0.3, 1.0)
    return made


def _music(count: int, rng: np.random.Generator) -> _Samples:
    """Notes of a scale, one or two at a time, each with ten harmonics and a steady pitch."""
    made = np.zeros(count)
    start = 0
    while start < count:
        length = min(int(rng.uniform(0.15, 0.6) * SAMPLE_RATE), count - start)
        time = np.arange(length) / SAMPLE_RATE
        fade = np.minimum(1, time / 0.01) * np.exp(-time / rng.uniform(0.15, 0.8))
        for _ in range(int(rng.integers(1, 3))):
            pitch = 110.0 * 2 ** (int(rng.integers(0, 25)) / 12)
            for number in range(1, 11):
                tone = np.sin(2 * np.pi * pitch * number * time) * rng.uniform(0.3, 1) / number
                made[start : start + length] += fade * tone
        start += length
    return made


_MAKERS = {"white": _white, "pink": _pink, "hum": _hum, "clicks": _clicks, "music": _music}


def _smoothed(values: _Samples, width: int) -> _Samples:
    """Returns running means over an odd number of points; the ends stand for what is beyond them."""
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.full(width, 1 / width), mode="valid")


def _at_samples(points: _Samples, count: int) -> _Samples:
    """Interpolates from control points to samples."""
    return np.interp(np.arange(count) / _CONTROL, np.arange(len(points)), points)
