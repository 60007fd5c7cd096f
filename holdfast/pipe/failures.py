"""What ends a pipe before its source does. Pure."""


class PipeFailed(Exception):
    """Its text says what failed, and where. What is not written comes again when the pipe is started."""


class Refused(PipeFailed):
    """An event cannot be applied, and must not be left out."""


class StepsLost(PipeFailed):
    """A session stands before events whose records are written, and they do not come again."""


class Replaced(PipeFailed):
    """Another process of the same name reads the source: this one is its predecessor, and ends."""


class EndFailed(PipeFailed):
    """A source cannot be read, or a sink not be written to."""
