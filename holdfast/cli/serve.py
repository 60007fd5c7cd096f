"""`holdfast serve`: settings in, exit code out.

Why it cannot start is one line on standard error, `holdfast serve: …`, plain text whatever the form of the
log: it is for people, and the form itself may be what is wrong.
"""

import asyncio
import contextlib
import os
import sys

import uvloop

from service.common.start_errors import ConfigurationError, StartError
from service.process.host import serve
from service.settings.sources import SettingsSources
from service.telemetry import logs
from service.telemetry.log_lines import printable

EXIT_CONFIGURATION = 2
EXIT_FAILURE = 1


def main(arguments: list[str]) -> int:
    """Serves until told to stop.

    Returns:
        0 after a drain, 2 for settings that are wrong by themselves, 1 if the server cannot start.
    """
    sources = SettingsSources(arguments, os.environ)
    try:
        settings = sources.settings()
    except ConfigurationError as error:
        return _refused(str(error), EXIT_CONFIGURATION)
    process = "server" if settings.workers == 1 else "supervisor"
    logs.configure(process, settings.log_format, settings.log_level)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings))
    except StartError as error:
        code = EXIT_CONFIGURATION if isinstance(error, ConfigurationError) else EXIT_FAILURE
        return _refused(sources.explained(str(error)), code)
    return 0


def _refused(why: str, code: int) -> int:
    logs.flush()
    line = " ".join(why.split())
    with contextlib.suppress(OSError):  # nobody reads it; the code says it too
        print(f"holdfast serve: {printable(line)}", file=sys.stderr)
    return code
