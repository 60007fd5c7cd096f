"""The program by which a kernel lets a process make few system calls: seccomp, in classic BPF. Pure.

Listed is what a process needs that has been given its input, computes, answers and ends. Whatever is not
listed, or has not come yet, fails with EPERM; calls by another convention (32 bit, x32) end the process,
since their numbers mean something else.
"""

import errno
import struct
from typing import NamedTuple

STANDARD_INPUT, STANDARD_OUTPUT = 0, 1

_CALLS = {  # numbers on x86_64 and on aarch64
    "brk": (12, 214),
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "close": (3, 57),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "futex": (202, 98),
    "getcpu": (309, 168),
    "getpid": (39, 172),
    "getrandom": (318, 278),
    "getrusage": (98, 165),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "madvise": (28, 233),
    "membarrier": (324, 283),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "nanosleep": (35, 101),
    "read": (0, 63),
    "restart_syscall": (219, 128),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "set_robust_list": (273, 99),
    "sigaltstack": (131, 132),
    "sysinfo": (99, 179),
    "tgkill": (234, 131),
    "write": (1, 64),
}

_PROT_EXEC = 4

_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _END = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_NUMBER, _CONVENTION, _FIRST_ARGUMENT = 0, 4, 16
"""Where these lie in what a filter looks at."""


class _Machine(NamedTuple):
    """A kind of processor, as a kernel sees it.

    Attributes:
        convention: Its number for the way in which calls are made.
        column: Of the table.
        seccomp: Number of the call that sets a filter; its function is in no C library.
        foreign: Numbers from here on belong to another convention; None if there is none.
    """

    convention: int
    column: int
    seccomp: int
    foreign: int | None = None


_MACHINES = {
    "x86_64": _Machine(0xC000003E, 0, seccomp=317, foreign=0x40000000),
    "aarch64": _Machine(0xC00000B7, 1, seccomp=277),
}


class _Condition(NamedTuple):
    """What one argument of a call must be; its lower half is compared, on processors of little end first.

    Attributes:
        argument: Which, from 0.
        test: How.
        value: With what.
        wanted: What must come out.
    """

    argument: int
    test: int
    value: int
    wanted: bool


def number_of_seccomp(machine_name: str) -> int | None:
    """Returns the number of the call that sets a filter; None on a processor that is not known here."""
    machine = _MACHINES.get(machine_name)
    return None if machine is None else machine.seccomp


def program_for(machine_name: str, process: int) -> bytes:
    """Returns the program for a processor that is known here.

    Args:
        machine_name: Of the processor, as `platform.machine` has it.
        process: Number of the process that is filtered; it may signal itself, as `abort` does.
    """
    machine = _MACHINES[machine_name]
    conditions = {
        "read": _Condition(0, _EQUAL, STANDARD_INPUT, wanted=True),
        "write": _Condition(0, _EQUAL, STANDARD_OUTPUT, wanted=True),
        "mmap": _Condition(2, _HAS_BITS, _PROT_EXEC, wanted=False),
        "mprotect": _Condition(2, _HAS_BITS, _PROT_EXEC, wanted=False),
        "tgkill": _Condition(0, _EQUAL, process, wanted=True),
    }
    program = _instruction(_LOAD, _CONVENTION)
    program += _instruction(_EQUAL, machine.convention, if_true=1) + _instruction(_RETURN, _END)
    program += _instruction(_LOAD, _NUMBER)
    if machine.foreign is not None:
        program += _instruction(_AT_LEAST, machine.foreign, if_false=1) + _instruction(_RETURN, _END)
    for name, numbers in _CALLS.items():
        verdict = _verdict(conditions.get(name))
        skipped = len(verdict) // len(_instruction(_RETURN, _ALLOW))
        program += _instruction(_EQUAL, numbers[machine.column], if_false=skipped) + verdict
    return program + _instruction(_RETURN, _REFUSE)


def _verdict(condition: _Condition | None) -> bytes:
    if condition is None:
        return _instruction(_RETURN, _ALLOW)
    return (
        _instruction(_LOAD, _FIRST_ARGUMENT + 8 * condition.argument)
        + _instruction(
            condition.test,
            condition.value,
            if_true=int(not condition.wanted),
            if_false=int(condition.wanted),
        )
        + _instruction(_RETURN, _ALLOW)
        + _instruction(_RETURN, _REFUSE)
    )


def _instruction(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)
