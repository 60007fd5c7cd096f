"""Fixtures for all tests."""

import contextlib
import os
import subprocess

import pytest
from hypothesis import settings

from service.common.collector import sparing_imports
from service.store.opening import create_store
from service.store.safety import Allowances
from tests.support import command_line

settings.register_profile("untimed", deadline=None)  # no test asserts a time
settings.load_profile("untimed")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime, here the oracle, talks to nobody

FIRST = ("deploy", "faults", "rpc", "e2e", "contract", "matrix", "docs")
"""Folders whose tests wait for processes, those with the longest files first."""


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """Imports all tests, at which the collector need not look."""
    with sparing_imports():
        return (yield)


def pytest_collection_modifyitems(items):
    """Begins with what takes long, so that no worker of xdist is left with a long file at the end."""
    order = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(order)))


QUICK = ("unit", "scenarios", "simulation", "fuzz", "tests")
"""Folders that `make test-fast` runs, but for tests marked `process`."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Fails a test of the quick folders that starts a process and is not marked so."""
    if item.path.parent.name not in QUICK or item.get_closest_marker("process"):
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", _unmarked)
        return (yield)


def _unmarked(*_, **__):
    pytest.fail("this test starts a process: mark it with `pytest.mark.process`")


@pytest.fixture(scope="session")
def starts():
    """Starts of servers that are refused."""
    return command_line.starts()


@pytest.fixture
async def opened():
    """Opens stores and closes them after the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_(url, *, timeout_s=5.0, allowances=Allowances(old=True), **options):  # noqa: B008
            store = create_store(url, timeout_s=timeout_s, allowances=allowances, **options)
            stack.push_async_callback(store.close)
            await store.open()
            return store

        yield open_
