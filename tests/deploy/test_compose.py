"""What the compose file, the Dockerfile and the secrets' script say, without running a service."""

import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from service.rpc.credentials import Credentials
from service.settings.exposure import check_edge
from service.settings.schema import Settings
from service.store.acl import sentinel_rule, store_rule
from service.store.address import parse_url
from service.store.safety import FLOORS
from tests.deploy.compose_file import bind_mounts, load
from tests.deploy.dockerfile import Dockerfile

ROOT = Path(__file__).parents[2]
COMPOSE = load(ROOT / "docker-compose.yml")
SERVICES = COMPOSE["services"]
IMAGE = Dockerfile(ROOT / "deploy/Dockerfile")
OURS = {name: one for name, one in SERVICES.items() if one["image"].startswith("holdfast:")}
SERVERS = {name: one for name, one in OURS.items() if "environment" in one}
EXACT = re.compile(r"[a-z/]+:v?\d+\.\d+\.\d+[a-z-]*")


def services(**only):
    return pytest.mark.parametrize(
        "name", [name for name in SERVICES if name in only.get("among", SERVICES)]
    )


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    """Returns the folder of secrets that the script makes in a copy of deploy/."""
    top = tmp_path_factory.mktemp("repository")
    copy(top)
    subprocess.run([top / "deploy/make-secrets", "scoring.example"], check=True, capture_output=True)
    return top / "deploy/secrets"


def copy(top):
    shutil.copytree(ROOT / "deploy", top / "deploy", ignore=shutil.ignore_patterns("secrets*"))


def test_it_is_what_the_compose_specification_says():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [*command, ROOT / "docker-compose.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("profile", ["demo", "sentinel", "cluster", "tls", "*"])
def test_compose_itself_takes_it_and_names_the_remedy_where_secrets_are_missing(profile, tmp_path):
    compose = shutil.which("docker-compose")
    if compose is None:
        pytest.skip("docker-compose is not on PATH")
    command = [
        compose,
        "--file",
        ROOT / "docker-compose.yml",
        "--project-directory",
        tmp_path,
        "--profile",
        profile,
    ]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    without = subprocess.run(
        [*command, "config", "-q"], capture_output=True, text=True, env=environment, check=False
    )
    assert without.returncode != 0
    assert without.stderr.count("\n") == 1
    assert "run deploy/make-secrets" in without.stderr
    environment["DEPLOY_SECRETS"] = "./deploy/secrets"
    subprocess.run([*command, "config", "-q"], env=environment, check=True)


def test_a_missing_secrets_folder_names_its_remedy():
    lines = (ROOT / "docker-compose.yml").read_text().splitlines()
    files = [line for line in lines if "{file:" in line]
    assert len(files) == len(COMPOSE["secrets"])
    assert all(
        "${DEPLOY_SECRETS:?there are no secrets yet: run deploy/make-secrets}/" in line for line in files
    )


@services()
def test_what_is_referred_to_is_there(name):
    service = SERVICES[name]
    profile = service.get("profiles")
    for other, needed in service.get("depends_on", {}).items():
        assert SERVICES[other].get("profiles") in (None, profile), f"{other} is not started with {name}"
        if needed["condition"] == "service_healthy":
            own = SERVICES[other].get("healthcheck", {"test": IMAGE.of_last_stage("HEALTHCHECK")})
            assert own["test"]
            assert SERVICES[other]["image"] != OURS["holdfast"]["image"] or IMAGE.of_last_stage(
                "HEALTHCHECK"
            )
        else:
            assert needed["condition"] == "service_completed_successfully"
            assert SERVICES[other]["restart"] == "no"
    assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
    assert set(service["networks"]) <= set(COMPOSE["networks"])
    volumes = {entry.split(":")[0] for entry in service.get("volumes", []) if not entry.startswith(".")}
    assert volumes <= set(COMPOSE["volumes"])


def test_nothing_is_declared_that_nobody_uses():
    used = {name for service in SERVICES.values() for name in service.get("secrets", [])}
    assert used == set(COMPOSE["secrets"])
    volumes = {
        entry.split(":")[0]
        for service in SERVICES.values()
        for entry in service.get("volumes", [])
        if not entry.startswith(".")
    }
    assert volumes == set(COMPOSE["volumes"])


@pytest.mark.parametrize("source", sorted({path for one in SERVICES.values() for path in bind_mounts(one)}))
def test_a_mounted_folder_is_there(source):
    assert list((ROOT / source).iterdir())
    for service in SERVICES.values():
        target = bind_mounts(service).get(source)
        assert target is None or f"{source}:{target}:ro" in service["volumes"]


def test_prometheus_and_grafana_find_what_they_are_told_to():
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    targets = [
        target
        for job in config["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    ]
    assert "holdfast:8080" in targets
    grafana = ROOT / "deploy/grafana/provisioning"
    [source] = yaml.safe_load(next((grafana / "datasources").glob("*.yml")).read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load(next((grafana / "dashboards").glob("*.yml")).read_text())["providers"]
    assert provider["options"]["path"] == bind_mounts(SERVICES["grafana"])["./deploy/grafana/dashboards"]


@services(among=SERVERS)
def test_settings_are_settings_and_their_values_pass(name, monkeypatch):
    image = dict(part.split("=", 1) for text in IMAGE.of_last_stage("ENV") for part in text.split())
    environment = {**image, **SERVICES[name]["environment"]}
    ours = {key: value for key, value in environment.items() if key.startswith("HOLDFAST_")}
    assert {key.removeprefix("HOLDFAST_").lower() for key in ours} <= set(Settings.model_fields)
    for key in [key for key in os.environ if key.startswith("HOLDFAST_")]:
        monkeypatch.delenv(key)
    for key, value in ours.items():
        monkeypatch.setenv(key, value)
    settings = Settings()
    check_edge(settings)
    exposed = IMAGE.of_last_stage("EXPOSE")[0].split()
    assert [settings.grpc_address.split(":")[1], settings.http_address.split(":")[1]] == exposed
    assert [entry.split(":")[2] for entry in SERVICES[name]["ports"]] == exposed
    assert float(SERVICES[name]["stop_grace_period"].removesuffix("s")) > settings.drain_timeout_s
    target = parse_url(settings.store, password_file=settings.store_password_file)
    for address in target.addresses:
        assert address.host in SERVICES
        assert SERVICES[address.host].get("profiles") in (None, SERVICES[name].get("profiles"))
    for path in (settings.store_password_file, settings.tls_cert, settings.tls_key, settings.tokens_file):
        assert path is None or path.name in SERVICES[name]["secrets"]


@services()
def test_a_service_has_no_more_rights_than_it_needs(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"]
    assert service["restart"] in ("unless-stopped", "no")
    assert int(service["user"].split(":")[0]) > 0
    assert {"cpus", "memory", "pids"} == set(service["deploy"]["resources"]["limits"])
    assert all(entry.startswith("127.0.0.1:") for entry in service.get("ports", []))
    assert EXACT.fullmatch(service["image"]), "its tag is not one exact release"
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"} & set(service)
    assert "healthcheck" in service or name in OURS


def test_published_ports_are_published_once():
    ports = [entry.rpartition(":")[0] for one in SERVICES.values() for entry in one.get("ports", [])]
    assert len(ports) == len(set(ports))


def test_stores_are_reached_by_servers_only():
    assert COMPOSE["networks"]["store"] == {"internal": True}
    stores = [one for one in SERVICES.values() if one["image"].startswith("redis:")]
    assert stores
    assert all(one["networks"] == ["store"] and "ports" not in one for one in stores)
    assert all("store" not in SERVICES[name]["networks"] for name in ("prometheus", "grafana", "demo"))


def test_the_stores_version_has_no_known_hole():
    [image] = {one["image"] for one in SERVICES.values() if one["image"].startswith("redis:")}
    version = tuple(int(part) for part in re.search(r":([\d.]+)", image)[1].split("."))
    assert any(floor[:2] == version[:2] and version >= floor for floor in FLOORS["redis"])


def test_no_secret_stands_in_the_file():
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY|CERT", key):
                assert value.startswith("/run/secrets/")
            assert not re.search("://[^/@]*:[^/@]*@", value), "a password in a URL"
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {"/deploy/secrets/", "/.env"} <= set(ignored)


def rule_of(user, path):
    [line] = [line for line in path.read_text().splitlines() if line.startswith(f"user {user} ")]
    return line.removeprefix(f"user {user} ")


def test_the_stores_users_are_those_of_holdfast_store_acl(secrets):
    password = (secrets / "store_password").read_text().strip()
    said = store_rule("holdfast", password=password, fsynced=True)
    assert f"ACL SETUSER holdfast {rule_of('holdfast', secrets / 'users.acl')}" == said
    assert rule_of("default", secrets / "users.acl") == "off"
    known = sentinel_rule("default").removeprefix("ACL SETUSER default ")
    assert rule_of("default", secrets / "sentinel-users.acl") == known.replace("on ", "on nopass ", 1)
    assert (
        "SHA256" not in (secrets / "users.acl").read_text() + (secrets / "sentinel-users.acl").read_text()
    )


def test_every_secret_is_made(secrets):
    for entry in COMPOSE["secrets"].values():
        path = secrets / Path(entry["file"]).name
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, (
            "other users than its owner's read it in containers"
        )
        assert path.stat().st_size > 50
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert stat.S_IMODE((secrets / "ca.key").stat().st_mode) == 0o600
    assert (secrets.parents[1] / ".env").read_text() == "DEPLOY_SECRETS=./deploy/secrets\n"
    words = re.findall(r"\b[0-9a-f]{64}\b", " ".join(path.read_text() for path in secrets.glob("*_*")))
    assert len({*words}) == 5, (
        "passwords of the store, its operator, replicas, sentinels, and Grafana differ"
    )


def test_the_token_and_the_certificates_fit(secrets):
    credentials = Credentials((secrets / "tokens.toml").read_text())
    token = (secrets / "token").read_text().strip()
    assert credentials.of_token(token).tenant == "default"
    for name, purpose in (("server", "sslserver"), ("client", "sslclient")):
        verify = [
            "openssl",
            "verify",
            "-CAfile",
            secrets / "ca.crt",
            "-purpose",
            purpose,
            secrets / f"{name}.crt",
        ]
        subprocess.run(verify, check=True, capture_output=True)
    shown = ["openssl", "x509", "-in", secrets / "server.crt", "-noout", "-ext", "subjectAltName"]
    names = subprocess.run(shown, check=True, capture_output=True, text=True).stdout
    assert all(name in names for name in ("localhost", "127.0.0.1", "holdfast-tls", "scoring.example"))


def test_secrets_are_never_overwritten(secrets):
    before = {path: path.read_bytes() for path in secrets.iterdir()}
    again = subprocess.run([secrets.parent / "make-secrets"], capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1
    assert "move it away" in again.stderr
    assert {path: path.read_bytes() for path in secrets.iterdir()} == before


def test_a_host_name_that_is_none_is_refused(tmp_path):
    copy(tmp_path)
    done = subprocess.run(
        [tmp_path / "deploy/make-secrets", "a,DNS:b"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "'a,DNS:b' is no host name" in done.stderr
    assert not (tmp_path / "deploy/secrets").exists()


def test_the_image_is_small_in_rights_and_exact_in_versions():
    bases = {text for _, steps in IMAGE.stages for name, text in steps if name == "FROM"}
    assert len(bases) == 1
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-[a-z]+", bases.pop())
    user = IMAGE.of_last_stage("USER")[0]
    assert int(user.split(":")[0]) >= 10_000
    assert {one["user"] for one in OURS.values()} == {user}
    assert IMAGE.of_last_stage("ENTRYPOINT") == ['["holdfast"]']
    assert IMAGE.of_last_stage("CMD") == ['["serve"]']
    assert IMAGE.of_last_stage("STOPSIGNAL") == ["SIGTERM"]
    assert "apt-get" not in (ROOT / "deploy/Dockerfile").read_text(), (
        "no compiler, nothing that is not pinned"
    )
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert IMAGE.of_last_stage("ARG") == [f"VERSION={version}"]
    assert {one["image"] for one in OURS.values()} == {f"holdfast:{version}"}
    installs = [
        text
        for _, steps in IMAGE.stages
        for name, text in steps
        if " install " in f"{text} " and name == "RUN"
    ]
    assert all("--constraint constraints.txt" in text for text in installs if "pip" in text)
    assert importlib.metadata.version("hatchling") in (ROOT / "constraints.txt").read_text()


def test_what_is_copied_into_the_image_is_what_docker_may_see():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    copied = {part for name, text in IMAGE.stages[0][1] if name == "COPY" for part in text.split()[:-1]}
    assert copied == allowed
    assert all((ROOT / one).exists() for one in copied)
