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
from pathlib import Path

import numpy as np

from service.model.check import MAX_VERDICT_BYTES, PASSED
from service.model.confinement import confine
from service.model.contract import Contract
from service.model.files import ModelFileError
from service.model.onnx_wire import UnsafeGraph, check_file
from service.model.step_graph import StepGraph

_PR_SET_PDEATHSIG = 1
_PIECE_BYTES = 16 << 20

TRIALS = ((1, 1), (2, 3))
"""Tokens and sessions of the steps that are tried."""


class TrialFailed(Exception):
    """A step of the graph fails, or gives what its contract does not say."""


def main() -> None:
    """Reads, checks, says one line and ends."""
    leave_with(int(sys.argv[3]))
    held = confine(lambda: give_up(cpu_s=int(sys.argv[1]), memory_bytes=int(sys.argv[2])))
    os.write(1, (_refusal() or PASSED + ", ".join(held).encode())[:MAX_VERDICT_BYTES])
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


def _refusal() -> bytes:
    """Returns why the file is refused; b"" if it is not."""
    try:
        data = b"".join(iter(lambda: os.read(0, _PIECE_BYTES), b""))
        check_file(data)
        _try_out(StepGraph(Path(), name="", version=1, data=data))
    except ModelFileError as error:
        return error.reason.encode(errors="replace")
    except (UnsafeGraph, TrialFailed) as error:
        return str(error).encode(errors="replace")
    except MemoryError:
        return b"it needs more memory than its size lets expect"
    except Exception as error:  # noqa: BLE001 -- whatever it is, the file is at fault and the server lives
        return f"its check fails: {type(error).__name__}: {error}".encode(errors="replace")
    return b""


def _try_out(graph: StepGraph) -> None:
    """Runs a few steps from the initial state, and compares what they give with the contract."""
    contract = graph.contract
    for token_count, row_count in TRIALS:
        features = () if contract.input.kind == "token_id" else (contract.input.width,)
        tokens = np.zeros((token_count, row_count, *features), contract.input.dtype)
        states = {spec.name: np.zeros((row_count, *spec.shape), spec.dtype) for spec in contract.states}
        try:
            outputs, next_states = graph.run(tokens, states)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 -- onnxruntime raises a dozen unrelated classes
            raise TrialFailed(f"a step of {token_count} tokens fails: {error}") from None
        found = {name: (array.shape, array.dtype) for name, array in {**outputs, **next_states}.items()}
        for name, wanted in _promised(contract, token_count, row_count).items():
            if found[name] != wanted:
                raise TrialFailed(
                    f"a step gives {name!r} as {found[name][1]} {found[name][0]}, its contract says "
                    f"{wanted[1]} {wanted[0]}"
                )


def _promised(
    contract: Contract, token_count: int, row_count: int
) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
    return {
        **{spec.name: ((token_count, row_count, *spec.shape), spec.dtype) for spec in contract.outputs},
        **{spec.name: ((row_count, *spec.shape), spec.dtype) for spec in contract.states},
    }


if __name__ == "__main__":
    main()
