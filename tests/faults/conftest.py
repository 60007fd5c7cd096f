"""What servers in tests of faults have in common."""

import pytest

from tests.support.oracle import MODELS

MODEL = "python-source"


@pytest.fixture(scope="session")
def only_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("only-model")
    (folder / MODEL).symlink_to(MODELS / MODEL)
    return folder


@pytest.fixture(scope="module", autouse=True)
def serve_only_model(only_model):
    """Servers that are not told otherwise serve one model: loading all takes half of a forked start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOLDFAST_MODELS", str(only_model))
        yield
