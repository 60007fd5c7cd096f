"""The rules of the pod security standard `restricted`, as far as a pod's spec can break them."""

VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected",
    "secret",
}  # fmt: skip


def breaches(pod):
    """Returns what a pod's spec has that the standard forbids, or lacks that it demands."""
    found = [f"{name} is on" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    for volume in pod.get("volumes", []):
        found += [f"volume {kind}" for kind in volume if kind != "name" and kind not in VOLUMES]
    of_pod = pod.get("securityContext", {})
    if of_pod.get("sysctls"):
        found.append("sysctls")
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        name = container["name"]
        found += [f"{name}: {breach}" for breach in _of_container(container, of_pod)]
    return found


def _of_container(container, of_pod):
    own = container.get("securityContext", {})
    both = {**of_pod, **own}
    capabilities = own.get("capabilities", {})
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "privileges may grow"
    if "ALL" not in capabilities.get("drop", []):
        yield "capabilities are kept"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "capabilities are added"
    if both.get("runAsNonRoot") is not True:
        yield "may run as root"
    if both.get("runAsUser") == 0:
        yield "runs as root"
    if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "no seccomp profile"
    if own.get("procMount", "Default") != "Default":
        yield "procMount"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "a port of the host"
