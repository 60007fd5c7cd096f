"""The manifests of an overlay, rendered by kubectl, and what tests look up in them."""

import functools
import subprocess
import sys
from pathlib import Path

import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
POD_OWNERS = ("Deployment", "StatefulSet")


class Manifests(list):
    """Documents of an overlay."""

    def of(self, kind):
        return [document for document in self if document["kind"] == kind]

    def one(self, kind, name="holdfast"):
        [found] = [document for document in self.of(kind) if document["metadata"]["name"] == name]
        return found

    @property
    def pod(self):
        """The spec of Holdfast's pods."""
        return self.one("Deployment")["spec"]["template"]["spec"]

    @property
    def container(self):
        [container] = self.pod["containers"]
        return container

    @property
    def settings(self):
        """The HOLDFAST_* variables of Holdfast's container, by name."""
        [reference] = self.container["envFrom"]
        return self.one("ConfigMap", reference["configMapRef"]["name"])["data"]

    def templates_with(self, labels):
        """Returns the templates of the pods that a selector finds."""
        templates = [owner["spec"]["template"] for kind in POD_OWNERS for owner in self.of(kind)]
        return [one for one in templates if labels.items() <= one["metadata"]["labels"].items()]


@functools.cache
def render(overlay):
    """Returns what `kubectl apply -k` would send."""
    kubectl = Path(sys.executable).with_name("kubectl")
    command = [kubectl, "kustomize", FOLDER / "overlays" / overlay]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return Manifests(yaml.safe_load_all(result.stdout))


def ports_of(container):
    """Returns the numbers of a container's ports by name."""
    return {port["name"]: port["containerPort"] for port in container["ports"]}
