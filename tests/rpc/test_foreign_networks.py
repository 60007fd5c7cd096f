"""Networks of other forms, with nothing but a contract.toml, over gRPC and through a SIGKILL."""

from itertools import pairwise

import numpy as np
import pytest

import holdfast
from tests.support.foreign_graphs import NETWORKS as EVERY
from tests.support.server import ServerProcess

ALIKE = {
    "unnamed axes",
    "float64",
    "int64",
    "int32",
    "uint8",
    "initial number",
    "initial list",
    "batch last",
}
"""Left to tests/unit/test_foreign_graphs.py: each is served as another one is."""
NETWORKS = {name: network for name, network in EVERY.items() if name not in ALIKE}
CUTS = (0, 1, 4, 6, 9)
ROWS = 2


def slug(name):
    return name.replace(" ", "-")


@pytest.fixture(scope="module")
def found():
    """Replies by network and row."""
    return {}


@pytest.fixture(scope="module")
def address(tmp_path_factory, found):
    """Of the second server of a folder; the first one was killed half-way."""
    folder = tmp_path_factory.mktemp("foreign")
    for name, network in NETWORKS.items():
        network.write(folder / "models" / slug(name) / "1")
    flags = ("--models", str(folder / "models"), "--strict-models")
    with ServerProcess(folder / "data", *flags) as server:
        with holdfast.Client(server.address) as client:
            stream(client, CUTS[:3], found)
        server.kill()
    with ServerProcess(folder / "data", *flags) as server:
        yield server.address


@pytest.fixture(scope="module")
def client(address):
    with holdfast.Client(address) as client:
        yield client


def stream(client, cuts, found):
    for name, network in NETWORKS.items():
        for row in range(ROWS):
            session = client.open_session(
                f"{slug(name)}-{row}", model=slug(name), initial_state=network.opening
            )
            tokens = network.tokens(CUTS[-1], row)
            for begin, end in pairwise(cuts):
                assert session.position == begin
                reply = session.step(tokens[begin:end], outputs=True)
                found.setdefault((name, row), []).append(reply.outputs)


def test_every_form_streams_what_it_computes_through_a_kill(client, found):
    stream(client, CUTS[2:], found)
    for (name, row), replies in found.items():
        network, session = NETWORKS[name], client.open_session(f"{slug(name)}-{row}")
        compare(name, network, network.tokens(CUTS[-1], row), replies, session.state(), row)


def compare(name, network, tokens, replies, state, row):
    expected, last = network.expected(tokens, network.opening)
    for output, values in expected.items():
        given = np.concatenate([reply[output] for reply in replies])
        if "last token" in name:
            values = values[np.array(CUTS[1:]) - 1]
        np.testing.assert_allclose(
            given.reshape(values.shape), values, rtol=1e-5, atol=1e-5, err_msg=f"{name}, row {row}"
        )
    for tensor, value in last.items():
        np.testing.assert_allclose(state[tensor], value, rtol=1e-5, atol=1e-5, err_msg=f"{name}, {tensor}")


@pytest.mark.parametrize("name", ["last token of a run", "probabilities"])
def test_classes_are_ranked_by_their_role(client, name):
    network = NETWORKS[name]
    tokens = network.tokens(5, 1)
    [values] = network.expected(tokens)[0].values()
    if name == "probabilities":
        log_probs = np.log(values)
    else:
        log_probs = (values - np.log(np.exp(values).sum(axis=1, keepdims=True)))[-1:]
    reply = client.open_session(model=slug(name)).step(tokens, top_k=4)
    assert [[place for place, _ in row] for row in reply.top] == np.argsort(-log_probs, axis=1).tolist()
    given = [[log_prob for _, log_prob in row] for row in reply.top]
    np.testing.assert_allclose(given, -np.sort(-log_probs, axis=1), atol=1e-5)
    [output] = client.get_model(slug(name)).outputs
    assert len(output.labels) == 4


def test_rows_of_a_batch_get_what_each_would_alone(client):
    for name in ("last token of a run", "window", "no batch", "id and features"):
        network = NETWORKS[name]
        tokens = np.stack([network.tokens(3, row) for row in range(4)])
        ids = [f"batch-{slug(name)}-{row}" for row in range(4)]
        client.open_batch(slug(name), ids)
        reply = client.step_batch(slug(name), ids, tokens, outputs=True)
        assert not reply.errors
        for row in range(4):
            for output, values in network.expected(tokens[row])[0].items():
                given = reply.outputs[output][row]
                wanted = values[-1:] if "last" in name else values
                np.testing.assert_allclose(given.reshape(wanted.shape), wanted, rtol=1e-5, atol=1e-5)


def test_an_input_of_the_session_is_asked_for_kept_and_goes_on(client):
    model = slug("input of the session")
    with pytest.raises(holdfast.errors.InvalidRequest, match="needs speaker when a session is opened"):
        client.open_session(model=model)
    with pytest.raises(holdfast.errors.InvalidRequest, match="speaker"):
        client.open_session(model=model, initial_state={"h": np.zeros(4, np.float32)})
    session = client.open_session(model=model, initial_state={"speaker": np.ones(4, np.float32)})
    session.step(np.zeros((2, 4), np.float32))
    assert session.state()["speaker"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "speaker", [[0.5, 1, 2, 3], np.array([0.5, 1, 2, 3], np.float32), np.array([0.5, 1, 2, 3])]
)
@pytest.mark.parametrize("room", [[7], np.array([7], np.int32), np.array([7], np.uint8)])
def test_an_input_of_the_session_is_cast_as_tokens_are(client, speaker, room):
    given = {"speaker": speaker, "room": room}
    session = client.open_session(model=slug("input of the session in other types"), initial_state=given)
    state = session.state()
    assert (state["speaker"].dtype, state["room"].dtype) == (np.float64, np.int32)
    assert (state["speaker"].tolist(), state["room"].tolist()) == ([0.5, 1, 2, 3], [7])
    [y] = session.step(np.zeros((1, 4), np.float32), outputs=True).outputs["y"]
    assert y.tolist() == [7.5, 8, 9, 10]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"room": np.array([1 << 40])}, "'room' is int64"),
        ({"room": [7.0]}, "'room' is float32"),
        ({"speaker": [1, 2, 3, 4]}, "'speaker' is int64"),
        ({"speaker": np.full(4, np.inf)}, "'speaker' holds NaN or infinity"),
    ],
)
def test_an_input_of_the_session_of_another_kind_is_refused(client, given, said):
    given = {"speaker": np.ones(4), "room": [7], **given}
    with pytest.raises(holdfast.errors.InvalidRequest, match=said):
        client.open_session(model=slug("input of the session in other types"), initial_state=given)


def test_what_is_too_large_for_an_input_of_the_session_is_refused(client):
    with pytest.raises(holdfast.errors.InvalidRequest, match="'speaker' holds NaN or infinity"):
        client.open_session(
            model=slug("input of the session"), initial_state={"speaker": np.full(4, 1e300)}
        )


def test_sessions_opened_together_have_each_its_own_inputs(client):
    model = slug("input of the session")
    speakers = np.arange(12, dtype=np.float64).reshape(3, 4)
    ids = [f"together-{row}" for row in range(3)]
    opened = client.open_batch(model, ids, initial_state={"speaker": speakers})
    assert opened.errors == {}
    reply = client.step_batch(model, ids, np.zeros((3, 4), np.float32), opened, outputs=True)
    np.testing.assert_array_equal(reply.outputs["y"].reshape(3, 4), speakers)
    alone = client.open_session(model=model, initial_state={"speaker": speakers[2]})
    alone.step(np.zeros((1, 4), np.float32))
    assert alone.history_digest == reply.history_digests[2]
    again = client.open_batch(model, [*ids, "together-3"], initial_state={"speaker": np.ones((4, 4))})
    assert (again.resumed_rows, again.positions.tolist()) == ([0, 1, 2], [1, 1, 1, 0])
    assert client.open_session(ids[1]).state()["speaker"].tolist() == [4, 5, 6, 7]
    assert client.open_session("together-3").state()["speaker"].tolist() == [1, 1, 1, 1]


def test_a_row_whose_input_cannot_be_is_an_error_of_its_own(client):
    model = slug("input of the session")
    speakers = np.ones((3, 4), np.float32)
    speakers[1, 2] = np.nan
    opened = client.open_batch(model, ["r0", "r1", "r2"], initial_state={"speaker": speakers})
    assert list(opened.errors) == [1]
    assert "'speaker' holds NaN or infinity" in str(opened.errors[1])
    beside_a_bad_id = client.open_batch(
        model, ["\x07", "r3"], initial_state={"speaker": np.array([[9] * 4, [5] * 4], np.float32)}
    )
    assert list(beside_a_bad_id.errors) == [0]
    assert client.open_session("r3").state()["speaker"].tolist() == [5, 5, 5, 5]
    missing = client.open_batch(model, ["r4", "r5"])
    assert "needs speaker when a session is opened" in str(missing.errors[0])


@pytest.mark.parametrize("shape", [(4,), (2, 4), (4, 3), ()])
def test_a_state_without_a_row_for_each_session_is_not_sent(client, shape):
    with pytest.raises(ValueError, match=r"'speaker' have the shape .* a row for each of 3 sessions"):
        client.open_batch(
            slug("input of the session"), ["s0", "s1", "s2"], initial_state={"speaker": np.ones(shape)}
        )


async def test_an_asynchronous_client_opens_sessions_with_inputs(address):
    async with holdfast.AsyncClient(address) as other:
        model = slug("input of the session")
        opened = await other.open_batch(model, ["async"], initial_state={"speaker": [[1.0, 2.0, 3.0, 4.0]]})
        reply = await other.step_batch(model, ["async"], np.zeros((1, 4), np.float32), opened, outputs=True)
    assert reply.outputs["y"].ravel().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("wrong", [5, -1, 1.5])
def test_a_number_that_is_no_id_is_refused_with_its_column(client, wrong):
    session = client.open_session(model=slug("id and features"))
    tokens = np.array([[1, 0, 0, 0, 0], [wrong, 0, 0, 0, 0]], np.float32)
    with pytest.raises(
        holdfast.errors.InvalidRequest, match=r"column 0 of token 1 is .*, expected an id 0\.\.4"
    ):
        session.step(tokens)
    assert session.step(tokens[:1]).position == 1
