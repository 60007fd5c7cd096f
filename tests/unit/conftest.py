"""Engines of fakes: a model whose state is a running sum, a store in memory."""

import pytest

from service.engine.driver import Driver
from service.engine.limits import EngineLimits
from tests.support.fakes import (
    AccumulatorModel,
    CountingObserver,
    FakeModels,
    MemoryStore,
    encode_totals,
    open_session,
)


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
