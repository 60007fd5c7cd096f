"""How a child process has ended, in words."""

import signal


def ending_of(code: int) -> str:
    """Returns the name of the signal that ended a process, or its exit code.

    Args:
        code: As `subprocess` gives it, below zero for a signal; signals for real time have no name.
    """
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
