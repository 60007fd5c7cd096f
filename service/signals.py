"""The signals that ask a process to leave.

The first one asks it to drain. The second ends it at once, as the system does by itself, even where the
loop hangs: what was acknowledged is in the store, and clients send the rest again.
"""

import asyncio
import signal

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def stop_requested() -> asyncio.Event:
    """Returns what the first SIGTERM or SIGINT from now on sets."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        event.set()
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop)
    return event
