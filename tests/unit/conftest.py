"""Engines of fakes: a model whose state is a running sum, a store in memory. Forked checks of models."""

import os
import tempfile

import pytest

from service.engine.driver import Driver
from service.engine.limits import EngineLimits
from service.model.check import start_confined
from tests.support.command_line import starts
from tests.support.fakes import (
    AccumulatorModel,
    CountingObserver,
    FakeModels,
    MemoryStore,
    encode_totals,
    open_session,
)

FORKED = ("service.model.check_process", "service.model.inspect_process")


@pytest.fixture
def model():
    return AccumulatorModel()


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def observer():
    return CountingObserver()


@pytest.fixture
async def start(model, store, observer):
    """Starts engines on one store; `sessions` are opened there before."""
    engines = []

    def create(sessions=(), **limits):
        for name in sessions:
            open_session(store, name, model)
        limits = EngineLimits(**limits)
        engine = Driver(FakeModels(model), store, observer.count, limits, encode_totals)
        engine.start()
        engines.append(engine)
        return engine

    yield create
    for engine in engines:
        await engine.stop()


@pytest.fixture(scope="module")
def forked_checks():
    """Processes that look at a model are forked from one that has imported them, for a quarter of the CPU.

    As a server starts them they are tested by test_model_check.py and test_confinement.py.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.model.check.start_confined", _start_forked)
        patch.setattr("service.model.inspection.start_confined", _start_forked)
        yield


def _start_forked(module, path, data, limits, *arguments):
    if module not in FORKED:
        return start_confined(module, path, data, limits, *arguments)
    memory_bytes = limits.memory_bytes + limits.memory_per_byte * len(data)
    words = [module, limits.cpu_s, memory_bytes, starts().pid, *arguments]
    reads, writes = os.pipe()
    with tempfile.TemporaryFile() as model, open(writes, "wb") as out, open(os.devnull, "wb") as err:
        model.write(data)
        model.seek(0)
        process = starts().fork(module, words, (model, out, err))
    process.stdout = open(reads, "rb")  # noqa: SIM115
    return process
