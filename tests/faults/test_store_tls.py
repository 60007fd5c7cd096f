"""A server on a store behind TLS: its event loop, its large requests, its store's certificates."""

import numpy as np
import pytest

import holdfast
from tests.support.opening import open_at
from tests.support.oracle import run
from tests.support.server import ServerProcess
from tests.support.stores import deploy

MODEL = "python-source"

pytestmark = pytest.mark.faults


def test_batches_and_chunks_over_tls(tmp_path):
    data = b"import numpy as np\n" * 4
    with (
        deploy("redis", "tls", tmp_path / "store") as store,
        ServerProcess(tmp_path / "data", "--store", store.url) as server,
        holdfast.Client(server.address) as client,
    ):
        names = [f"s{number}" for number in range(200)]
        open_at(server.address, *names)
        for byte in data[:3]:
            reply = client.step_batch(MODEL, names, [byte] * 200, token_log_prob=True)
            assert not any(reply.errors)
        session = client.open_session("s7", model=MODEL)
        given = [session.step(data[3:], token_log_prob=True).token_log_probs]
        assert session.position == len(data)
    np.testing.assert_allclose(np.concatenate(given), run(MODEL, data)[1][3:], atol=1e-5, rtol=0)
