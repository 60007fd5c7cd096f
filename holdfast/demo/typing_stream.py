"""`holdfast demo --type`: the user's own keystrokes are the stream, and the session outlives the visit."""

import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import holdfast
from holdfast.demo.oracle import ByteNetwork
from holdfast.demo.processes import ServerProcess
from holdfast.demo.screen import Screen
from service.settings.schema import MODEL, Settings

SESSION_ID = "typing"
END = (3, 4)
"""Ctrl-C and Ctrl-D."""


def type_live(data_dir: Path, store: str) -> int:
    """Sends each key as it is pressed; Ctrl-D ends. The next visit goes on at the same position.

    Returns:
        0; 2 without a terminal.
    """
    if not sys.stdin.isatty():
        print("holdfast demo --type needs a terminal", file=sys.stderr)
        return 2
    with ServerProcess(data_dir, "--store", store) as server, holdfast.Client(server.address) as client:
        session = client.open_session(SESSION_ID, model=MODEL)
        model_file = Settings().models / "python-source-feedforward" / "1" / "model.onnx"
        without_memory = ByteNetwork(model_file)
        with Screen("type; Ctrl-D leaves, and the network remembers you", 0) as screen, _raw():
            known = "remembers" if session.resumed else "has never met"
            screen.event(f"the network {known} you: position {session.position}")
            for byte in _keys():
                reply = session.step(bytes([byte]), top_k=5, token_log_prob=True)
                assert reply.token_log_probs is not None
                _, without = without_memory.step(byte)
                screen.add(byte, float(reply.token_log_probs[0]), without, reply.top[0])
        print(f"position {session.position}; run it again, and it goes on from here")
    return 0


def _keys() -> Iterator[int]:
    while True:
        byte = os.read(sys.stdin.fileno(), 1)
        if not byte or byte[0] in END:
            return
        yield 10 if byte == b"\r" else byte[0]


@contextmanager
def _raw() -> Iterator[None]:
    """Takes keys one by one, unechoed, while output stays as it is."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        mode = termios.tcgetattr(descriptor)
        mode[3] &= ~termios.ISIG
        termios.tcsetattr(descriptor, termios.TCSADRAIN, mode)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
