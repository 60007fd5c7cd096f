"""A worker process: one server of several on the same port. Started by `WorkerProcess`, not by hand."""

from service.common.collector import sparing_imports

with sparing_imports():
    import asyncio
    import mmap
    import os
    import sys
    import threading
    from typing import TextIO

    import uvloop

    from service.app import Server
    from service.common.start_errors import StartError
    from service.process.signals import stop_requested
    from service.process.worker_process import SERVES
    from service.settings.schema import Settings
    from service.telemetry import logs
    from service.telemetry.metrics import SIZE_BYTES, Metrics


def main() -> int:
    """Serves until SIGTERM, then drains; leaves at once if the supervisor is gone.

    Returns:
        0 after a drain, 1 if it cannot start.
    """
    metrics = Metrics(mmap.mmap(int(sys.argv[1]), SIZE_BYTES))
    settings = Settings.model_validate_json(sys.stdin.buffer.readline())
    logs.configure("worker", settings.log_format, settings.log_level)
    logs.set_key(bytes.fromhex(sys.stdin.buffer.readline().decode()))
    checked = frozenset(bytes.fromhex(one.decode()) for one in sys.stdin.buffer.readline().split())
    threading.Thread(target=_leave_with_supervisor, daemon=True).start()
    with os.fdopen(os.dup(1), "w") as said, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        os.dup2(2, 1)  # what a library prints is not for the supervisor
        try:
            server = Server(settings, metrics, shares_port=True, checked=checked)
            runner.run(_serve(server, settings, said))
        except StartError as error:
            print(error, file=said)
            return 1
    return 0


async def _serve(server: Server, settings: Settings, said: TextIO) -> None:
    stopping = stop_requested()
    logs.obey_level_signals(settings.log_level)
    await server.start(settings.store)
    print(SERVES, file=said, flush=True)
    await stopping.wait()
    await server.stop()


def _leave_with_supervisor() -> None:
    """Ends the process when standard input ends, in the middle of anything.

    Safe at any moment: what was acknowledged is in the store. The next server finds the port free.
    """
    try:
        os.read(0, 1)
    finally:
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
