"""`make bench`: Holdfast beside an echo that keeps nothing, in turns, in one run.

64 streams, each with one token under way. Steps per second move with whatever else the machine does;
the ratios of medians and the CPU time per step say more.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import grpc
import grpc.aio

from holdfast.v1 import holdfast_pb2 as pb
from holdfast.v1.holdfast_pb2_grpc import StreamingInferenceServiceStub

MODEL = pb.ModelRef(name="python-source")
SERVE = [sys.executable, "-c", "from holdfast.cli import main; main()", "serve"]
ECHO = [sys.executable, "-m", "benchmarks.echo_server"]
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Round(NamedTuple):
    """One contestant's turn."""

    steps_per_s: float
    cpu_us_per_step: float


class Contestant:
    """A server process and its figures."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split("grpc=")[1].split()[0]
        self.rounds: list[Round] = []

    def cpu_s(self) -> float:
        """CPU time the server process has used, all threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    def median(self, figure: str) -> float:
        """Median of a figure over the rounds."""
        return statistics.median(getattr(turn, figure) for turn in self.rounds)

    def stop(self) -> None:
        """Ends the process."""
        self.process.terminate()
        self.process.wait(30)


async def take_turn(contestant: Contestant, streams: int, seconds: float, turn: int) -> None:
    """Loads a contestant for a while and keeps the figures."""
    async with grpc.aio.insecure_channel(contestant.address) as channel:
        stub = StreamingInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        started_s, cpu_s = time.monotonic(), contestant.cpu_s()
        until_s = started_s + seconds
        counts = await asyncio.gather(
            *(_drive(stub, f"bench-{turn}-{number}", until_s) for number in range(streams))
        )
        elapsed_s, used_s = time.monotonic() - started_s, contestant.cpu_s() - cpu_s
    contestant.rounds.append(Round(sum(counts) / elapsed_s, used_s / sum(counts) * 1e6))


async def _drive(stub: StreamingInferenceServiceStub, session_id: str, until_s: float) -> int:
    call = stub.StreamSteps()
    position = 0
    while time.monotonic() < until_s:
        chunk = pb.Chunk(session_id=session_id, model=MODEL, tokens=pb.Tokens(text=b"x"), position=position)
        await call.write(pb.StreamStepsRequest(chunk=chunk))
        reply = await call.read()
        assert reply.WhichOneof("outcome") == "result", reply
        position += 1
    await call.done_writing()
    return position


def main() -> None:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="per round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-") as data_dir:
        free = ["--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"]
        ours = Contestant("holdfast", [*SERVE, "--data-dir", data_dir, *free])
        echo = Contestant("echo", ECHO)
        try:
            for turn in range(options.rounds):
                for contestant in (ours, echo):
                    asyncio.run(take_turn(contestant, options.streams, options.seconds, turn))
                    print(f"round {turn + 1}/{options.rounds} {contestant.name} {contestant.rounds[-1]}")
        finally:
            ours.stop()
            echo.stop()
    for contestant in (ours, echo):
        print(
            f"{contestant.name:9} {contestant.median('steps_per_s'):8.0f} steps/s "
            f"{contestant.median('cpu_us_per_step'):6.0f} us server CPU per step (medians)"
        )
    print(
        f"steps/s over echo's {ours.median('steps_per_s') / echo.median('steps_per_s'):.2f}, "
        f"CPU per step over echo's {ours.median('cpu_us_per_step') / echo.median('cpu_us_per_step'):.2f}"
    )


if __name__ == "__main__":
    main()
