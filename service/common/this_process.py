"""How this process is named where others hear of it."""

import os
import socket


def this_process() -> str:
    """Returns host and process id; the host of a container is as a rule its own."""
    return f"{socket.gethostname()}:{os.getpid()}"
