"""Takes from itself what the check of a model does, and then says how far it still reaches."""

import ctypes
import errno
import mmap
import os
import resource
import socket
import sys
import threading
import time

from service.model.check_process import give_up
from service.model.confinement import confine

PTRACE_ATTACH, PR_SET_NAME, IO_URING_SETUP, PROCESS_VM_READV = 16, 15, 425, 310
libc = ctypes.CDLL(None, use_errno=True)


def called(result):
    """Raises what a function of the C library says."""
    if result < 0:
        raise OSError(ctypes.get_errno(), "")


def execute_memory():
    """Runs what was written into memory, as an exploit would."""
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


kept = os.memfd_create("kept")
parent = os.getppid()
ATTEMPTS = {
    "open": lambda: os.open("/etc/hostname", os.O_RDONLY),
    "look at": lambda: os.stat("/etc/hostname"),
    "list": lambda: os.listdir("/"),
    "write": lambda: os.write(kept, b"x"),
    "read": lambda: os.pread(kept, 1, 0),
    "remove": lambda: os.unlink("/nowhere"),
    "socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "local socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "pair": socket.socketpair,
    "fork": os.fork,
    "thread": threading.Thread(target=time.sleep, args=(0,), daemon=True).start,
    "execute": lambda: os.execv(sys.executable, [sys.executable]),
    "execute memory": execute_memory,
    "ptrace": lambda: called(libc.ptrace(PTRACE_ATTACH, parent, 0, 0)),
    "read memory": lambda: called(libc.syscall(PROCESS_VM_READV, parent, 0, 0, 0, 0, 0)),
    "signal": lambda: os.kill(parent, 0),
    "signal its threads": lambda: called(libc.tgkill(parent, parent, 0)),
    "rename itself": lambda: called(libc.prctl(PR_SET_NAME, b"x", 0, 0, 0)),
    "raise a limit": lambda: called(libc.setrlimit(resource.RLIMIT_NOFILE, bytes([64, *[0] * 7] * 2))),
    "ring": lambda: called(libc.syscall(IO_URING_SETUP, 1, bytes(120))),
    "namespace": lambda: called(libc.unshare(0x10000000)),
}


def outcome(attempt):
    """Returns the name of the error that an attempt ends with."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    except RuntimeError:  # a thread that cannot be started
        return "EPERM"
    return "done"


held = confine(lambda: give_up(cpu_s=10, memory_bytes=1 << 32))
said = [f"held: {', '.join(held)}"]
said += [f"{name}: {found}" for name, attempt in ATTEMPTS.items() if (found := outcome(attempt)) != "EPERM"]
os.write(1, "; ".join(said).encode())
os._exit(0)
