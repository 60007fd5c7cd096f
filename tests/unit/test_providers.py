import numpy as np
import pytest

from service.model.contract import opening_rows
from service.model.providers import Providers, parse_providers
from service.model.step_graph import StepGraph
from tests.support.foreign_graphs import NETWORKS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CPUExecutionProvider", Providers()),
        (
            "CUDAExecutionProvider=256, CPUExecutionProvider",
            Providers(("CUDAExecutionProvider", "CPUExecutionProvider"), 256),
        ),
        ("A=8,B=4", Providers(("A", "B"), 4)),
    ],
)
def test_providers_are_names_with_bounds(text, expected):
    assert parse_providers(text) == expected


@pytest.mark.parametrize("text", ["", ",", "A=0", "A=x", "A=", "A B", "A,A"])
def test_what_is_no_provider_is_refused(text):
    with pytest.raises(ValueError, match=r"provider|twice"):
        parse_providers(text)


def test_a_bound_holds_for_every_run(tmp_path, monkeypatch):
    network = NETWORKS["batch first"]
    graph = StepGraph(
        tmp_path, name="n", version=1, data=network.bundle(), providers=Providers(most_rows=3)
    )
    sizes, call = [], graph._call
    monkeypatch.setattr(
        graph, "_call", lambda arrays, *more: sizes.append(arrays[0].shape[1]) or call(arrays, *more)
    )
    tokens = np.stack([network.tokens(2, row) for row in range(8)], axis=1)
    outputs, _ = graph.run(tokens, opening_rows(graph.contract, 8))
    assert set(sizes) == {3, 2}
    for row in range(8):
        np.testing.assert_allclose(
            outputs["y"][:, row], network.expected(tokens[:, row])[0]["y"], rtol=1e-6
        )


def test_the_lower_bound_counts():
    assert [Providers(most_rows=4).rows_per_run(asked) for asked in (None, 2, 9)] == [4, 2, 4]
