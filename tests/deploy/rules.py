"""What is shipped for Prometheus and Grafana, read for tests: alerts, recorded series, queries, names."""

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "holdfast.json"

_NO_NAME = re.compile(
    r'"(?:[^"\\]|\\.)*"'  # text
    r"|\{[^}]*\}"  # matchers
    r"|\[[^]]*\]"  # windows
    r"|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)"  # labels
)
_NAME = re.compile(r"[a-zA-Z_:][\w:]*\b(?!\s*\()")
_WORDS = {"and", "or", "unless", "bool", "offset", "by", "without", "on", "ignoring"}


def groups():
    """Returns all groups of rules."""
    files = sorted((FOLDER / "rules").glob("*.yml"))
    return [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]


def alerts():
    """Returns the alerts by name."""
    return {rule["alert"]: rule for group in groups() for rule in group["rules"] if "alert" in rule}


def recordings():
    """Returns the recorded series by name."""
    return {rule["record"]: rule for group in groups() for rule in group["rules"] if "record" in rule}


def rule_queries():
    """Returns the expressions of all rules."""
    return [rule["expr"] for group in groups() for rule in group["rules"]]


def dashboard_queries():
    """Returns the expressions of the dashboard by panel, and that of its annotations."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = [
        (panel["title"], target["expr"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]
    return found + [(entry["name"], entry["expr"]) for entry in dashboard["annotations"]["list"]]


def names_in(expression):
    """Returns the series that an expression reads."""
    return set(_NAME.findall(_NO_NAME.sub(" ", expression))) - _WORDS


def names_of(scrape):
    """Returns the series of a scrape in the text format, histograms with their three suffixes."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", scrape, re.MULTILINE):
        names |= (
            {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
        )
    return names
