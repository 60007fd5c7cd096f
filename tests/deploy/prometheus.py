"""A real Prometheus on loopback, with the shipped rules, whose times can be made shorter."""

import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request

import pytest
import yaml

from tests.deploy.rules import FOLDER
from tests.support.stores import free_port
from tests.support.waiting import wait_for

REQUIRE_PROMTOOL = "HOLDFAST_TEST_REQUIRE_PROMTOOL"
"""Set where Prometheus must be there, so that its tests cannot be skipped without a word."""

SCRAPE = "500ms"
"""Interval and time limit, whatever the factor: more often a busy machine cannot answer."""

_UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(\d+)(ms|s|m|h|d)")
_TIMES = ("for", "interval", "evaluation_interval")


def find(binary):
    """Returns the path of `prometheus` or `promtool`; without it the test is skipped, or fails."""
    path = shutil.which(binary)
    if path is None:
        reason = f"{binary} is not on PATH, so nothing is tested with a real Prometheus"
        if os.environ.get(REQUIRE_PROMTOOL):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def faster(tree, factor):
    """Returns a configuration or rules with every window and time divided; texts stay as they are.

    Args:
        tree: As YAML gives it.
        factor: By which a minute becomes shorter.
    """

    def shorten(text):
        return _DURATION.sub(lambda found: _shorter(found, factor), text)

    if isinstance(tree, list):
        return [faster(part, factor) for part in tree]
    if not isinstance(tree, dict):
        return tree
    changed = {}
    for name, value in tree.items():
        if name == "expr":
            changed[name] = re.sub(r"\[[^]]*\]", lambda found: shorten(found[0]), value)
        else:
            changed[name] = shorten(value) if name in _TIMES else faster(value, factor)
    return changed


def _shorter(found, factor):
    return f"{round(1000 * int(found[1]) * _UNITS_S[found[2]] / factor)}ms"


class Prometheus:
    """A Prometheus that scrapes and evaluates what is shipped. A context manager, answering.

    Args:
        folder: For its files.
        targets: Instance -> HOST:PORT of /metrics.
        factor: By which all times but those of the scrape are shorter than shipped.
    """

    def __init__(self, folder, targets, *, factor=1):
        self._folder = folder
        self._targets_path = folder / "targets.json"
        self.url = f"http://127.0.0.1:{free_port()}"
        (folder / "rules").mkdir(parents=True)
        for path in (FOLDER / "rules").glob("*.yml"):
            rules = faster(yaml.safe_load(path.read_text()), factor)
            (folder / "rules" / path.name).write_text(yaml.safe_dump(rules))
        config = faster(yaml.safe_load((FOLDER / "prometheus.yml").read_text()), factor)
        config["global"] |= {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE}
        holdfast, _ = config["scrape_configs"]
        del holdfast["static_configs"]
        holdfast["file_sd_configs"] = [{"files": [str(self._targets_path)]}]
        config["scrape_configs"] = [holdfast]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.scrape(targets)

    def scrape(self, targets):
        """Has it scrape other addresses, instance -> HOST:PORT, from some moment on."""
        found = [{"targets": [http], "labels": {"instance": name}} for name, http in targets.items()]
        new = self._targets_path.with_suffix(".new")
        new.write_text(json.dumps(found))
        new.replace(self._targets_path)

    def __enter__(self):
        command = [find("prometheus"), f"--config.file={self._folder}/prometheus.yml", "--log.level=warn"]
        command += [f"--storage.tsdb.path={self._folder}/data"]
        command += [f"--web.listen-address={self.url.removeprefix('http://')}"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(self._answers, 60, f"Prometheus did not start; see {self._folder}/log")
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()

    def query(self, expression):
        """Returns the samples of an instant query: (labels, value)."""
        data = self._get("/api/v1/query", query=expression)
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(row["metric"], float(row["value"][1])) for row in data["result"]]

    def query_range(self, expression, from_s, to_s, step_s):
        """Returns the series of a range query: (labels, [(seconds since the epoch, value), ...])."""
        data = self._get("/api/v1/query_range", query=expression, start=from_s, end=to_s, step=step_s)
        return [
            (row["metric"], [(at_s, float(value)) for at_s, value in row["values"]])
            for row in data["result"]
        ]

    def firing(self):
        """Returns the names of the alerts that fire."""
        found = self._get("/api/v1/alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in found if alert["state"] == "firing"}

    def _get(self, path, **arguments):
        url = f"{self.url}{path}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{arguments}: {error.read().decode()}") from None

    def _answers(self):
        assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
        with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as reply:
            return reply.status == 200
