"""Server processes, and what tests ask them for beside gRPC."""

import os
import urllib.error
import urllib.request

from holdfast.demo import processes
from tests.support.command_line import starts


class ServerProcess(processes.ServerProcess):
    """A `holdfast serve` forked from a process that has imported it, for a quarter of the CPU of a start.

    Where the start itself is tested, and the command as users call it, take the one of `holdfast.demo`.
    """

    def _launch(self, program, flags, log):
        reads, writes = os.pipe()
        with open(writes, "wb") as out:
            process = starts().start("serve", *flags, out=out, err=log)
        process.stdout = open(reads)  # noqa: SIM115
        return process


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
