"""Errors of a machine that has nothing left at the moment. Imports little, for the checks of models."""

import errno

_PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN}


def is_passing(error: Exception) -> bool:
    """Whether an error is about what the machine has left at the moment: it may work again as it is."""
    if isinstance(error, OSError):
        return error.errno in _PASSING
    return isinstance(error, MemoryError) or "can't start new thread" in str(error)
