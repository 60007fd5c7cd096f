"""The demo's servers: `holdfast serve` as processes that can be killed."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

_READY = re.compile(r"ready grpc=(\S+) http=(\S+)")


class DemoServer:
    """A server process.

    Args:
        data_dir: Folder of the embedded store.
        store: As in `holdfast serve --store`.
        address: HOST:PORT to listen on; port 0 takes a free one.

    Raises:
        RuntimeError: It does not start; what it said is in the message.
    """

    def __init__(self, data_dir: Path, store: str, address: str = "127.0.0.1:0") -> None:
        self._log = (data_dir / "demo-server.log").open("a+")
        command = [sys.executable, "-c", "from holdfast.cli import main; main()", "serve"]
        command += ["--data-dir", str(data_dir), "--store", store]
        command += ["--grpc-address", address, "--http-address", "127.0.0.1:0"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        ready = _READY.match(self._process.stdout.readline())
        if ready is None:
            self._process.wait()
            self._log.seek(0)
            raise RuntimeError(f"the server did not start: {self._log.read()[-500:].strip()}")
        self.address = ready[1]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def kill(self) -> None:
        """Kills it with SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ends it with SIGTERM."""
        self._end(signal.SIGTERM)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stops it."""
        self.stop()

    def _end(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)
        self._process.wait(30)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()
