"""`holdfast serve`: settings in, exit code out."""

import asyncio
import logging
import sys

import uvloop
from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from service.config import Settings
from service.errors import StartError
from service.host import serve

EXIT_CONFIGURATION = 2
EXIT_FAILURE = 1


def main(arguments: list[str]) -> int:
    """Serves until told to stop.

    Returns:
        0 after a drain, 2 for wrong settings, 1 if the server cannot start.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = CliApp.run(Settings, cli_args=arguments)
    except (ValidationError, SettingsError) as error:
        print(f"holdfast serve: {_one_line(error)}", file=sys.stderr)
        return EXIT_CONFIGURATION
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings))
    except StartError as error:
        print(f"holdfast serve: {error}", file=sys.stderr)
        return EXIT_FAILURE
    return 0


def _flag(location: tuple[int | str, ...]) -> str:
    """Returns the flag that is wrong, "" if several are wrong together."""
    return f"--{'.'.join(map(str, location)).replace('_', '-')}" if location else ""


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(
            ": ".join(filter(None, (_flag(entry["loc"]), entry["msg"]))) for entry in error.errors()
        )
    return " ".join(str(error).split())
