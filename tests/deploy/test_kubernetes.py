"""deploy/kubernetes: valid, and in agreement with each other, with the settings and with a real server."""

import copy
import re
import socket
import urllib.request
from urllib.parse import urlsplit

import grpc
import kubernetes_validate
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

import holdfast
from holdfast import Tls
from holdfast.demo.processes import ServerProcess
from service.settings.exposure import check_edge
from service.settings.schema import Settings
from service.store.address import parse_url
from tests.deploy.manifests import FOLDER, OVERLAYS, POD_OWNERS, ports_of, render
from tests.deploy.pod_security import breaches
from tests.support.certificates import Authority
from tests.support.server import get
from tests.support.stores import ADMIN, ADMIN_PASSWORD, PASSWORD, StoreProcess
from tests.support.tokens import TokensFile
from tests.support.waiting import wait_for

VERSIONS = ("1.27", "1.37")
"""Of Kubernetes: the oldest that knows all fields used, and the newest that has schemas here."""

MOUNTED = "/etc/holdfast/"
PREFIX = "HOLDFAST_"
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
MODEL = "python-source"


@pytest.fixture(params=OVERLAYS)
def manifests(request):
    return render(request.param)


@pytest.fixture
def dev():
    return render("dev")


@pytest.fixture
def prod():
    return render("prod")


# -- each document ----------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_documents_follow_the_schemas_of_kubernetes(manifests, version):
    for document in manifests:
        if document["kind"] != "ServiceMonitor":  # the operator's own, see below
            kubernetes_validate.validate(document, version, strict=True)


def test_a_wrong_field_would_be_seen(dev):
    document = copy.deepcopy(dev.one("Deployment"))
    document["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


def test_everything_is_in_the_namespace_which_is_restricted(manifests):
    namespace = manifests.one("Namespace")
    for mode in ("enforce", "audit", "warn"):
        assert namespace["metadata"]["labels"][f"pod-security.kubernetes.io/{mode}"] == "restricted"
    for document in manifests:
        if document is not namespace:
            assert document["metadata"]["namespace"] == "holdfast", document["metadata"]["name"]


def test_pods_are_allowed_where_pods_are_restricted(manifests):
    for template in manifests.templates_with({}):
        pod = template["spec"]
        assert breaches(pod) == []
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsUser"] >= 10_000
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("hostNetwork",), True),
        (("volumes", 0), {"name": "tmp", "hostPath": {"path": "/"}}),
        (("securityContext", "runAsNonRoot"), False),
        (("securityContext", "runAsUser"), 0),
        (("securityContext", "seccompProfile"), {"type": "Unconfined"}),
        (("containers", 0, "securityContext", "allowPrivilegeEscalation"), True),
        (("containers", 0, "securityContext", "privileged"), True),
        (("containers", 0, "securityContext", "capabilities", "drop"), ["NET_RAW"]),
        (("containers", 0, "securityContext", "capabilities", "add"), ["SYS_ADMIN"]),
        (("containers", 0, "ports", 0, "hostPort"), 50051),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_pod_that_is_not_restricted_is_seen(dev, path, value):
    pod = copy.deepcopy(dev.pod)
    *way, last = path
    part = pod
    for step in way:
        part = part[step]
    part[last] = value
    assert len(breaches(pod)) == 1


# -- one with the other -----------------------------------------------------------------------


def test_selectors_find_pods(manifests):
    for service in manifests.of("Service"):
        assert len(manifests.templates_with(service["spec"]["selector"])) == 1
    for policy in manifests.of("NetworkPolicy"):
        assert len(manifests.templates_with(policy["spec"]["podSelector"]["matchLabels"])) == 1
    for budget in manifests.of("PodDisruptionBudget"):
        assert len(manifests.templates_with(budget["spec"]["selector"]["matchLabels"])) == 1
    for kind in POD_OWNERS:
        for owner in manifests.of(kind):
            labels = owner["spec"]["selector"]["matchLabels"]
            assert manifests.templates_with(labels) == [owner["spec"]["template"]]
            for spread in owner["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
                assert spread["labelSelector"]["matchLabels"] == labels
    for scaler in manifests.of("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        assert manifests.one(target["kind"], target["name"])["apiVersion"] == target["apiVersion"]


def test_ports_agree(manifests):
    settings, ports = manifests.settings, ports_of(manifests.container)
    for name in ("grpc", "http"):
        host, _, port = settings[f"HOLDFAST_{name.upper()}_ADDRESS"].rpartition(":")
        assert (host, int(port)) == ("0.0.0.0", ports[name])
    for service in manifests.of("Service"):
        [template] = manifests.templates_with(service["spec"]["selector"])
        [container] = template["spec"]["containers"]
        for port in service["spec"]["ports"]:
            assert port["port"] == ports_of(container)[port["targetPort"]]
    for probe in PROBES:
        [action] = manifests.container[probe].keys() & {"grpc", "httpGet", "tcpSocket"}
        port = manifests.container[probe][action]["port"]
        assert port == ports["grpc"] if action == "grpc" else port in ports


def test_grpc_is_balanced_by_clients(manifests):
    assert manifests.one("Service")["spec"]["clusterIP"] == "None"
    assert [port["name"] for port in manifests.one("Service")["spec"]["ports"]] == ["grpc"]


def test_policies_name_every_port_and_no_other(manifests):
    for template in manifests.templates_with({}):
        policies = [
            policy["spec"]
            for policy in manifests.of("NetworkPolicy")
            if template in manifests.templates_with(policy["spec"]["podSelector"]["matchLabels"])
        ]
        assert {kind for policy in policies for kind in policy["policyTypes"]} == {"Ingress", "Egress"}
        rules = [rule for policy in policies for rule in policy.get("ingress", [])]
        assert all(rule["from"] for rule in rules)
        named = sorted(port["port"] for rule in rules for port in rule["ports"])
        assert named == sorted(ports_of(template["spec"]["containers"][0]))


def test_holdfast_reaches_names_and_its_store_alone(manifests):
    own = manifests.one("Deployment")["spec"]["template"]
    reached = set()
    for policy in manifests.of("NetworkPolicy"):
        if own in manifests.templates_with(policy["spec"]["podSelector"]["matchLabels"]):
            for rule in policy["spec"].get("egress", []):
                assert rule["to"]
                reached |= {(port["protocol"], port["port"]) for port in rule["ports"]}
    port = urlsplit(manifests.settings["HOLDFAST_STORE"]).port
    for owner in manifests.of("StatefulSet"):
        numbers = ports_of(owner["spec"]["template"]["spec"]["containers"][0])
        reached = {(protocol, numbers.get(name, name)) for protocol, name in reached}
    assert reached == {("UDP", 53), ("TCP", 53), ("TCP", port)}


def test_a_pod_has_time_to_drain_and_a_successor(manifests):
    settings = manifests.settings
    pause_s, drain_s = (float(settings[f"HOLDFAST_DRAIN_{name}_S"]) for name in ("PAUSE", "TIMEOUT"))
    assert 0 < pause_s < drain_s < manifests.pod["terminationGracePeriodSeconds"]
    assert "lifecycle" not in manifests.container, "the server pauses by itself, knowing that it leaves"
    assert manifests.one("Deployment")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_what_dev_and_prod_are(dev, prod):
    assert dev.one("Deployment")["spec"]["replicas"] == 1
    assert dev.of("HorizontalPodAutoscaler") == dev.of("PodDisruptionBudget") == []
    assert "replicas" not in prod.one("Deployment")["spec"], "each apply would undo the autoscaler"
    scaler = prod.one("HorizontalPodAutoscaler")["spec"]
    assert scaler["minReplicas"] == 3
    settled_s = scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"]
    assert settled_s > 1.1 * float(prod.settings["HOLDFAST_MAX_CONNECTION_AGE_S"])
    assert prod.of("Secret") == dev.of("Secret") == [], "secrets are made by hand"
    assert prod.of("StatefulSet") == [], "the store is somebody else's"


# -- with the settings ------------------------------------------------------------------------


def test_variables_are_settings(manifests, monkeypatch, tmp_path):
    authority = Authority(tmp_path)
    (tmp_path / "store").mkdir()
    authority.path.rename(tmp_path / "store" / "ca.crt")
    assert manifests.pod["enableServiceLinks"] is False, "a Service would set HOLDFAST_* too"
    for name, value in manifests.settings.items():
        assert name.removeprefix(PREFIX).lower() in Settings.model_fields, name
        monkeypatch.setenv(name, value.replace(MOUNTED, f"{tmp_path}/"))
    settings = Settings()
    check_edge(settings)
    parse_url(settings.store, password_file=settings.store_password_file)
    assert settings.model_fields_set == {name.removeprefix(PREFIX).lower() for name in manifests.settings}


def test_files_that_are_named_are_mounted(manifests):
    there = {
        f"{mount['mountPath']}/{item['path']}"
        for volume in manifests.pod["volumes"]
        for mount in manifests.container["volumeMounts"]
        if mount["name"] == volume["name"]
        for item in volume.get("secret", {}).get("items", [])
    }
    text = " ".join(manifests.settings.values())
    assert set(re.findall(rf"{MOUNTED}\S+", text)) == there
    for mount in manifests.container["volumeMounts"]:
        assert "subPath" not in mount, "changes of the secret would not arrive"


def test_the_page_names_what_there_is(prod):
    page = (FOLDER.parents[1] / "docs" / "operate" / "deploy-kubernetes.md").read_text()
    for name in re.findall(r"\| `([a-z/-]+\.(?:yaml|env))` \|", page):
        assert list(FOLDER.rglob(name)), name
    for volume in prod.pod["volumes"]:
        if "secret" in volume:
            name = volume["secret"]["secretName"]
            [line] = re.findall(rf"^kubectl .* create secret \w+ {name} (.*)$", page, re.MULTILINE)
            keys = {"tls.crt", "tls.key"} if name == "holdfast-tls" else set()
            assert keys | set(re.findall(r"--from-file=(\S+)", line)) == {
                item["key"] for item in volume["secret"]["items"]
            }
    said = dict(re.findall(r"`(HOLDFAST_\w+_S)`,? \((\d+) s", page))
    assert said.items() <= prod.settings.items()
    assert len(said) == 3


# -- with a real server -----------------------------------------------------------------------


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Starts a server on the variables of an overlay; only store and addresses are others."""
    started = []

    def serve_(manifests, *flags):
        for name, value in manifests.settings.items():
            monkeypatch.setenv(name, value.replace(MOUNTED, f"{tmp_path}/"))
        started.append(ServerProcess(tmp_path / "data", *flags))
        return started[-1]

    yield serve_
    for server in started:
        server.kill()  # a drain takes its pause, which is tested elsewhere


@pytest.fixture
def dev_store(dev, tmp_path):
    """The store of `dev`, by its own arguments."""
    container = dev.one("StatefulSet", "store")["spec"]["template"]["spec"]["containers"][0]
    arguments = [str(tmp_path / "store") if part == "/data" else part for part in container["args"]]
    with StoreProcess("valkey", tmp_path / "store", *arguments) as store:
        yield store


@pytest.fixture
def dev_server(dev, dev_store, serve):
    return serve(dev, "--store", dev_store.url)


def succeeds(probe, server, ports):
    """Does what the kubelet does."""
    if "httpGet" in probe:
        assert ports[probe["httpGet"]["port"]] == ports["http"]
        return get(server, probe["httpGet"]["path"])[0] == 200
    if "tcpSocket" in probe:
        assert ports[probe["tcpSocket"]["port"]] == ports["grpc"]
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10):
            return True
    assert probe["grpc"]["port"] == ports["grpc"]
    with grpc.insecure_channel(server.address) as channel:
        request = health_pb2.HealthCheckRequest(service=probe["grpc"]["service"])
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
        except grpc.RpcError:
            return False
        return reply.status == health_pb2.HealthCheckResponse.SERVING


def failing(manifests, server):
    """Returns the probes that fail."""
    container = manifests.container
    return [probe for probe in PROBES if not succeeds(container[probe], server, ports_of(container))]


def test_a_store_that_is_away_takes_readiness_and_nothing_else(dev, dev_store, dev_server):
    wait_for(lambda: failing(dev, dev_server) == [])
    dev_store.kill()
    wait_for(lambda: failing(dev, dev_server) == ["readinessProbe"])


def test_the_settings_of_prod_serve_at_its_level(prod, serve, tmp_path):
    for folder in ("store", "tls", "tokens"):
        (tmp_path / folder).mkdir()
    (tmp_path / "store" / "password").write_text(f"{PASSWORD}\n")
    authority = Authority(tmp_path)
    authority.server(tmp_path / "tls")
    tokens = TokensFile(tmp_path / "tokens" / "tokens.toml")
    token = tokens.add("tenant", "step")
    tokens.write()
    login = ("--masteruser", ADMIN, "--masterauth", ADMIN_PASSWORD)
    with (
        StoreProcess("valkey", tmp_path / "primary", *login) as primary,
        StoreProcess(
            "valkey", tmp_path / "replica", "--replicaof", f"127.0.0.1 {primary.port}", *login
        ) as replica,
    ):
        primary.allow_only_holdfast()
        replica.allow_only_holdfast()
        wait_for(lambda: replica.info()["master_link_status"] == "up")
        server = serve(prod, "--store", f"redis://holdfast@127.0.0.1:{primary.port}")
        wait_for(lambda: failing(prod, server) == [])
        tls = Tls(authority.path)
        with holdfast.Client(server.address, tls=tls, token=token, timeout_s=20) as client:
            assert str(client.open_session(model=MODEL).step("x").ack_level) == "replicated"


def test_metrics_that_are_asked_for_are_there(prod, dev_server):
    monitor = prod.one("ServiceMonitor")
    selected = [
        service
        for service in prod.of("Service")
        if monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ]
    [endpoint] = monitor["spec"]["endpoints"]
    [[port]] = [service["spec"]["ports"] for service in selected]
    assert endpoint["port"] == port["name"]
    job = monitor["spec"]["jobLabel"]
    assert [service["metadata"]["labels"][job] for service in selected] == ["holdfast"]  # as rules have it
    with urllib.request.urlopen(f"http://{dev_server.http}{endpoint['path']}", timeout=10) as reply:
        families = set(re.findall(r"^# TYPE (\S+) gauge$", reply.read().decode(), re.MULTILINE))

    [rule] = yaml.safe_load((FOLDER / "adapter-rule.yaml").read_text())["rules"]["custom"]
    [metric] = prod.one("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert {rule["name"]["matches"], rule["seriesQuery"].partition("{")[0]} <= families
    assert {resource["resource"] for resource in rule["resources"]["overrides"].values()} == {
        "namespace",
        "pod",
    }
