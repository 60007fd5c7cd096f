"""The process that checks one model file, given on standard input; `service.model.check` starts it.

It gives up what it may do before it looks at the first byte of the file: no file or socket can be opened
any more, nothing written but the verdict, nobody signalled, few system calls be made, and CPU time and
memory are bounded. What a kernel does not let it give up is missing in what it says when a file passes.
"""

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from service.model.bundle import BundleError, unpack
from service.model.check import MAX_VERDICT_BYTES, PASSED
from service.model.confinement import confine
from service.model.files import ModelFileError
from service.model.loading import load_model
from service.model.onnx_wire import check_file
from service.model.protocol import Model
from service.model.subwords import import_tokenizers
from service.model.tokenised import TokenisedModel
from service.model.trial import try_out
from service.model.trial_runs import Kind, TrialFailed
from service.model.wire_format import UnsafeGraph

_PR_SET_PDEATHSIG = 1
_PIECE_BYTES = 16 << 20

TRIAL_CPU_S = 10.0
"""CPU time after which a graph whose steps take long is tried on no more large batches."""


def main() -> None:
    """Reads, checks, says one line and ends."""
    leave_with(int(sys.argv[3]))
    import_tokenizers()  # no file can be opened later
    held = confine(lambda: give_up(cpu_s=int(sys.argv[1]), memory_bytes=int(sys.argv[2])))
    os.write(1, (refusal_by(_check) or PASSED + ", ".join(held).encode())[:MAX_VERDICT_BYTES])
    os._exit(0)  # without tearing down what may be damaged


def leave_with(parent: int) -> None:
    """Has this process killed when the one that wants to know has ended, in the middle of anything."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


def give_up(cpu_s: int, memory_bytes: int) -> None:
    """Bounds what this process may still do."""
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 0,  # what is open stays open
        resource.RLIMIT_NPROC: 0,
    }
    for number, limit in limits.items():
        resource.setrlimit(number, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))  # a signal that has a name, then SIGKILL


def read_all() -> bytes:
    """Returns the model."""
    return b"".join(iter(lambda: os.read(0, _PIECE_BYTES), b""))


def try_in_time(model: Model, data: bytes) -> dict[Kind, float]:
    """Tries a model, without what takes too long; see `try_out`.

    One with a tokenizer is tried on text as well, of which the drawn bytes of a trial have little.
    """
    end_s = time.process_time() + TRIAL_CPU_S

    def is_time_left() -> bool:
        return time.process_time() < end_s

    if not isinstance(model, TokenisedModel):
        return try_out(model, data, is_time_left=is_time_left)
    found = try_out(model.network, data, is_time_left=is_time_left)
    text = np.frombuffer(model.sample_text(), np.uint8)
    more = try_out(model, data, given=text, is_time_left=is_time_left)
    return {kind: max(found.get(kind, 0.0), more.get(kind, 0.0)) for kind in {**found, **more}}


def refusal_by(check: Callable[[], None]) -> bytes:
    """Returns why a check refuses the file; b"" if it does not."""
    try:
        check()
    except ModelFileError as error:
        return error.reason.encode(errors="replace")
    except (BundleError, UnsafeGraph, TrialFailed) as error:
        return str(error).encode(errors="replace")
    except MemoryError:
        return b"it needs more memory than its size lets expect"
    except Exception as error:  # noqa: BLE001 -- whatever it is, the file is at fault and the server lives
        return f"its check fails: {type(error).__name__}: {error}".encode(errors="replace")
    return b""


def _check() -> None:
    data = read_all()
    check_file(unpack(data).graph)
    apart = frozenset(filter(None, sys.argv[4].split(",")))
    try_in_time(load_model(Path(), name="", version=1, data=data, apart=apart), data)


if __name__ == "__main__":
    main()
