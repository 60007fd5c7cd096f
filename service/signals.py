"""The signals that ask a process to leave."""

import asyncio
import signal


def stop_requested() -> asyncio.Event:
    """Returns what SIGTERM and SIGINT set from now on."""
    event = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, event.set)
    return event
