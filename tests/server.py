"""Starts real servers for tests: `holdfast serve` as a process on free ports, with its embedded store."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request


class ServerProcess:
    """A `holdfast serve` process."""

    def __init__(self, data_dir, *flags, grpc_address="127.0.0.1:0"):
        command = [sys.executable, "-c", "from holdfast.cli import main; main()", "serve"]
        command += ["--data-dir", str(data_dir), "--grpc-address", grpc_address]
        command += ["--http-address", "127.0.0.1:0", *flags]
        self.log = (data_dir.parent / f"{data_dir.name}.log").open("ab")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        match = re.fullmatch(r"ready grpc=(\S+) http=(\S+)\n", line)
        if match is None:
            self.process.wait()
            self.close()
            raise RuntimeError(f"the server did not start: {line!r}")
        self.address, self.http = match.groups()

    def get(self, path):
        """Returns status and text of an HTTP page."""
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=5) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def kill(self):
        """SIGKILL: no drain, no goodbye."""
        self._end(signal.SIGKILL)

    def stop(self):
        """SIGTERM; returns the exit code."""
        return self._end(signal.SIGTERM)

    def close(self):
        self.process.stdout.close()
        self.log.close()

    def _end(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
        code = self.process.wait(20)
        self.close()
        return code


@contextlib.contextmanager
def running(data_dir, *flags):
    """Runs a server for the time of the context."""
    server = ServerProcess(data_dir, *flags)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()
