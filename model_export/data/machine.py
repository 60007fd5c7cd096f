"""A machine that a motor drives, read by six sensors, one of which goes wrong now and then.

The readings hang together: current, vibration and coolant flow follow the speed, the flow late; the winding
grows warm over half an hour and cools as slowly, upon an ambient temperature with a daily rhythm. So a
fault is seen against the other sensors or against what was before, and many only against what was before.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SECONDS_PER_READING = 30
READINGS_PER_DAY = 24 * 3600 // SECONDS_PER_READING

CHANNELS = ("speed", "current", "temperature", "vibration", "flow", "ambient")
UNITS = ("rpm", "A", "degC", "mm/s", "l/min", "degC")
SPANS = np.array([3000.0, 20.0, 45.0, 4.0, 25.0, 12.0])
"""How far a channel moves in ordinary work; sizes of faults are parts of it."""

NOISE = np.array([20.0, 0.3, 0.4, 0.12, 0.4, 0.3])
"""Standard deviation of each sensor's noise, in its unit."""

NORMAL = "normal"
FAULTS = ("stuck", "spike", "drift", "decoupled", "oscillation", "noisy")
KINDS = (NORMAL, *FAULTS)

_DURATIONS = {
    "stuck": (30, 120),
    "spike": (1, 6),
    "drift": (120, 300),
    "decoupled": (60, 200),
    "oscillation": (40, 120),
    "noisy": (40, 120),
}
"""Least and most readings of a fault."""

_SHARES = np.array([0, 1, 3, 1, 1, 1, 1]) / 8
"""Of the kinds among the faults: spikes are short, and come more often."""

_SHORTEST_GAP, _MEAN_GAP = 60, 200
_OLD = 1500
"""So many readings back, at least, lies what a decoupled sensor shows."""


class Event(NamedTuple):
    """A fault.

    Attributes:
        machine: Column of the readings.
        start: Its first reading.
        stop: The one after its last.
        kind: Index in KINDS.
        channel: Index in CHANNELS.
    """

    machine: int
    start: int
    stop: int
    kind: int
    channel: int


class Readings(NamedTuple):
    """What some machines' sensors said.

    Attributes:
        values: float32 (readings, machines, channels), in UNITS.
        kinds: uint8 (readings, machines), index in KINDS of the fault at that time.
        events: The faults.
    """

    values: NDArray[np.float32]
    kinds: NDArray[np.uint8]
    events: tuple[Event, ...]


def make_readings(count: int, machines: int, seed: int) -> Readings:
    """Runs machines for `count` readings; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    values = _healthy(count, machines, rng)
    kinds = np.zeros((count, machines), np.uint8)
    events = [event for machine in range(machines) for event in _events(count, machine, rng)]
    healthy = values.copy()
    for event in events:
        part = slice(event.start, event.stop)
        values[part, event.machine, event.channel] = _faulty(healthy, event, rng)
        kinds[part, event.machine] = event.kind
    return Readings(values.astype(np.float32), kinds, tuple(events))


def _healthy(count: int, machines: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Returns (readings, machines, channels) of sensors without faults."""
    ambient = _ambient(count, machines, rng)
    load = _lagged(_commands(count, machines, rng), 4.0)
    strain = 1.0 + _wander(count, machines, 120.0, 0.12, rng)
    torque = load**1.5 * strain
    warmth = _lagged(ambient + 45.0 * torque, 80.0)
    wear = rng.uniform(0.85, 1.15, machines)
    resonance = 1.5 * np.exp(-(((load - 0.62) / 0.06) ** 2))
    clean = np.stack(
        [
            3000.0 * load,
            2.0 + 18.0 * torque,
            warmth,
            wear * (0.4 + 2.2 * load + resonance),
            25.0 * _lagged(load, 12.0),
            ambient,
        ],
        axis=2,
    )
    return clean + NOISE * rng.standard_normal(clean.shape)


def _ambient(count: int, machines: int, rng: np.random.Generator) -> NDArray[np.float64]:
    hours = np.arange(count)[:, np.newaxis] / READINGS_PER_DAY + rng.uniform(0.0, 1.0, machines)
    return 20.0 + 5.0 * np.sin(2 * np.pi * hours) + _wander(count, machines, 400.0, 0.8, rng)


def _commands(count: int, machines: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """What load is asked for, 0 to 1: for a while one level, then another, or standstill."""
    changes = rng.uniform(size=(count, machines)) < 1 / 60
    changes[0] = True
    running = rng.uniform(size=(count, machines)) < 0.75
    levels = np.where(running, rng.uniform(0.3, 1.0, (count, machines)), 0.0)
    last_change = np.maximum.accumulate(np.where(changes, np.arange(count)[:, np.newaxis], 0))
    return np.take_along_axis(levels, last_change, axis=0)


def _lagged(target: NDArray[np.float64], readings: float) -> NDArray[np.float64]:
    """Returns what follows a target with this time constant."""
    followed = np.empty_like(target)
    value = target[0]
    for index, wanted in enumerate(target):
        value = value + (wanted - value) / readings
        followed[index] = value
    return followed


def _wander(
    count: int, machines: int, readings: float, deviation: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Returns a random walk that is drawn back to 0 (an Ornstein-Uhlenbeck process)."""
    kept = np.exp(-1 / readings)
    pushes = deviation * np.sqrt(1 - kept**2) * rng.standard_normal((count, machines))
    walk = np.empty((count, machines))
    value = deviation * rng.standard_normal(machines)
    for index, push in enumerate(pushes):
        value = kept * value + push
        walk[index] = value
    return walk


def _events(count: int, machine: int, rng: np.random.Generator) -> list[Event]:
    events: list[Event] = []
    start = _SHORTEST_GAP
    while True:
        start += int(rng.exponential(_MEAN_GAP))
        kind = int(rng.choice(len(KINDS), p=_SHARES))
        stop = start + int(rng.integers(*_DURATIONS[KINDS[kind]]))
        if stop > count:
            return events
        events.append(Event(machine, start, stop, kind, int(rng.integers(len(CHANNELS)))))
        start = stop + _SHORTEST_GAP


def _faulty(healthy: NDArray[np.float64], event: Event, rng: np.random.Generator) -> NDArray[np.float64]:
    """Returns what the sensor shows during the event."""
    column = healthy[:, event.machine, event.channel]
    truth, span = column[event.start : event.stop], SPANS[event.channel]
    time = np.arange(len(truth))
    sign = rng.choice((-1.0, 1.0))
    match KINDS[event.kind]:
        case "stuck":
            return np.full(len(truth), column[event.start - 1])
        case "spike":
            return truth + sign * span * rng.uniform(0.25, 0.6)
        case "drift":
            return truth + sign * span * rng.uniform(0.25, 0.5) * (time + 1) / len(truth)
        case "decoupled":
            other = (event.start + _OLD + int(rng.integers(_OLD))) % (len(column) - len(truth))
            return column[other : other + len(truth)]
        case "oscillation":
            period, size = rng.uniform(5.0, 12.0), rng.uniform(0.06, 0.15)
            return truth + span * size * np.sin(2 * np.pi * time / period)
        case _:
            return truth + span * rng.uniform(0.05, 0.12) * rng.standard_normal(len(truth))
