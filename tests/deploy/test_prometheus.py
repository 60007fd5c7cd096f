"""What is shipped for Prometheus: valid, and every alert fires when it should and only then."""

import re
import subprocess

import pytest
import yaml

from holdfast.errors import ServiceError
from tests.alerts.faults import FAULTS
from tests.deploy.prometheus import faster, find
from tests.deploy.rules import FOLDER, ROOT, alerts, dashboard_queries, names_in, recordings, rule_queries

TESTS = sorted((FOLDER / "tests").glob("*.yml"))
ALERTS = alerts()
RUNBOOKS = (ROOT / "docs" / "operate" / "runbooks.md").read_text()


def promtool(*arguments):
    """Runs promtool; returns its exit code and what it said."""
    done = subprocess.run([find("promtool"), *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_the_configuration_and_its_rules_are_valid():
    code, said = promtool("check", "config", FOLDER / "prometheus.yml")
    assert code == 0, said
    code, said = promtool("check", "rules", *sorted((FOLDER / "rules").glob("*.yml")))
    assert code == 0, said


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should(path):
    code, said = promtool("test", "rules", path)
    assert code == 0, said


def expectations():
    """Returns for each alert how often the tests of the rules want it firing and quiet."""
    found = {name: {"firing": 0, "quiet": 0} for name in ALERTS}
    for path in TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for check in test["alert_rule_test"]:
                found[check["alertname"]]["firing" if check["exp_alerts"] else "quiet"] += 1
    return found


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_is_seen_to_fire_and_to_be_quiet(name):
    counts = expectations()[name]
    assert counts["firing"] >= 1, counts
    assert counts["quiet"] >= 2, "before and after, or beside"


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_says_what_it_is_and_what_to_do(name):
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    page, anchor = rule["annotations"]["runbook"].split("#")
    assert (page, anchor) == ("docs/operate/runbooks.md", name.lower())


def test_every_alert_has_a_section_in_the_runbooks_and_the_other_way_round():
    assert sorted(re.findall(r"^## (Holdfast\w+)$", RUNBOOKS, re.MULTILINE)) == sorted(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_a_section_of_the_runbooks_answers_the_five_questions(name):
    [section] = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", RUNBOOKS, re.MULTILINE | re.DOTALL)
    leads = re.findall(r"^\*(.+?)\.\*", section, re.MULTILINE)
    assert leads == ["Means", "Users see", "Look", "Do", "Clears"]


def test_every_alert_has_a_fault_in_the_drill_and_the_other_way_round():
    assert sorted(name for names in FAULTS for name in names) == sorted(ALERTS)


def test_what_is_recorded_is_read_somewhere():
    queries = [*rule_queries(), *(query for _, query in dashboard_queries())]
    assert set(recordings()) <= set().union(*map(names_in, queries))


COUNTED = sorted(kind.reason for kind in ServiceError.__subclasses__() if kind.counts_against_objective)


def test_the_rule_counts_the_reasons_whose_classes_say_so():
    rule = recordings()["job:holdfast_server_errors:rate1m"]["expr"]
    assert re.search(r'reason=~"([^"]+)"', rule)[1].split("|") == COUNTED


def test_the_runbook_says_what_to_do_for_every_reason_that_counts():
    _, _, table = RUNBOOKS.partition("| reason | runbook or action |")
    rows = table.partition("\n\n")[0].splitlines()
    named = [reason for row in rows for reason in re.findall(r"`([A-Z_]+)`", row.split(" | ")[0])]
    assert sorted(named) == COUNTED


def test_times_become_shorter_and_texts_do_not():
    rule = {"expr": 'rate(a:b1m{c="5m"}[5m]) > 1', "for": "1m", "annotations": {"summary": "for 1m"}}
    assert faster([rule], 30) == [
        {"expr": 'rate(a:b1m{c="5m"}[10000ms]) > 1', "for": "2000ms", "annotations": {"summary": "for 1m"}}
    ]
