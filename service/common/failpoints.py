"""Places at which a test can have a server die, stop, dawdle or fail. Off unless asked for twice.

`HOLDFAST_FAILPOINTS` holds what is to happen, separated by commas: POINT=ACTION[:SECONDS][@N], where N is
the passage at which it happens, by default the first; it happens once. A server that finds the variable
starts only with `--allow-failpoints`, so that none has it by accident. Actions:

    kill    SIGKILL to the process
    pause   SIGSTOP to the process
    delay   the stage waits for SECONDS; the others go on
    raise   the stage fails

While nothing is armed, a stage pays for one look at `is_armed`.
"""

import asyncio
import os
import re
import signal
from collections.abc import Mapping
from typing import NamedTuple

from service.common.start_errors import StartError

VARIABLE = "HOLDFAST_FAILPOINTS"
POINTS = (
    "before_load", "after_load", "before_run", "after_run", "before_commit", "after_commit", "before_reply",
    "after_reply",
)  # fmt: skip

_ENTRY = re.compile(r"(\w+)=(kill|pause|raise|delay:(\d+(?:\.\d+)?))(?:@(\d+))?")

is_armed = False


class _Trap(NamedTuple):
    action: str
    delay_s: float
    passage: int


_traps: dict[str, _Trap] = {}
_passages: dict[str, int] = {}


class FailpointHit(Exception):
    """A stage was told to fail."""


def arm(environment: Mapping[str, str], *, is_allowed: bool) -> None:
    """Arms what the environment asks for.

    Raises:
        StartError: It asks for something though it may not, or for something that does not exist.
    """
    global is_armed
    text = environment.get(VARIABLE, "")
    _traps.clear()
    _passages.clear()
    if text and not is_allowed:
        raise StartError(f"{VARIABLE} is set: it breaks the server on purpose; unset it")
    for entry in filter(None, text.split(",")):
        match = _ENTRY.fullmatch(entry)
        if match is None or match[1] not in POINTS:
            raise StartError(f"{VARIABLE}: {entry!r} is not POINT=ACTION[:SECONDS][@N]")
        _traps[match[1]] = _Trap(match[2].partition(":")[0], float(match[3] or 0), int(match[4] or 1))
    is_armed = bool(_traps)


async def hit(point: str) -> None:
    """Passes a point; what is armed there happens.

    Raises:
        FailpointHit: The stage is to fail.
    """
    trap = _traps.get(point)
    if trap is None:
        return
    _passages[point] = passage = _passages.get(point, 0) + 1
    if passage != trap.passage:
        return
    if trap.action == "delay":
        await asyncio.sleep(trap.delay_s)
    elif trap.action == "raise":
        raise FailpointHit(f"at {point}, as a test asked for")
    else:
        os.kill(os.getpid(), signal.SIGKILL if trap.action == "kill" else signal.SIGSTOP)
