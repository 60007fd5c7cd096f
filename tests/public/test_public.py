"""Networks of other people, unmodified, over gRPC against onnxruntime; run by `make public-check`."""

import shutil

import numpy as np
import onnxruntime as ort
import pytest

import holdfast
from holdfast.demo.processes import ServerProcess
from tests.public.files import FILES, FOLDER

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="run by make public-check")

WINDOWS, ROWS = 30, 64


class Alone:
    """One stream in onnxruntime, one token at a time, as the file's own documentation feeds it."""

    def __init__(self, name):
        self._name = name
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(FOLDER / f"{name}.onnx", options)
        self._names = [output.name for output in self._session.get_outputs()]
        self._context = np.zeros((1, 64), np.float32)
        self._state = {
            "silero-v6": {"state": np.zeros((2, 1, 128), np.float32)},
            "silero-v4": dict.fromkeys(("h", "c"), np.zeros((2, 1, 64), np.float32)),
            "dtln-1": {"input_3": np.zeros((1, 2, 128, 2), np.float32)},
            "deepfilternet": {"states": np.zeros(46136, np.float32)},
        }[name]

    def step(self, token):
        if self._name == "dtln-1":
            found = self._run({"input_2": token[np.newaxis, np.newaxis]})
            self._state = {"input_3": found["tf_op_layer_stack_2"]}
            return found["activation_2"].reshape(-1)
        if self._name == "deepfilternet":
            found = self._run({"input_frame": token, "atten_lim_db": np.array(0, np.float32)})
            self._state = {"states": found["new_states"]}
            return found["enhanced_audio_frame"]
        window = token[np.newaxis]
        if self._name == "silero-v6":
            window = np.concatenate([self._context, window], axis=1)
            self._context = window[:, -64:]
        found = self._run({"input": window, "sr": np.array(16000)})
        self._state = (
            {"state": found["stateN"]}
            if self._name == "silero-v6"
            else {"h": found["hn"], "c": found["cn"]}
        )
        return found["output"].reshape(-1)

    def _run(self, feed):
        return dict(zip(self._names, self._session.run(None, {**feed, **self._state}), strict=True))


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("public")
    for name, file in FILES.items():
        place = folder / "models" / name / "1"
        place.mkdir(parents=True)
        shutil.copy(FOLDER / file.name, place / "model.onnx")
        (place / "contract.toml").write_text(file.contract)
    flags = ("--models", str(folder / "models"), "--strict-models")
    with ServerProcess(folder / "data", *flags) as server:
        with holdfast.Client(server.address) as client:
            for name in FILES:
                client.open_session(f"killed-{name}", model=name).step(tokens_of(client, name)[:10, 0])
        server.kill()
    with ServerProcess(folder / "data", *flags) as server, holdfast.Client(server.address) as client:
        yield client


def tokens_of(client, name):
    rng = np.random.default_rng(5)
    shape = (WINDOWS, ROWS, client.get_model(name).input.width)
    loud = 0.1 * np.abs(np.sin(np.arange(WINDOWS) / 3))[:, np.newaxis, np.newaxis]
    return (rng.standard_normal(shape) * loud).astype(np.float32)


def test_there_are_files():
    assert FILES


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("chunk", [1, 7])
def test_a_stream_alone_differs_by_nothing(client, name, chunk):
    tokens = tokens_of(client, name)[:, 0]
    output = client.get_model(name).outputs[0].name
    replies = client.open_session(model=name).stream(tokens, chunk=chunk, outputs=output)
    given = np.concatenate([reply.outputs[output].reshape(-1) for reply in replies])
    alone = Alone(name)
    assert np.array_equal(given, np.concatenate([alone.step(token) for token in tokens]))


@pytest.mark.parametrize("name", FILES)
def test_a_stream_goes_on_after_a_kill(client, name):
    tokens = tokens_of(client, name)[:, 0]
    output = client.get_model(name).outputs[0].name
    session = client.open_session(f"killed-{name}")
    assert session.position == 10
    given = session.step(tokens[10:], outputs=output).outputs[output].reshape(-1)
    alone = Alone(name)
    assert np.array_equal(given, np.concatenate([alone.step(token) for token in tokens][10:]))


@pytest.mark.parametrize("name", FILES)
def test_rows_of_a_batch_differ_by_no_more_than_rounding(client, name):
    tokens = tokens_of(client, name)
    output = client.get_model(name).outputs[0].name
    ids = [f"{name}-{row}" for row in range(ROWS)]
    client.open_batch(name, ids)
    given = []
    for step in tokens:
        reply = client.step_batch(name, ids, step[:, np.newaxis], outputs=output)
        assert not reply.errors
        given.append(reply.outputs[output].reshape(ROWS, -1))
    worst = 0.0
    for row in range(ROWS):
        alone = Alone(name)
        expected = np.stack([alone.step(token) for token in tokens[:, row]])
        found = np.stack([step[row] for step in given])
        worst = max(worst, float(np.abs(found - expected).max()))
    print(f"{name}: {ROWS} rows together differ by {worst:.1e}")
    assert worst <= 2e-6  # 64 rows of silero-v4 in onnxruntime alone differ by 1.3e-6; 8 rows by 8e-7
