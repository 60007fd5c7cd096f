"""Forks a `holdfast` for each line of its input: for refused starts, most of whose time is imports.

What is forked has imported everything and started nothing: no thread, loop or connection of ours. A line
is a JSON object of arguments, variables and the files for standard output and error. The answer is the exit
code.
"""

import json
import os
import signal
import sys

from service import command
from service.process.library_environment import set_library_environment

LIMIT_S = 60


def main():
    given = dict(os.environ)
    set_library_environment()
    import holdfast.cli.serve  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if not pid:
            os.environ.clear()
            os.environ.update(given | asked["variables"])
            start(asked)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def start(asked):
    """Becomes a `holdfast` that was called so, and ends; by SIGALRM, if it is not refused."""
    signal.alarm(LIMIT_S)
    os.setsid()
    for number, path in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    code = 70
    try:
        sys.argv = ["holdfast", *asked["arguments"]]
        command.main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
