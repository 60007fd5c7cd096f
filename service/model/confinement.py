"""What a process can take from itself for ever, on Linux: files, network, other processes, system calls.

Nothing here needs a privilege. Where a kernel or a container does not let a process do one of these, it
goes on with the others, and says which hold:

- `no capabilities`: root is nobody in particular.
- `no network`: a network namespace of its own, in which there is nobody.
- `landlock`: no file can be opened, made or removed, no port be bound or reached, nobody be signalled.
- `system call filter`: calls that are not listed fail (`service.model.call_filter`).

Memory, CPU time, sizes of files and the number of descriptors are bounded anywhere, by limits on resources.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Callable

from service.model.call_filter import number_of_seccomp, program_for

NO_CAPABILITIES = "no capabilities"
NO_NETWORK = "no network"
LANDLOCK = "landlock"
CALL_FILTER = "system call filter"
ALL = (NO_CAPABILITIES, NO_NETWORK, LANDLOCK, CALL_FILTER)

_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
"""Numbers of system calls for which there are no functions; the same on every processor."""
_LANDLOCK_CREATE_RULESET_VERSION = 1

_libc = ctypes.CDLL(None)


def confine(set_limits: Callable[[], None]) -> tuple[str, ...]:
    """Takes from this process whatever it can do without.

    It should have one thread: the others keep all but the calls that are filtered.

    Args:
        set_limits: Sets limits on resources; called after all that needs a descriptor, and before calls are
            filtered, since no limit can be set then.

    Returns:
        Those of `ALL` that hold.
    """
    held = []
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:  # landlock and filters are for such processes
        steps = (
            (NO_NETWORK, _leave_network),
            (NO_CAPABILITIES, _drop_capabilities),
            (LANDLOCK, _close_files),
        )
        held = [name for name, step in steps if step()]
    set_limits()
    if _filter_calls():
        held.append(CALL_FILTER)
    return tuple(name for name in ALL if name in held)


def _leave_network() -> bool:
    return bool(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0)


def _drop_capabilities() -> bool:
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    return bool(_libc.capset(header, bytes(24)) == 0)


def _close_files() -> bool:
    """Allows itself nothing of what the kernel's landlock knows, which is more with each version of it."""
    version = _libc.syscall(
        _LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION
    )
    if version < 1:
        return False
    file_rights = 13 + (version >= 2) + (version >= 3) + (version >= 5)
    groups = [(1 << file_rights) - 1, 0b11, 0b11]  # files; TCP since version 4; signals, sockets since 6
    groups = groups[: 3 if version >= 6 else 2 if version >= 4 else 1]
    rules = struct.pack(f"={len(groups)}Q", *groups)
    ruleset = _libc.syscall(_LANDLOCK_CREATE_RULESET, rules, ctypes.c_size_t(len(rules)), 0)
    if ruleset < 0:
        return False
    restricted = _libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return bool(restricted == 0)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _filter_calls() -> bool:
    """Filters the calls of every thread, of one that a library started as well."""
    machine = platform.machine()
    seccomp = number_of_seccomp(machine)
    if seccomp is None:
        return False
    code = program_for(machine, os.getpid())
    program = _Program(len(code) // 8, code)
    flags = _SECCOMP_FILTER_FLAG_TSYNC
    return bool(_libc.syscall(seccomp, _SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(program)) == 0)
