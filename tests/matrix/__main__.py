"""`make matrix`: networks of `tests.support.user_networks`, exported, served, and compared with PyTorch.

Every kind in 1 and 2 layers, in batches of 1, 7 and 64 sessions, in chunks of 1, 7 and 64 tokens; with a
server that is killed in the middle for each kind once. Writes build/matrix.md. With `--record` it writes
what `make test` has, where there is no torch: the graphs, and what PyTorch gives, as small files.
"""

import argparse
import asyncio
import functools
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from holdfast.demo.processes import ServerProcess
from model_export import export_step
from tests.matrix.streams import TOLERANCE, Kill, difference, outputs_of
from tests.support.user_networks import LAYERS, NETWORKS, WIDTH, build, offline

RECORDED = Path(__file__).parent / "recorded"
BATCHES, CHUNKS, TOKENS = (1, 7, 64), (1, 7, 64), 70
RECORDED_ROWS, RECORDED_TOKENS = 7, 15


def main():
    """Exports, serves and compares; exits with 1 if something differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix")
    parser.add_argument("--record", action="store_true", help="only writes the files of make test")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "LSTM with projections")  # of torch, on its own way
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        measured = {
            (name, layers): export_step(*build(name, layers), out=models / f"{name}-{layers}" / "1")
            for name in NETWORKS
            for layers in LAYERS
        }
        if options.record:
            return _record(models)
        served = asyncio.run(_serve(Path(folder), models))
    lines = [
        "| network | layers | way | graph, 500 steps | over gRPC | killed in the middle |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for (name, layers), done in measured.items():
        figures = [done.measured.max_difference, *served[name, layers]]
        shown = " | ".join("" if figure is None else f"{figure:.1e}" for figure in figures)
        lines.append(f"| {name} | {layers} | {done.route} | {shown} |")
    text = "\n".join(lines) + "\n"
    Path("build").mkdir(exist_ok=True)
    Path("build/matrix.md").write_text(text)
    print(text)
    worst = max(figure for pair in served.values() for figure in pair if figure is not None)
    raise SystemExit(f"largest difference {worst:.1e}" if not worst <= TOLERANCE else 0)


def drawn(rows, count):
    """Returns tokens (rows, count, WIDTH), always the same."""
    return np.random.default_rng(3).standard_normal((rows, count, WIDTH)).astype(np.float32)


async def _serve(folder, models):
    """Returns by network the largest differences without and with a kill."""
    tokens = drawn(max(BATCHES), TOKENS)
    served = {}
    server = ServerProcess(folder / "data", "--models", str(models))
    start = functools.partial(
        ServerProcess, folder / "data", "--models", str(models), grpc_address=server.address
    )
    try:
        for name in NETWORKS:
            for layers in LAYERS:
                expected = offline(name, layers, tokens)
                model, worst = f"{name}-{layers}", 0.0
                for batch in BATCHES:
                    for chunk in CHUNKS:
                        given = await outputs_of(
                            server.address, model, tokens[:batch], chunk, name=f"{model}-{batch}-{chunk}"
                        )
                        worst = max(worst, difference(given, expected[:batch]))
                killed = None
                if layers == LAYERS[-1]:
                    kill = Kill(server, start)
                    given = await outputs_of(
                        server.address, model, tokens[:7], 7, name=f"{model}-killed", half_way=kill
                    )
                    server = kill.server
                    assert kill.count == 1, "the server was not killed"
                    killed = difference(given, expected[:7])
                served[name, layers] = worst, killed
                print(
                    f"{model}: {worst:.1e}" + ("" if killed is None else f", killed {killed:.1e}"),
                    flush=True,
                )
    finally:
        server.stop()
    return served


def _record(models):
    shutil.rmtree(RECORDED, ignore_errors=True)
    tokens = drawn(RECORDED_ROWS, RECORDED_TOKENS)
    outputs = {}
    for name in NETWORKS:
        model = f"{name}-{LAYERS[-1]}"
        shutil.copytree(models / model, RECORDED / "models" / model)
        outputs[model] = offline(name, LAYERS[-1], tokens)
    np.savez_compressed(RECORDED / "outputs.npz", tokens=tokens, **outputs)


if __name__ == "__main__":
    main()
