"""The compose file as tests read it: parsed, merged, its variables filled in."""

import re

import yaml

SECRETS = "./deploy/secrets"
_VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(:\?[^}]*)?\}")


def load(path):
    """Returns the file with DEPLOY_SECRETS as deploy/make-secrets sets it, the only variable there is."""

    def fill(match):
        assert match[1] == "DEPLOY_SECRETS", f"{match[1]} is not set by anybody"
        return SECRETS

    return yaml.safe_load(_VARIABLE.sub(fill, path.read_text()))


def bind_mounts(service):
    """Returns the folders of the repository that a service sees, and where."""
    mounts = (entry.split(":") for entry in service.get("volumes", []))
    return {source: target for source, target, *_ in mounts if source.startswith(".")}
