"""The signals that ask a process to leave.

The first one asks it to drain. The second ends it at once, as the system does by itself, even where the
loop hangs: what was acknowledged is in the store, and clients send the rest again.
"""

import asyncio
import signal

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""SIGHUP comes when a terminal is closed, SIGQUIT by its Ctrl-\\; left to the system they would end a
server without a drain, and leave its embedded store behind."""


def stop_requested() -> asyncio.Event:
    """Returns what the first of STOP_SIGNALS from now on sets.

    A signal that was ignored when the process began still is, as SIGHUP under nohup.
    """
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    obeyed = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]

    def stop() -> None:
        event.set()
        for number in obeyed:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in obeyed:
        loop.add_signal_handler(number, stop)
    return event
