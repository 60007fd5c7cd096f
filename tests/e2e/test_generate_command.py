"""`holdfast generate` as a user runs it."""

import io
import json

import numpy as np
import pytest

from tests.support.command_line import starts
from tests.support.generation_oracle import Loop
from tests.support.models import CONTRACT, write_features_model
from tests.support.oracle import MODELS
from tests.support.server import ServerProcess

MODEL = "python-source"
PROMPT = "def main("

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    (folder / "models").mkdir()
    (folder / "models" / MODEL).symlink_to(MODELS / MODEL)
    feedback = {**CONTRACT, "holdfast.feedback": json.dumps("y")}
    write_features_model(folder / "models" / "feedback" / "1" / "model.onnx", metadata=feedback)
    with ServerProcess(folder / "data", "--models", str(folder / "models")) as server:
        yield server


def generate(server, *options):
    return starts().call("generate", "--target", server.address, *options)


def expected(count, prompt=PROMPT, loop=None, **options):
    loop = loop or Loop(MODEL)
    return b"".join(text for _, text, _ in loop.generate(count, prompt.encode(), **options)).decode()


def test_text_comes_as_it_is_and_the_next_command_goes_on(server):
    options = ["--seed", "3", "--temperature", "0.8", "--top-p", "0.9", "--top-k", "30"]
    loop, sampling = Loop(MODEL), {"seed": 3, "temperature": 0.8, "top_p": 0.9, "top_k": 30}
    done = generate(server, "plain", "--model", MODEL, "--prompt", PROMPT, "--max-tokens", "60", *options)
    assert (done.code, done.out) == (0, expected(60, loop=loop, **sampling)), done.err
    done = generate(server, "plain", "--max-tokens", "20", *options)
    assert (done.code, done.out) == (0, expected(20, "", loop=loop, **sampling)), done.err


def test_lines_for_scripts_say_all_of_a_token(server, tmp_path):
    (tmp_path / "prompt").write_text(PROMPT)
    options = [
        "--prompt-file",
        tmp_path / "prompt",
        "--stop",
        "\n",
        "--min-tokens",
        "9",
        "--candidates",
        "2",
    ]
    done = generate(server, "lines", "--model", MODEL, "--json", "--max-tokens", "80", *options)
    assert done.code == 0, done.err
    tokens = [json.loads(line) for line in done.out.splitlines()]
    wanted = expected(80, stop_texts=[b"\n"], min_tokens=9)
    assert "".join(token["text"] for token in tokens) == wanted
    assert [token["position"] for token in tokens] == [len(PROMPT) + 1 + n for n in range(len(wanted))]
    assert all(len(token["top"]) == 2 and token["log_prob"] <= 0 for token in tokens)


def test_a_forecast_is_a_line_a_token(server, tmp_path):
    np.save(tmp_path / "given.npy", np.array([[1, 2]], np.float32))
    given = ["forecast", "--model", "feedback", "--prompt-npy", tmp_path / "given.npy", "--max-tokens", "3"]
    done = generate(server, *given)
    assert done.code == 0, done.err
    np.testing.assert_array_equal(np.loadtxt(io.StringIO(done.out)), [[1, 2], [2, 4], [4, 8]])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["nobody"], "SESSION_NOT_FOUND"),
        (["cold", "--model", MODEL, "--temperature", "-1"], "INVALID_REQUEST: temperature is -1"),
        (["cold", "--model", MODEL, "--prompt-file", "/nowhere"], "/nowhere: no such file"),
        (["cold", "--model", MODEL, "--prompt-npy", __file__], "it is no .npy file of numbers"),
        (["cold", "--model", MODEL, "--prompt-npy", "/dev/null"], "/dev/null: it is no .npy file"),
        (["cold", "--model", MODEL, "--max-tokens", "0"], "max_tokens is 0"),
    ],
)
def test_what_fails_is_said_in_a_line(server, options, text):
    done = generate(server, *options)
    assert done.code == 1
    assert text in done.err
    assert len(done.err.splitlines()) == 1


def test_a_prompt_that_cannot_be_read_opens_no_session(server):
    assert generate(server, "unopened", "--model", MODEL, "--prompt-file", "/nowhere").code == 1
    assert "SESSION_NOT_FOUND" in generate(server, "unopened").err
