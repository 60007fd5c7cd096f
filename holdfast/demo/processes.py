"""Servers as processes that can be killed: `holdfast serve`, started and waited for."""

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Self

_SERVE = ("-c", "from service.command import main; main()", "serve")
_READY = re.compile(r"ready grpc=(\S+) http=(\S+)\n")


class ServerProcess:
    """A `holdfast serve` process, ready to serve.

    Args:
        data_dir: Folder of the embedded store, made if missing; the server's log goes there.
        flags: Further flags of `holdfast serve`.
        grpc_address: HOST:PORT to listen on; port 0 takes a free one.
        program: What Python runs, up to the flags.

    Attributes:
        address: HOST:PORT of gRPC.
        http: HOST:PORT of HTTP.
        pid: Its process id.
        log_path: Its log.

    Raises:
        RuntimeError: It does not start; what it said last is in the message.
    """

    def __init__(
        self,
        data_dir: Path,
        *flags: str,
        grpc_address: str = "127.0.0.1:0",
        program: Sequence[str] = _SERVE,
    ) -> None:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.log_path = log_path = data_dir / "server.log"
        where = [
            "--data-dir",
            str(data_dir),
            "--grpc-address",
            grpc_address,
            "--http-address",
            "127.0.0.1:0",
        ]
        with log_path.open("ab") as log:
            self._process = self._launch(program, [*where, *flags], log)
        assert self._process.stdout is not None
        with self._process.stdout as output:
            ready = _READY.fullmatch(output.readline())
        if ready is None:
            self._process.wait()
            raise RuntimeError(f"the server did not start: {log_path.read_text()[-500:].strip()}")
        self.address, self.http = ready.groups()
        self.pid = self._process.pid

    def kill(self) -> None:
        """Kills it with SIGKILL: no drain, no goodbye."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ends it with SIGTERM, unless it has ended; returns its exit code."""
        return self._end(signal.SIGTERM)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stops it."""
        self.stop()

    def _launch(
        self, program: Sequence[str], flags: Sequence[str], log: IO[bytes]
    ) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, *program, *flags],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )

    def _end(self, number: signal.Signals) -> int:
        self._process.send_signal(number)  # does nothing to a process that has ended
        return self._process.wait(30)
