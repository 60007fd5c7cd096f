"""The report of `make train`: what was not trained anew stays as it was."""

import json

from model_export.report import Row, write
from model_export.tasks.task import Outcome, facts_in_toml

TEXT = [Row("gru", 10, 100, 1.5), Row("gzip -9", 0, 0, 2.0)]


def outcome(name, accuracy):
    rows = (("gru", 1234, accuracy), ("memoryless", "", 0.5))
    return Outcome(name, "Of something", ("network", "parameters", "accuracy"), rows, {"seed": 1})


def test_a_task_is_added_beside_the_networks_over_text(tmp_path):
    write(tmp_path, TEXT, {"corpus": "x"})
    write(tmp_path, [], {}, [outcome("a", 0.75)])
    write(tmp_path, [], {}, [outcome("b", 0.25), outcome("a", 0.875)])
    document = json.loads((tmp_path / "training.json").read_text())
    assert document["facts"] == {"corpus": "x"}
    assert [row["name"] for row in document["rows"]] == ["gru", "gzip -9"]
    assert document["tasks"]["a"]["rows"][0] == {"network": "gru", "parameters": 1234, "accuracy": 0.875}
    page = (tmp_path / "TRAINING.md").read_text()
    assert "| gru | 10 | 100 | 1.500 |" in page
    assert "| parameters | 1,234 |  |\n| accuracy | 0.875 | 0.500 |" in page
    assert page.index("## `a`") < page.index("## `b`")


def test_one_network_over_text_trained_anew_leaves_the_others(tmp_path):
    write(tmp_path, TEXT, {"corpus": "x"}, [outcome("a", 0.75)])
    write(tmp_path, [Row("gru", 10, 100, 1.25)], {"corpus": "y"})
    document = json.loads((tmp_path / "training.json").read_text())
    assert [row["bits_per_byte"] for row in document["rows"]] == [1.25, 2.0]
    assert document["facts"] == {"corpus": "y"}
    assert list(document["tasks"]) == ["a"]


def test_facts_are_text_in_toml():
    import tomllib

    given = facts_in_toml({"data sha256": 'say "x"', "seed": 7, "path": "a\\b"})
    assert tomllib.loads(given) == {"facts": {"data_sha256": 'say "x"', "seed": "7", "path": "a\\b"}}
