"""Rules and dashboard read what a server shows, and a real Prometheus finds data for every panel."""

import itertools
import json
import math
import re
import threading

import pytest

from holdfast.demo.processes import ServerProcess
from tests.deploy.prometheus import Prometheus
from tests.deploy.rules import (
    DASHBOARD,
    dashboard_queries,
    names_in,
    names_of,
    recordings,
    rule_queries,
)
from tests.rpc.conftest import Rpc
from tests.support.server import get
from tests.support.waiting import wait_for

OF_PROMETHEUS = {"up", "ALERTS"}
FACTOR = 10
"""A scrape every half second."""

VARIABLES = {"$job": "holdfast", "$instance": ".*", "$__rate_interval": "5s", "${datasource}": "prometheus"}

PANELS = dashboard_queries()
QUERIES = [*rule_queries(), *(query for _, query in PANELS)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("watched") / "data") as server:
        yield server


@pytest.fixture(scope="module")
def scrape(server):
    return get(server, "/metrics")[1]


@pytest.fixture(scope="module")
def load(server):
    """Has every kind of chunk that panels tell apart go on: new, replayed, refused."""
    stopping = threading.Event()

    def run():
        rpc = Rpc(server)
        for number in itertools.count():
            if stopping.wait(0.01):
                break
            name = f"watched-{number}"
            rpc.open(name)
            rpc.step(name, position=0, text=b"def f")
            rpc.step(name, position=0, text=b"def f")
            rpc.step(name, position=0, text=b"other")
            rpc.step(name, position=5, text=b"(x)")
        rpc.channel.close()

    thread = threading.Thread(target=run, name="load")
    thread.start()
    yield
    stopping.set()
    thread.join()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory, server, load):
    with Prometheus(
        tmp_path_factory.mktemp("prometheus") / "p", {"a": server.http}, factor=FACTOR
    ) as prometheus:
        yield prometheus


def test_every_name_that_is_read_is_shown_by_a_server(scrape):
    known = names_of(scrape) | set(recordings()) | OF_PROMETHEUS
    unknown = {query: names_in(query) - known for query in QUERIES}
    assert not {query: names for query, names in unknown.items() if names}


MATCHERS = re.compile(r"([\w:]+)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)=~?"([^"]*)"')


def test_every_label_that_is_asked_for_is_shown_by_a_server(scrape):
    elsewhere = OF_PROMETHEUS | set(recordings())
    for query in QUERIES:
        for name, matchers in MATCHERS.findall(query):
            for label, values in MATCHER.findall(matchers):
                if name in elsewhere or label in ("job", "instance"):
                    continue
                for value in values.split("|"):
                    assert re.search(rf'^{name}{{[^}}]*\b{label}="{value}"', scrape, re.MULTILINE), query


@pytest.mark.parametrize(("title", "query"), PANELS[:-1], ids=[title for title, _ in PANELS[:-1]])
def test_every_panel_has_data(prometheus, title, query):
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)

    def has_data():
        return any(not math.isnan(value) for _, value in prometheus.query(query))

    wait_for(has_data, 60, f"{title}: nothing for {query}")


def test_the_dashboard_is_readable():
    """Every panel says what it shows and in which unit, none lies over another, ids are their own."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = set(
            itertools.product(
                range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
            )
        )
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert not taken & cells, panel["title"]
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith("."), panel["title"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
        if panel["type"] in ("stat", "timeseries"):
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_the_variables_are_those_that_queries_use():
    variables = json.loads(DASHBOARD.read_text())["templating"]["list"]
    used = set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text())) - {"__rate_interval", "__all"}
    assert used == {variable["name"] for variable in variables}
