"""Forks a process for each message on its standard input: most of the time of a start is imports.

What is forked has imported everything and started nothing: no thread, loop or connection of ours. A
message is a JSON object that names a module, whose `main` is called, with arguments, variables, a folder
to work in, and the seconds after which SIGALRM ends it, 0 for none. With it come descriptors for the
three standard streams, and for the exit code. The answer is the process id.
"""

import importlib
import json
import os
import select
import signal
import socket
import sys

from service.common.collector import sparing_imports
from service.process.library_environment import set_library_environment

MAX_MESSAGE_BYTES = 1 << 20


def main():
    """Forks until nobody can ask any more; what is forked ends in here too, as its `main` does."""
    set_library_environment()
    with sparing_imports():
        import service.app  # noqa: F401

    asks = socket.socket(fileno=0)
    started = {}
    poll = select.poll()
    poll.register(asks, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready != asks.fileno():
                poll.unregister(ready)
                tell_ending(ready, *started.pop(ready))
                continue
            message, files, *_ = socket.recv_fds(asks, MAX_MESSAGE_BYTES, 4)
            if not message:
                return
            pid = os.fork()
            if not pid:
                run(json.loads(message), files[:3])
            watch = os.pidfd_open(pid)
            poll.register(watch, select.POLLIN)
            started[watch] = pid, files.pop()
            for file in files:
                os.close(file)
            asks.send(str(pid).encode())


def tell_ending(watch, pid, teller):
    """Says the exit code of a process that has ended."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        os.write(teller, str(code).encode())
    except BrokenPipeError:
        pass  # nobody wants to know
    finally:
        os.close(teller)
        os.close(watch)


def run(asked, streams):
    """Is a process that was started so; ends by what `main` raises, or when that returns."""
    os.setsid()
    for number, file in enumerate(streams):
        os.dup2(file, number)
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["variables"])
    signal.alarm(asked["limit_s"])
    sys.argv = asked["arguments"]
    importlib.import_module(asked["module"]).main()
    raise SystemExit


if __name__ == "__main__":
    main()
