"""What tests ask a server process for, beside gRPC."""

import urllib.error
import urllib.request


def get(server, path):
    """Returns status and text of an HTTP page of a server."""
    try:
        with urllib.request.urlopen(f"http://{server.http}{path}", timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def value(server, name):
    """Returns the value of a metric without labels."""
    lines = get(server, "/metrics")[1].splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))
