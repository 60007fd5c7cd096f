"""`holdfast demo`: streams a file through a server, kills the server half-way, and judges the outputs."""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import holdfast
from holdfast.reply import StepReply
from model_export.corpus import load_corpus
from service.config import EMBEDDED, Settings
from service.demo.oracle import Uninterrupted, run_uninterrupted
from service.demo.processes import ServerProcess
from service.demo.screen import Screen, verdict

MODEL = "python-source"
MODEL_WITHOUT_MEMORY = "python-source-feedforward"
TOLERANCE = 1e-5
TOP_K = 5
DEFAULT_BYTES = 4000


class Judgement(NamedTuple):
    """The stream against the uninterrupted run.

    Attributes:
        lost: Bytes without an output.
        twice: Outputs beyond one per byte.
        max_difference: Largest absolute difference of an output.
    """

    lost: int
    twice: int
    max_difference: float

    @property
    def is_good(self) -> bool:
        """Whether the promise held."""
        return self.lost == 0 and self.twice == 0 and self.max_difference <= TOLERANCE


def main(arguments: list[str]) -> int:
    """Runs the demo.

    Returns:
        0 if nothing was lost or applied twice and every output is right; else 1.
    """
    options = _parse(arguments)
    with contextlib.ExitStack() as stack:
        data_dir = options.data_dir
        if data_dir is None and not options.type:
            data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-")))
        data_dir = data_dir or Path("~/.local/share/holdfast-demo").expanduser()
        data_dir.mkdir(parents=True, exist_ok=True)
        if options.type:
            from service.demo.typing_stream import type_live

            return type_live(data_dir, options.store)
        return _stream_file(data_dir, options)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="holdfast demo",
        description="Streams text byte by byte through a server that is killed half-way.",
    )
    parser.add_argument("--store", default=EMBEDDED, help="as in holdfast serve (default: embedded)")
    parser.add_argument("--file", type=Path, help="text to stream (default: a held-out source file)")
    parser.add_argument("--bytes", type=int, default=DEFAULT_BYTES, help="at most so many bytes")
    parser.add_argument("--type", action="store_true", help="your keystrokes are the stream")
    parser.add_argument("--picture", type=Path, help="save the last screen of a good run as SVG")
    parser.add_argument("--data-dir", type=Path, help="folder of the embedded store (default: temporary)")
    return parser.parse_args(arguments)


def _stream_file(data_dir: Path, options: argparse.Namespace) -> int:
    title, data = _text(options.file, options.bytes)
    models = Settings().models
    expected = run_uninterrupted(models / MODEL / "1" / "model.onnx", data)
    without = run_uninterrupted(models / MODEL_WITHOUT_MEMORY / "1" / "model.onnx", data)
    with Screen(title, len(data)) as screen:
        replies = list(_served(data_dir, options.store, data, without, screen))
    judged = judge(replies, expected)
    summary = (
        f"lost {judged.lost}  applied twice {judged.twice}  max difference {judged.max_difference:.1e}"
    )
    verdict(summary, is_good=judged.is_good)
    if options.picture is not None and judged.is_good:
        screen.save_picture(options.picture, summary)
    return 0 if judged.is_good else 1


def _text(file: Path | None, limit: int) -> tuple[str, bytes]:
    if file is not None:
        return file.name, file.read_bytes()[:limit]
    held_out = load_corpus().held_out
    chosen = next((source for source in held_out if len(source.data) >= limit), held_out[0])
    return chosen.path, chosen.data[:limit]


def _served(
    data_dir: Path, store: str, data: bytes, without: Uninterrupted, screen: Screen
) -> Iterator[StepReply]:
    """Yields the reply to every byte; half-way the server is killed and another one takes over."""
    server = ServerProcess(data_dir, "--store", store)
    try:
        screen.event(f"server {server.pid} serves at {server.address}")
        with holdfast.Client(server.address) as client:
            session = client.session(model=MODEL)
            selections: dict[str, Any] = {"top_k": TOP_K, "token_log_prob": True, "outputs": ["logits"]}
            for index, reply in enumerate(session.stream(data, **selections)):
                assert reply.token_log_probs is not None
                without_memory = float(without.token_log_probs[index])
                screen.add(data[index], float(reply.token_log_probs[0]), without_memory, reply.top[0])
                yield reply
                if index + 1 == len(data) // 2:
                    server.kill()
                    screen.event(f"server {server.pid} killed with SIGKILL after byte {index + 1}")
                    server = ServerProcess(data_dir, "--store", store, grpc_address=server.address)
                    screen.event(f"server {server.pid} took over; the stream goes on")
            session.close()
    finally:
        server.stop()


def judge(replies: list[StepReply], expected: Uninterrupted) -> Judgement:
    """Compares what was served with the uninterrupted run."""
    count = len(expected.token_log_probs)
    outputs_at: dict[int, int] = {}
    worst = 0.0
    for reply in replies:
        outputs_at[reply.position] = outputs_at.get(reply.position, 0) + 1
        index = reply.position - 1
        assert reply.token_log_probs is not None
        pairs = (
            (reply.token_log_probs[0], expected.token_log_probs[index]),
            (reply.outputs["logits"][0], expected.logits[index]),
        )
        worst = max(worst, *(float(np.abs(given - right).max()) for given, right in pairs))
    lost = sum(1 for position in range(1, count + 1) if position not in outputs_at)
    return Judgement(lost, sum(number - 1 for number in outputs_at.values()), worst)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
